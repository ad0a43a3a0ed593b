"""Converts a checkpoint of any layout to our own, quantized on the way if asked.

Tensors are read, cast, quantized and written in blocks of rows: memory stays at a few hundred megabytes, whatever the
model's size, where a 3 GB embedding table would otherwise be held three times.
"""

import math
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import mlx.core as mx
import mlx.nn as nn

from csm_mlx.checkpoint import files, hub, prompts
from csm_mlx.checkpoint.load import check_fit, check_tokenizer, make_model
from csm_mlx.checkpoint.read import FLOATS, Tensor, is_finite, require_finite
from csm_mlx.checkpoint.save import (
    AtomicFolder,
    SafetensorsWriter,
    copy_file,
    require_replaceable,
    require_space,
    write_json,
    write_text,
)
from csm_mlx.checkpoint.source import Source, kind_of, open_source
from csm_mlx.errors import CheckpointError, ConfigError, QuantizationError
from csm_mlx.models.mimi import Mimi
from csm_mlx.quantize import Quantization, apply_quantization, named_parameters, plan
from csm_mlx.stored import AnyConfig

DTYPES = {"bfloat16": mx.bfloat16, "float16": mx.float16, "float32": mx.float32}
_CONFIG_BYTES = 1 << 20
"""Room that is asked for beside the weights: config and rounding."""

OnTensor = Callable[[str, int, int], None]
"""Called with (name of the tensor just written, tensors so far, tensors in all)."""


@dataclass(frozen=True, kw_only=True)
class ConvertReport:
    """What a conversion made and what it took."""

    out: Path
    kind: str
    """csm, stt or moshi."""
    layout: str
    """Of the source: own, transformers, torchtune, llama, kyutai or kyutai-slices."""
    dtype: str
    """Of float weights and scales."""
    quantization: str | None
    source_bytes: int
    """Of the source's tensors as stored, the codec's included."""
    model_bytes: int
    codec_bytes: int
    n_weights: int
    """Of the model without its codec."""
    bits_per_weight: float
    """Of the model without its codec, scales included."""
    peak_memory_bytes: int
    """The most that this process has held so far."""
    seconds: float
    voices: tuple[str, ...]
    notes: tuple[str, ...]
    """What a user should know: layers left float, clips skipped."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-like data."""
        return asdict(self) | {"out": str(self.out), "voices": list(self.voices), "notes": list(self.notes)}


def convert(
    source: str | Path,
    out: str | Path,
    *,
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16",
    quantization: Quantization | None = None,
    revision: str | None = None,
    codec: str | Path | None = None,
    tokenizer: str | Path | None = None,
    force: bool = False,
    notice: str | None = None,
    on_tensor: OnTensor | None = None,
    on_progress: hub.Progress | None = None,
) -> ConvertReport:
    """Write `source`, a folder of any layout or a repository of the Hub, to the folder `out` in our own layout.

    dtype: of the model's float weights, and what is quantized from. A source that is quantized keeps its own, as the
        codec does.
    codec, tokenizer: where they are, if neither inside nor beside the model; else they are fetched. Kyutai's language
        models have a sentencepiece model for tokenizer.
    force: replace a checkpoint that is there.
    notice: one line that is said wherever this checkpoint speaks.

    `out` appears at once and whole, or not at all. Raises CheckpointError, ConfigError, HubError, TokenizerError or
    QuantizationError.
    """
    start_s = time.perf_counter()
    if dtype not in DTYPES:
        raise ConfigError(f"dtype is {dtype!r}, expected one of {', '.join(DTYPES)}")
    require_replaceable(Path(out).expanduser(), force=force)
    opened = open_source(source, revision=revision, codec=codec, tokenizer=tokenizer, on_progress=on_progress)
    if notice:
        opened = replace(opened, config=replace(opened.config, notice=notice))
    report = write_source(opened, out, dtype=DTYPES[dtype], quantization=quantization, force=force, on_tensor=on_tensor)
    return replace(report, seconds=time.perf_counter() - start_s)


