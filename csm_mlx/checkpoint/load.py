"""Loads a checkpoint of any layout, strictly, into a model, its codec and its tokenizer."""

import ctypes
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Literal, cast

import mlx.core as mx
import mlx.nn as nn

from csm_mlx.checkpoint import hub, kernels, later
from csm_mlx.checkpoint.adapter import apply_adapter, read_adapter
from csm_mlx.checkpoint.read import FLOATS, Tensor, is_finite, misfits, require_finite
from csm_mlx.checkpoint.source import Source, open_csm, open_moshi
from csm_mlx.errors import CheckpointError, ConfigError, TokenizerError
from csm_mlx.lora import fuse_model, settle
from csm_mlx.models.csm import CsmModel
from csm_mlx.models.loaded import Loaded
from csm_mlx.models.mimi import Mimi
from csm_mlx.models.moshi import MoshiModel
from csm_mlx.nn.layout import on_cpu
from csm_mlx.quantize import apply_quantization, dequantize_model, named_parameters
from csm_mlx.stored import AnyConfig, CheckpointConfig, MoshiCheckpointConfig
from csm_mlx.tokenizer import SpmTokenizer, TextTokenizer

UNPACKED_BYTES = 256_000_000
ON_DISK_BYTES = 64_000_000
"""A quantized table of text embeddings of at least this size stays in its file: of csm-1b's 279 MB a conversation
looks up a few."""
KEPT_BYTES = 128_000_000
"""Of buffers that MLX keeps for the next call on a CPU. By default it keeps 32 MB: Mimi, over sound of some seconds,
then takes each of its buffers anew from the system, a tenth of its time."""
_ENCODER = ("encoder", "encoder_transformer", "downsample")
"""Parts of the codec that only encoding needs, 155 of Mimi's 384 MB: read when sound is first encoded."""


Checkpoint = Loaded[CsmModel, TextTokenizer, CheckpointConfig]
"""All that speech needs."""
MoshiCheckpoint = Loaded[MoshiModel, SpmTokenizer, MoshiCheckpointConfig]
"""All that listening, or listening and speaking at once, needs."""


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
    on_note: Callable[[str], None] | None = None,
) -> Checkpoint:
    """Load a folder in any published layout, a weight file, or a repository of the Hub (`org/name`).

    dtype: of float weights; None keeps what is stored, and on the CPU, where it is fastest, takes float32. The codec
        is always float32.
    codec, tokenizer: where they are, if neither inside nor beside the model; else they are fetched.
    unpack: whether quantized weights become float ones in memory. None does so on the CPU, which multiplies floats
        several times faster, for models that then take at most `UNPACKED_BYTES`.
    adapter: a folder that a training made of this model. Float weights take it in; beside quantized ones it stays.
    on_note: called with what the user should know of how the weights are held.

    Raises CheckpointError (a missing, extra, misshapen or broken tensor by name), ConfigError, HubError or
    TokenizerError.
    """
    trained = None if adapter is None else read_adapter(adapter)
    source = open_csm(path_or_id, revision=revision, codec=codec, tokenizer=tokenizer, on_progress=on_progress)
    if trained is not None:
        trained.base.require_architecture(source.config.csm, trained.path)
    model = CsmModel(source.config.csm)
    _fill_model(model, source, dtype, unpack, on_note)
    if trained is not None:
        apply_adapter(model, trained)
        fuse_model(model, only_float=True)
        settle(model)
    checkpoint = Checkpoint(model, load_codec(source), load_tokenizer(source), source.config, source.path)
    give_back_memory()
    return checkpoint


def load_moshi_checkpoint(
    path_or_id: str | Path,
    kind: Literal["stt", "moshi"],
    *,
    revision: str | None = None,
    dtype: mx.Dtype | None = None,
    codec: str | Path | None = None,
    tokenizer: str | Path | None = None,
    unpack: bool | None = None,
    on_progress: hub.Progress | None = None,
    on_note: Callable[[str], None] | None = None,
) -> MoshiCheckpoint:
    """As `load_checkpoint`, for a language model of Kyutai's that is of one kind; `tokenizer` is a sentencepiece
    model."""
    source = open_moshi(path_or_id, kind, revision=revision, codec=codec, tokenizer=tokenizer, on_progress=on_progress)
    model = MoshiModel(source.config.moshi)
    _fill_model(model, source, dtype, unpack, on_note)
    checkpoint = MoshiCheckpoint(model, load_codec(source), load_spm(source), source.config, source.path)
    give_back_memory()
    return checkpoint


def make_model(config: AnyConfig) -> CsmModel | MoshiModel:
    """The model of a checkpoint, its weights yet to come; arrays that are never computed cost nothing."""
    return CsmModel(config.csm) if isinstance(config, CheckpointConfig) else MoshiModel(config.moshi)


def _fill_model(
    model: CsmModel | MoshiModel,
    source: Source[AnyConfig],
    dtype: mx.Dtype | None,
    unpack: bool | None,
    on_note: Callable[[str], None] | None,
) -> None:
    """Gives a model its weights, in the types and the places in which this device takes them."""
    if dtype is not None and dtype not in FLOATS:
        raise ConfigError(f"dtype is {dtype!r}, expected {', '.join(map(str, FLOATS))} or None")
    quantization = source.config.quantization
    unpack = bool(quantization) and (_unpacks(model) if unpack is None else unpack)
    if quantization:
        apply_quantization(model, quantization)
    dtype = dtype or default_dtype(source.model)
    on_disk = _text_table(model, source.model) if isinstance(model, CsmModel) and not unpack else []
    fill(model, source.model, dtype, "the model", on_disk)
    if on_disk and isinstance(model.text_embeddings, nn.QuantizedEmbedding):
        tensors = {name.rpartition(".")[2]: source.model[name] for name in on_disk}
        model.update_modules({"text_embeddings": later.EmbeddingOnDisk(model.text_embeddings, tensors, dtype)})
    if unpack:
        dequantize_model(model, model.dtype)
        mx.eval(model.parameters())
    elif quantization and kernels.may_lack():
        _mend(model, on_note)


