"""The checkpoints of this machine, how large they are, and what the known models would take."""

import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

from csm_mlx.checkpoint import files
from csm_mlx.checkpoint.detect import csm_layout, moshi_layout
from csm_mlx.checkpoint.read import Tensor, read_tensors
from csm_mlx.checkpoint.source import kind_of
from csm_mlx.errors import CsmError
from csm_mlx.nn.layout import on_cpu
from csm_mlx.stored import AnyConfig, CheckpointConfig, any_preset, preset_names, read_config
from csm_mlx_app import places

WORKSPACE_BYTES = 500_000_000
"""What a session needs beside weights and cache: MLX, activations, the codec's states."""
_CACHE_NUMBER_BYTES = 2
"""Per number in the key and value cache: float16 or bfloat16."""


@dataclass(frozen=True, kw_only=True)
class Known:
    """A model in one set of weights."""

    name: str
    """What `--model` takes, or a preset's name."""
    kind: str
    """csm, which speaks; stt, which transcribes; or moshi, which does both at once."""
    weights: str
    """Such as `bfloat16`, `4 bit` or `q4`."""
    size_bytes: int
    """On disk, without the hub's other files."""
    memory_bytes: int
    """Needed to use it."""

    def to_dict(self) -> dict[str, Any]:
        return {name: str(value) if isinstance(value, Path) else value for name, value in asdict(self).items()}


@dataclass(frozen=True, kw_only=True)
class Found(Known):
    """A checkpoint on this machine."""

    where: str
    """embedded, CSM_MODEL, weights or hub cache."""
    path: Path


def find_checkpoints() -> tuple[list[Found], list[str]]:
    """What is here, and one line for each that looks like a checkpoint and cannot be read."""
    found: dict[Path, Found] = {}
    broken = []
    for name, where, path in _candidates():
        if path.resolve() in found:
            continue
        try:
            checkpoint = describe(name, where, path)
        except CsmError as error:
            broken.append(f"{path}: {error}")
            continue
        if checkpoint is not None:
            found[path.resolve()] = checkpoint
    return list(found.values()), broken


def _candidates() -> Iterator[tuple[str, str, Path]]:
    import csm_mlx

    embedded = csm_mlx.default_checkpoint()
    if embedded.is_dir():
        yield embedded.name, "embedded", embedded
    if (named := os.environ.get("CSM_MODEL")) and Path(named).is_dir():
        yield named, "CSM_MODEL", Path(named)
    for folder in sorted(places.weights().glob("*/")):
        yield folder.name, "weights", folder
    yield from _cached()


def _cached() -> Iterator[tuple[str, str, Path]]:
    """Snapshots in the hub's cache, newest of each repository."""
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        repos = scan_cache_dir().repos
    except CacheNotFound:
        return
    for repo in sorted(repos, key=lambda repo: repo.repo_id):
        if repo.repo_type == "model" and repo.revisions:
            newest = max(repo.revisions, key=lambda revision: revision.last_modified)
            yield repo.repo_id, "hub cache", newest.snapshot_path


def describe(name: str, where: str, path: Path) -> Found | None:
    """What a folder holds; None where that is no model. `CsmError` for one that cannot be read."""
    tensors = {n: t for file in files.weight_files(path) for n, t in read_tensors(file).items()}
    csm, moshi = csm_layout(tensors), moshi_layout(tensors)
    layout = csm or moshi
    if layout is None:
        return None
    cache = 0
    if layout == "own":
        config = read_config(path / files.CONFIG)
        weights = f"{config.quantization['bits']} bit" if config.quantization else _most_stored(tensors)
        cache, kind = _cache_bytes(config), kind_of(config)
    else:
        weights = f"{_most_stored(tensors)}, {layout} layout"
        kind = "csm" if csm else "moshi" if any(name.startswith("depformer") for name in tensors) else "stt"
    return Found(
        name=name,
        kind=kind,
        where=where,
        path=path,
        weights=weights,
        size_bytes=sum(file.stat().st_size for file in files.weight_files(path)),
        memory_bytes=sum(map(_loaded_bytes, tensors.values())) + cache + WORKSPACE_BYTES,
    )


def _most_stored(tensors: Mapping[str, Tensor]) -> str:
    n_bytes: Counter[str] = Counter()
    for tensor in tensors.values():
        n_bytes[str(tensor.dtype).removeprefix("mlx.core.")] += math.prod(tensor.shape) * tensor.dtype.size
    return n_bytes.most_common(1)[0][0]


def _loaded_bytes(tensor: Tensor) -> int:
    """On the CPU 16-bit floats become float32, its fastest type."""
    is_half = tensor.dtype in (mx.float16, mx.bfloat16)
    widened = is_half and on_cpu()
    return math.prod(tensor.shape) * (4 if widened else tensor.dtype.size)


def _cache_bytes(config: AnyConfig) -> int:
    """Of a session that has reached its most positions."""
    is_csm = isinstance(config, CheckpointConfig)
    stack = config.csm.backbone if is_csm else config.moshi.temporal
    n_positions = config.csm.max_positions if is_csm else stack.window or 0
    return n_positions * stack.n_layers * stack.n_kv_heads * stack.head_dim * 2 * _CACHE_NUMBER_BYTES


def known_models() -> list[Known]:
    """The presets, as stored by `csm convert`, smallest first within each."""
    import csm_mlx

    embedded = csm_mlx.default_checkpoint().name
    return [known for name in preset_names() if name != embedded for known in _sizes(name)]


def _sizes(name: str) -> Iterator[Known]:
    """A preset in each of the weights that people use, of models that are never computed."""
    from csm_mlx.checkpoint.load import make_model
    from csm_mlx.models.mimi import Mimi
    from csm_mlx.quantize import Quantization, named_parameters, stored_bytes

    config = any_preset(name)
    model = make_model(config)
    model.set_dtype(mx.bfloat16)
    codec_bytes = sum(array.nbytes for array in named_parameters(Mimi(config.codec)).values())
    for recipe in ("q4", "q8", None):
        size = codec_bytes + stored_bytes(model, None if recipe is None else Quantization(recipe=recipe))
        memory = size + _cache_bytes(config) + WORKSPACE_BYTES
        weights = recipe or "bfloat16"
        yield Known(name=name, kind=kind_of(config), weights=weights, size_bytes=size, memory_bytes=memory)