def write_source(
    opened: Source[AnyConfig],
    out: str | Path,
    *,
    dtype: mx.Dtype,
    quantization: Quantization | None = None,
    card: str | None = None,
    force: bool = False,
    on_tensor: OnTensor | None = None,
) -> ConvertReport:
    """Write an opened source to `out` in our own layout, as `convert` does; `card` becomes its README."""
    start_s = time.perf_counter()
    out = Path(out).expanduser()
    atomic = AtomicFolder(out, force=force)
    if out.exists() and out.resolve() == opened.path.resolve():
        raise CheckpointError(f"{out} is the source itself, which replacing would lose; choose another place")
    check_tokenizer(opened)
    model = _plan_model(opened, dtype, quantization)
    codec_plan = _plan_codec(opened)
    writes = model.writes + codec_plan
    require_space(out, sum(write.n_bytes for write in writes) + _CONFIG_BYTES)
    count = _Counter(len(writes), on_tensor)
    with atomic as folder:
        model_bytes = _write(folder / files.MODEL, model.writes, count)
        codec_bytes = _write(folder / files.CODEC, codec_plan, count)
        copy_file(opened.tokenizer, folder / (files.TOKENIZER if opened.config.model_type == "csm" else files.SPM))
        voices, skipped = prompts.store_voices(opened, folder)
        if card is not None:
            write_text(folder / files.README, card)
        write_json(folder / files.CONFIG, replace(opened.config, quantization=model.quantization).to_dict())
    n_weights = sum(w.n_weights for w in model.writes)
    return ConvertReport(
        out=out,
        kind=kind_of(opened.config),
        layout=opened.layout,
        dtype=_name(model.dtype),
        quantization=model.label,
        source_bytes=sum(t.n_bytes for t in (*opened.model.values(), *opened.codec.values())),
        model_bytes=model_bytes,
        codec_bytes=codec_bytes,
        n_weights=n_weights,
        bits_per_weight=8 * sum(w.n_bytes for w in model.writes) / n_weights,
        peak_memory_bytes=peak_memory_bytes(),
        seconds=time.perf_counter() - start_s,
        voices=tuple(voices),
        notes=(*model.notes, *skipped),
    )


def _name(dtype: mx.Dtype) -> str:
    return next(name for name, known in DTYPES.items() if known == dtype)


def peak_memory_bytes() -> int:
    """The most memory that this process has held since it began, whether or not all of it was ever touched."""
    return max(peak_resident_bytes(), mx.get_peak_memory())


