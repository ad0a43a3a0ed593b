"""Loads a checkpoint of any layout, strictly, into a model, its codec and its tokenizer."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn

from csm_mlx.checkpoint import hub
from csm_mlx.checkpoint.adapter import apply_adapter, read_adapter
from csm_mlx.checkpoint.read import FLOATS, Tensor, is_finite, misfits, require_finite
from csm_mlx.checkpoint.source import Source, open_source
from csm_mlx.config import CheckpointConfig, CsmConfig
from csm_mlx.errors import CheckpointError, ConfigError, TokenizerError
from csm_mlx.lora import fuse_model, settle
from csm_mlx.models.csm import CsmModel
from csm_mlx.models.mimi import Mimi
from csm_mlx.quantize import apply_quantization, dequantize_model, named_parameters
from csm_mlx.tokenizer import TextTokenizer, Tokenizer

UNPACKED_BYTES = 256_000_000


@dataclass(frozen=True)
class Checkpoint:
    """All that speech needs."""

    model: CsmModel
    codec: Mimi
    tokenizer: Tokenizer
    config: CheckpointConfig
    path: Path
    """The folder it was read from, in the Hub's cache for a repository."""


def load_checkpoint(
    path_or_id: str | Path,
    *,
    revision: str | None = None,
    dtype: mx.Dtype | None = None,
    codec: str | Path | None = None,
    tokenizer: str | Path | None = None,
    unpack: bool | None = None,
    adapter: str | Path | None = None,
    on_progress: hub.Progress | None = None,
) -> Checkpoint:
    """Load a folder in any published layout, a weight file, or a repository of the Hub (`org/name`).

    dtype: of float weights; None keeps what is stored, and on the CPU, where it is fastest, takes float32. The codec
        is always float32.
    codec, tokenizer: where they are, if neither inside nor beside the model; else they are fetched.
    unpack: whether quantized weights become float ones in memory. None does so on the CPU, which multiplies floats
        several times faster, for models that then take at most `UNPACKED_BYTES`.
    adapter: a folder that a training made of this model. Float weights take it in; beside quantized ones it stays.

    Raises CheckpointError (a missing, extra, misshapen or broken tensor by name), ConfigError, HubError or
    TokenizerError.
    """
    if dtype is not None and dtype not in FLOATS:
        raise ConfigError(f"dtype is {dtype!r}, expected {', '.join(map(str, FLOATS))} or None")
    trained = None if adapter is None else read_adapter(adapter)
    source = open_source(path_or_id, revision=revision, codec=codec, tokenizer=tokenizer, on_progress=on_progress)
    if trained is not None:
        trained.base.require_architecture(source.config.csm, trained.path)
    model = CsmModel(source.config.csm)
    if source.config.quantization:
        apply_quantization(model, source.config.quantization)
    fill(model, source.model, dtype or _default_dtype(source.model), "the model")
    if source.config.quantization and (_unpacks(source.config.csm) if unpack is None else unpack):
        dequantize_model(model, model.dtype)
        mx.eval(model.parameters())
    if trained is not None:
        apply_adapter(model, trained)
        fuse_model(model, only_float=True)
        settle(model)
    return Checkpoint(model, load_codec(source), load_tokenizer(source), source.config, source.path)


def _unpacks(config: CsmConfig) -> bool:
    n_weights = sum(p.size for p in named_parameters(CsmModel(config)).values())
    return mx.default_device().type == mx.DeviceType.cpu and n_weights * mx.float32.size <= UNPACKED_BYTES


def load_tokenizer(source: Source) -> TextTokenizer:
    """The tokenizer of an opened source; `TokenizerError` when it is broken or knows more tokens than the model."""
    tokenizer = TextTokenizer.from_file(source.tokenizer)
    if tokenizer.vocab_size > source.config.csm.text_vocab_size:
        raise TokenizerError(
            f"{source.tokenizer} has {tokenizer.vocab_size} tokens, the model {source.config.csm.text_vocab_size}; "
            "give the tokenizer that the model was trained with"
        )
    return tokenizer


def load_codec(source: Source) -> Mimi:
    """The codec of an opened source alone."""
    codec = Mimi(source.config.codec)
    fill(codec, source.codec, mx.float32, "the codec")
    return codec


def _default_dtype(tensors: Mapping[str, Tensor]) -> mx.Dtype:
    """One type for all float weights: mixed ones would turn the activations into the widest."""
    return mx.float32 if mx.default_device().type == mx.DeviceType.cpu else stored_dtype(tensors)


def stored_dtype(tensors: Mapping[str, Tensor]) -> mx.Dtype:
    """The float type that a model is stored in: that of its attention weights, or of their scales."""
    stored = [t.dtype for name, t in tensors.items() if name.endswith((".scales", ".o_proj.weight"))]
    floats = [dtype for dtype in stored if dtype in FLOATS]
    return floats[0] if floats else mx.bfloat16


def fill(module: nn.Module, tensors: Mapping[str, Tensor], dtype: mx.Dtype, what: str) -> None:
    """Give `module` exactly these weights, floats as `dtype`, and evaluate them.

    `CheckpointError` names what is missing, extra, misshapen, of the wrong type or not finite.
    """
    check_fit(module, tensors, what)
    weights, finite = {}, {}
    for name, tensor in tensors.items():
        weights[name] = tensor.load()
        if tensor.dtype in FLOATS:
            finite[name] = is_finite(weights[name])
            weights[name] = weights[name].astype(dtype)
        mx.eval(weights[name], finite.get(name, []))
    for name, good in finite.items():
        if not good.item():
            tensor = tensors[name]
            require_finite(tensor.name, tensor.file, tensor.load())
    module.load_weights(list(weights.items()))
    module.eval()


def check_fit(module: nn.Module, tensors: Mapping[str, Tensor], what: str) -> None:
    """`CheckpointError` unless the tensors are those of `module`, in name, shape and kind of type."""
    expected = {name: (p.shape, p.dtype) for name, p in named_parameters(module).items()}
    if problems := misfits({name: shape for name, (shape, _) in expected.items()}, tensors):
        raise CheckpointError(
            f"the weights do not fit {what} of config.json: {problems}; fetch both again, from the same place"
        )
    for name, (_, dtype) in expected.items():
        tensor = tensors[name]
        if dtype in FLOATS:
            tensor.require_float()
        elif tensor.dtype != dtype:
            raise CheckpointError(
                f"{tensor.name!r} in {tensor.file} is stored as {tensor.stored}, expected "
                f"{'U32, packed quantized weights' if dtype == mx.uint32 else 'U8, the scales of this mode'}"
            )
