"""Whole checkpoints out of a training: a base with its adapter put in, or a base's weights replaced by a model's."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from csm_mlx import __version__
from csm_mlx.checkpoint import files, hub
from csm_mlx.checkpoint.adapter import Adapter, read_adapter, set_weights
from csm_mlx.checkpoint.convert import ConvertReport, OnTensor, write_source
from csm_mlx.checkpoint.load import check_fit, stored_dtype
from csm_mlx.checkpoint.read import FLOATS, Tensor
from csm_mlx.checkpoint.save import STORED, require_replaceable
from csm_mlx.checkpoint.source import Source, open_csm, source_name
from csm_mlx.errors import CheckpointError, ConfigError
from csm_mlx.lora import LoraLinear, adapted, adapters
from csm_mlx.models.csm import CsmModel
from csm_mlx.quantize import apply_quantization, dequantized_rows, named_parameters
from csm_mlx.stored import CheckpointConfig

_QUANTIZED = (nn.QuantizedLinear, nn.QuantizedEmbedding)


def fuse_checkpoint(
    base: str | Path,
    adapter: str | Path,
    out: str | Path,
    *,
    dequantize: bool = False,
    force: bool = False,
    revision: str | None = None,
    on_tensor: OnTensor | None = None,
    on_progress: hub.Progress | None = None,
) -> ConvertReport:
    """Write `base`, a checkpoint of any layout or a repository of the Hub, with `adapter` in its weights, to `out`.

    The layers' types and bits are the base's. It is done in blocks of rows, in float32: memory stays at a few hundred
    megabytes.

    dequantize: make every quantized weight of the base a float one, so that none is rounded again.
    force: replace a checkpoint that is there.

    `out` appears at once and whole, or not at all. Raises CheckpointError, ConfigError, HubError or TokenizerError.
    """
    require_replaceable(Path(out).expanduser(), force=force)
    trained = read_adapter(adapter)
    if Path(out).expanduser().resolve() == trained.path.resolve():
        raise CheckpointError(f"{out} is the adapter itself, which replacing would lose; choose another place")
    source = open_csm(base, revision=revision, on_progress=on_progress)
    dtype = stored_dtype(source.model)
    fused = _fused(source, trained, dequantize=dequantize)
    note = f"{source_name(base)} with the adapter {trained.path.resolve().name} in its weights"
    return write_source(
        _told(fused, base, adapter=trained.path.resolve().name, training=trained.summary),
        out,
        dtype=dtype,
        card=_card(source, note),
        force=force,
        on_tensor=on_tensor,
    )


def write_full(
    out: str | Path,
    base: str | Path,
    model: CsmModel,
    *,
    dtype: mx.Dtype | None = None,
    summary: Mapping[str, Any] | None = None,
    force: bool = False,
) -> ConvertReport:
    """Write a checkpoint that is `base` but for the weights, which are those of `model`, trained whole.

    base: what `model` was loaded from. The codec, the tokenizer and the voices are copied from there.
    dtype: of the weights; None is the base's, rounding what was trained in float32.
    force: replace a checkpoint that is there.

    `out` appears at once and whole, or what was there stays. Errors as `fuse_checkpoint`, and ConfigError
    for a model that is quantized or adapted.
    """
    if adapters(model) or any(isinstance(m, _QUANTIZED) for _, m in model.named_modules()):
        raise ConfigError("the model is quantized or has an adapter, which is no whole training; write its adapter")
    source = open_csm(base)
    tensors = {name: _held(name, w) for name, w in named_parameters(model).items()}
    config = replace(source.config, quantization=None)
    trained = _told(replace(source, model=tensors, config=config), base, training=dict(summary or {}))
    return write_source(
        trained,
        out,
        dtype=dtype or stored_dtype(source.model),
        card=_card(source, f"{source_name(base)}, trained further"),
        force=force,
    )


def _held(name: str, weight: mx.array) -> Tensor:
    return Tensor(name, "memory", STORED[weight.dtype], tuple(weight.shape), lambda start, stop: weight[start:stop])


def _fused(source: Source[CheckpointConfig], adapter: Adapter, *, dequantize: bool) -> Source[CheckpointConfig]:
    """The source with tensors that become fused ones as they are read; nothing is read now but what marks the base."""
    adapter.base.require_architecture(source.config.csm, adapter.path)
    skeleton = CsmModel(source.config.csm)
    if source.config.quantization:
        apply_quantization(skeleton, source.config.quantization)
    check_fit(skeleton, source.model, "the model")
    skeleton.backbone.norm.load_weights([("weight", source.model["backbone.norm.weight"].load())])
    adapter.base.require(skeleton, adapter.path)
    layers = adapted(skeleton, adapter.config)
    set_weights(layers, adapter)
    fusing, tensors = _Fusing(source.model, skeleton, layers), dict(source.model)
    for path, module in skeleton.named_modules():
        quantized = isinstance(module, _QUANTIZED)
        if quantized and dequantize:
            for name in fusing.parts(path):
                del tensors[name]
        if path in layers or (quantized and dequantize):
            tensors |= fusing.requantized(path) if quantized and not dequantize else fusing.floats(path)
    config = replace(source.config, quantization=None) if dequantize else source.config
    return replace(source, model=tensors, config=config)


class _Fusing:
    """Rows of a model's layers with an adapter's change in them, computed when they are read."""

    def __init__(self, tensors: Mapping[str, Tensor], model: CsmModel, layers: Mapping[str, LoraLinear]):
        self._tensors, self._layers = tensors, layers
        self._modules: dict[str, Any] = dict(model.named_modules())
        self._latest: tuple[tuple[str, int, int], tuple[mx.array, ...]] | None = None
        """The rows last quantized: their weights, scales and biases are asked for one after the other."""

    def parts(self, path: str) -> dict[str, Tensor]:
        """What is stored of a layer: its weights and, where it is quantized, their scales and biases."""
        names = (f"{path}.{part}" for part in ("weight", "scales", "biases"))
        return {name: self._tensors[name] for name in names if name in self._tensors}

    def _numbers(self, path: str) -> dict[str, Any]:
        module = self._modules[path]
        return {"group_size": module.group_size, "bits": module.bits, "mode": module.mode}

    def _rows(self, path: str, start: int, stop: int) -> mx.array:
        weight, *rest = (tensor.read(start, stop) for tensor in self.parts(path).values())
        if rest:
            scales, biases = rest if len(rest) == 2 else (rest[0], None)
            weight = dequantized_rows(weight, scales, biases, **self._numbers(path))
        return self._layers[path].change(weight, start) if path in self._layers else weight

    def floats(self, path: str) -> dict[str, Tensor]:
        """The layer's weights in float32."""
        name, (n_rows, width) = f"{path}.weight", self._tensors[f"{path}.weight"].shape
        if len(self.parts(path)) > 1:
            width = width * 32 // self._modules[path].bits
        return {
            name: replace(
                self._tensors[name],
                stored=STORED[mx.float32],
                shape=(n_rows, width),
                read=lambda start, stop: self._rows(path, start, stop),
            )
        }

    def requantized(self, path: str) -> dict[str, Tensor]:
        """The layer's weights, scales and biases, quantized again as they were."""
        parts = self.parts(path)
        types = [tensor.dtype for tensor in parts.values()]

        def read(index: int, start: int, stop: int) -> mx.array:
            key = (path, start, stop)
            if self._latest is None or self._latest[0] != key:
                floats = [dtype for dtype in types if dtype in FLOATS]
                rows = self._rows(path, start, stop).astype(floats[0] if floats else mx.float32)
                made = mx.quantize(rows, **self._numbers(path))
                mx.eval(made)
                self._latest = key, tuple(x.astype(dtype) for x, dtype in zip(made, types, strict=True))
            return self._latest[1][index]

        return {name: replace(t, read=partial(read, i)) for i, (name, t) in enumerate(parts.items())}


def _told(source: Source[CheckpointConfig], base: str | Path, **more: Any) -> Source[CheckpointConfig]:
    """The source with what its config says of where it came from."""
    told = {"name": source_name(base), "layout": source.layout, "csm_mlx_version": __version__, **more}
    return replace(source, config=replace(source.config, source=told))


def _card(source: Source[CheckpointConfig], note: str) -> str | None:
    """The base's own card, under a line that says what this is; None where there is none."""
    path = source.path / files.README
    if source.layout != "own" or not path.is_file():
        return None
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"cannot read {path}: {error}; repair or remove it") from None
    line = f"> This is {note}, by csm-mlx {__version__}. What follows describes the base.\n"
    if text.startswith("---\n") and (end := text.find("\n---\n", 4)) > 0:
        return f"{text[: end + 5]}\n{line}{text[end + 5 :]}"
    return f"{line}\n{text}"