def peak_resident_bytes() -> int:
    """The most that was resident.

    Not what `getrusage` says on Linux: there a process begins with what the one that started it had held.
    """
    status = Path("/proc/self/status")
    if status.exists():
        return 1024 * int(next(line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmHWM")))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


@dataclass(frozen=True)
class _Write:
    """One tensor to be written: as it is, cast, or quantized into its packed weights, scales and biases."""

    name: str
    tensor: Tensor
    dtype: mx.Dtype
    """Of the tensor itself, and of the scales of a quantized one."""
    parts: dict[str, tuple[mx.Dtype, tuple[int, ...]]]
    """What goes into the file."""
    quantization: dict[str, Any] | None
    n_weights: int

    @property
    def n_bytes(self) -> int:
        return sum(dtype.size * math.prod(shape) for dtype, shape in self.parts.values())


@dataclass(frozen=True)
class _ModelPlan:
    writes: list[_Write]
    dtype: mx.Dtype
    quantization: dict[str, Any] | None
    label: str | None
    notes: list[str]


def _plan_model(source: Source[AnyConfig], dtype: mx.Dtype, quantization: Quantization | None) -> _ModelPlan:
    """Which tensors of what type and shape; the arrays of the models made here are never evaluated."""
    given, skeleton, notes = source.config.quantization, make_model(source.config), []
    if given and quantization:
        raise QuantizationError(
            f"{source.path} is quantized already ({given['bits']} bits); quantize its float original"
        )
    if given:
        apply_quantization(skeleton, given)
        check_fit(skeleton, source.model, "the model")
        scales = [t.dtype for name, t in source.model.items() if name.endswith(".scales")]
        dtype = next((d for d in scales if d in FLOATS), dtype)
        return _ModelPlan(
            _pass_through(skeleton, source, dtype), dtype, given, f"{given['bits']} bits, as it was", notes
        )
    check_fit(skeleton, source.model, "the model")
    if quantization is None:
        return _ModelPlan(
            [_plain(name, t, dtype) for name, t in sorted(source.model.items())], dtype, None, None, notes
        )
    config, notes = plan(skeleton, quantization)
    apply_quantization(skeleton, config)
    parts = {name: (p.dtype, p.shape) for name, p in named_parameters(skeleton).items()}
    layers = dict(skeleton.named_modules())
    writes = []
    for name, tensor in sorted(source.model.items()):
        path = name.removesuffix(".weight")
        if f"{path}.scales" not in parts:
            writes.append(_plain(name, tensor, dtype))
            continue
        layer, mine = layers[path], {}
        for part in ("weight", "scales", "biases"):
            if (spec := parts.get(f"{path}.{part}")) is not None:
                mine[f"{path}.{part}"] = (dtype if spec[0] in FLOATS else spec[0], spec[1])
        numbers = {"group_size": layer.group_size, "bits": layer.bits, "mode": layer.mode}
        writes.append(_Write(name, tensor, dtype, mine, numbers, math.prod(tensor.shape)))
    return _ModelPlan(writes, dtype, config, quantization.name, notes)


def _plain(name: str, tensor: Tensor, dtype: mx.Dtype) -> _Write:
    return _Write(name, tensor, dtype, {name: (dtype, tensor.shape)}, None, math.prod(tensor.shape))


def _pass_through(skeleton: nn.Module, source: Source[AnyConfig], dtype: mx.Dtype) -> list[_Write]:
    """A quantized model as it is: packed weights and scales untouched, other floats in the scales' type."""
    layers, writes = dict(skeleton.named_modules()), []
    for name, tensor in sorted(source.model.items()):
        path, _, part = name.rpartition(".")
        packed = hasattr(layers.get(path), "scales")
        kept = tensor.dtype if packed and part in ("weight", "scales", "biases") else dtype
        n_weights = math.prod(tensor.shape)
        if packed:
            n_weights = n_weights * 32 // layers[path].bits if part == "weight" else 0
        writes.append(_Write(name, tensor, kept, {name: (kept, tensor.shape)}, None, n_weights))
    return writes


def _plan_codec(source: Source[AnyConfig]) -> list[_Write]:
    """The codec in the types it came in: widening them to float32 when loading loses nothing and spares disk."""
    check_fit(Mimi(source.config.codec), source.codec, "the codec")
    return [_plain(name, tensor, tensor.dtype) for name, tensor in sorted(source.codec.items())]


class _Counter:
    def __init__(self, total: int, on_tensor: OnTensor | None):
        self._done, self._total, self._on_tensor = 0, total, on_tensor

    def __call__(self, name: str) -> None:
        self._done += 1
        if self._on_tensor is not None:
            self._on_tensor(name, self._done, self._total)


def _write(path: Path, writes: list[_Write], count: _Counter) -> int:
    """All tensors into one file; returns its size in bytes."""
    specs = dict(sorted((name, spec) for write in writes for name, spec in write.parts.items()))
    with SafetensorsWriter(path, specs) as writer:
        for write in writes:
            for first, rows in write.tensor.blocks():
                for name, block in _changed(write, rows).items():
                    writer.write_rows(name, first, block)
                mx.clear_cache()  # or blocks of every size would stay with the allocator
            count(write.name)
    return writer.n_bytes


def _changed(write: _Write, rows: mx.array) -> dict[str, mx.array]:
    """Rows of one tensor as they go into the file, by name; `CheckpointError` for NaN and for what does not fit."""
    if rows.dtype not in FLOATS:
        return {write.name: rows}
    require_finite(write.tensor.name, write.tensor.file, rows)
    cast = rows.astype(write.dtype)
    if write.dtype == mx.float16 and not is_finite(cast).item():
        raise CheckpointError(
            f"{write.tensor.name!r} in {write.tensor.file} holds {mx.abs(rows).max().item():g}, "
            "which float16 cannot; convert to bfloat16 or float32"
        )
    if write.quantization is None:
        return {write.name: cast}
    quantized = mx.quantize(cast, **write.quantization)
    path = write.name.removesuffix(".weight")
    return {f"{path}.{part}": x for part, x in zip(("weight", "scales", "biases"), quantized, strict=False)}