def _keep_buffers() -> None:
    """See `KEPT_BYTES`; who has allowed for more keeps that."""
    if on_cpu() and (allowed := mx.set_cache_limit(KEPT_BYTES)) > KEPT_BYTES:
        mx.set_cache_limit(allowed)


def give_back_memory() -> None:
    """Returns to the system what was freed and kept for later use: after loading, nothing as large comes again."""
    mx.clear_cache()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's alone: others return it by themselves
    if trim is not None:
        trim(0)


def _unpacks(model: CsmModel | MoshiModel) -> bool:
    """Whether a float model is small enough to be computed as one, though it is stored quantized."""
    n_weights = sum(p.size for p in named_parameters(model).values())
    return on_cpu() and n_weights * mx.float32.size <= UNPACKED_BYTES


def load_tokenizer(source: Source[CheckpointConfig]) -> TextTokenizer:
    """The tokenizer of an opened source; `TokenizerError` when it is broken or knows more tokens than the model."""
    tokenizer = TextTokenizer.from_file(source.tokenizer)
    if tokenizer.vocab_size > source.config.csm.text_vocab_size:
        raise TokenizerError(
            f"{source.tokenizer} has {tokenizer.vocab_size} tokens, the model {source.config.csm.text_vocab_size}; "
            "give the tokenizer that the model was trained with"
        )
    return tokenizer


def load_spm(source: Source[MoshiCheckpointConfig]) -> SpmTokenizer:
    """The sentencepiece model of an opened source; `TokenizerError` when it is broken or is another model's."""
    tokenizer, n_ids = SpmTokenizer.from_file(source.tokenizer), source.config.moshi.text_head_size
    if tokenizer.vocab_size > n_ids:
        raise TokenizerError(
            f"{source.tokenizer} has {tokenizer.vocab_size} pieces, the model says {n_ids}; "
            "give the sentencepiece model that it was trained with"
        )
    return tokenizer


def check_tokenizer(source: Source[AnyConfig]) -> None:
    """`TokenizerError` unless the tokenizer of an opened source is its model's."""
    if isinstance(source.config, MoshiCheckpointConfig):
        load_spm(cast("Source[MoshiCheckpointConfig]", source))
    else:
        load_tokenizer(cast("Source[CheckpointConfig]", source))


def load_codec(source: Source[AnyConfig]) -> Mimi:
    """The codec of an opened source alone."""
    codec = Mimi(source.config.codec)
    unread = [n for n, t in source.codec.items() if n.partition(".")[0] in _ENCODER and later.is_stored(t)]
    fill(codec, source.codec, mx.float32, "the codec", unread)
    _keep_buffers()
    return codec


def _text_table(model: CsmModel, tensors: Mapping[str, Tensor]) -> list[str]:
    """Names of the tensors of a text table that is better left on the disk; none of another."""
    names = [name for name in tensors if name.startswith("text_embeddings.")]
    n_bytes = sum(tensors[name].n_bytes for name in names)
    packed = isinstance(model.text_embeddings, nn.QuantizedEmbedding)
    return names if packed and n_bytes >= ON_DISK_BYTES and all(later.is_stored(tensors[n]) for n in names) else []


def _mend(model: CsmModel | MoshiModel, on_note: Callable[[str], None] | None) -> None:
    """Makes float the quantized layers that this device cannot multiply with."""
    if lacking := kernels.lacking(model):
        dequantize_model(model, model.dtype, lacking)
        mx.eval(model.parameters())
        if on_note is not None:
            on_note(
                f"{len(lacking)} quantized layers have a shape that MLX cannot multiply on this device; they are held "
                f"in memory as {str(model.dtype).rpartition('.')[2]}: {', '.join(lacking[:3])}"
                + (", …" if len(lacking) > 3 else "")
            )


def default_dtype(tensors: Mapping[str, Tensor]) -> mx.Dtype:
    """One type for all float weights: mixed ones would turn the activations into the widest."""
    return mx.float32 if on_cpu() else stored_dtype(tensors)


def stored_dtype(tensors: Mapping[str, Tensor]) -> mx.Dtype:
    """The float type that a model is stored in: that of its attention weights, or of their scales."""
    stored = [t.dtype for name, t in tensors.items() if name.endswith((".scales", ".o_proj.weight"))]
    floats = [dtype for dtype in stored if dtype in FLOATS]
    return floats[0] if floats else mx.bfloat16


def fill(
    module: nn.Module, tensors: Mapping[str, Tensor], dtype: mx.Dtype, what: str, unread: Collection[str] = ()
) -> None:
    """Give `module` exactly these weights, floats as `dtype`, and evaluate them but for the stored ones `unread`.

    `CheckpointError` names what is missing, extra, misshapen, of the wrong type or not finite.
    """
    check_fit(module, tensors, what)
    weights, finite = {}, {}
    for name, tensor in tensors.items():
        if name in unread:
            later.check_finite(tensor)
            continue
        weights[name] = tensor.load()
        if tensor.dtype in FLOATS:
            finite[name] = is_finite(weights[name])
            weights[name] = weights[name].astype(dtype)
        mx.eval(weights[name], finite.get(name, []))
    for name, good in finite.items():
        if not good.item():
            tensor = tensors[name]
            require_finite(tensor.name, tensor.file, tensor.load())
    for name, array in later.unread({name: tensors[name] for name in unread}).items():
        weights[name] = array.astype(dtype) if array.dtype in FLOATS else array
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
