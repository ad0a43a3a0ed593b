"""Adapters on disk: a folder of `adapter_config.json` and `adapters.safetensors`, written whole, read strictly."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from csm_mlx import __version__
from csm_mlx.checkpoint import files
from csm_mlx.checkpoint.read import Tensor, misfits, read_tensors, require_finite
from csm_mlx.checkpoint.save import AtomicFolder, SafetensorsWriter, require_space, write_json
from csm_mlx.checkpoint.source import read_json
from csm_mlx.config import CsmConfig
from csm_mlx.errors import CheckpointError, ConfigError
from csm_mlx.lora import AdapterConfig, adapter_parameters, adapter_shapes, adapters, attach
from csm_mlx.models.csm import CsmModel
from csm_mlx.strict import Strict

FORMAT_VERSION = 1
_N_MARKS = 16
_ANY = frozenset({"max_positions", "speaker_format"})
"""Of `CsmConfig`: what no weight depends on."""


@dataclass(frozen=True, kw_only=True)
class AdapterBase(Strict):
    """What an adapter was trained on."""

    name: str
    """As it can be loaded again: a repository's id or a folder's name."""
    csm: CsmConfig
    marks: tuple[float, ...]
    """The first weights of the backbone's last norm, which no quantization touches: whether two bases of one
    architecture are the same."""

    @classmethod
    def of(cls, model: CsmModel, name: str) -> "AdapterBase":
        return cls(name=name, csm=model.config, marks=_marks(model))

    def require(self, model: CsmModel, where: Path) -> None:
        """`CheckpointError` unless `model` is the base, quantized or not."""
        self.require_architecture(model.config, where)
        found = _marks(model)
        if not np.allclose(found, self.marks, rtol=0.02, atol=1e-3):  # float16 and bfloat16 round
            raise CheckpointError(
                f"{where} was trained on {self.name}, and this model has its dimensions but other weights; "
                f"give {self.name} as the model, or train the adapter again"
            )

    def require_architecture(self, config: CsmConfig, where: Path) -> None:
        """`CheckpointError` names the first dimension that differs."""
        mine, given = _flat(self.csm.to_dict()), _flat(config.to_dict())
        for name in sorted(mine.keys() | given.keys()):
            if mine.get(name) != given.get(name) and name not in _ANY:
                raise CheckpointError(
                    f"{where} was trained on {self.name} with {name} {mine.get(name)}, this model has "
                    f"{given.get(name)}; give {self.name} as the model"
                )


def _marks(model: CsmModel) -> tuple[float, ...]:
    return tuple(model.backbone.norm["weight"][:_N_MARKS].astype(mx.float32).tolist())


def _flat(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for name, value in data.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat


@dataclass(frozen=True, kw_only=True)
class _File(Strict):
    """`adapter_config.json`."""

    format_version: int = FORMAT_VERSION
    csm_mlx_version: str
    adapter: AdapterConfig
    base: AdapterBase
    summary: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False, kw_only=True)
class Adapter:
    """An adapter as read."""

    path: Path
    config: AdapterConfig
    base: AdapterBase
    summary: dict[str, Any]
    """What the training said of itself. Read by nobody but people."""
    weights: dict[str, mx.array]
    """By the names of `csm_mlx.lora.adapter_parameters`."""


def write_adapter(
    folder: str | Path,
    model: CsmModel,
    config: AdapterConfig,
    *,
    base: str,
    summary: Mapping[str, Any] | None = None,
    force: bool = False,
) -> None:
    """Write the adapter of `model`, which `config` was attached as, in float32.

    base: the name of what it was trained on; a repository's id, or a folder's name without the folders above it.
    force: replace an adapter or checkpoint that is there.

    The folder appears at once and whole, or what was there stays. `CheckpointError` when the disk refuses or the
    adapter is not finite, `ConfigError` when the model has another adapter or none.
    """
    weights = adapter_parameters(model)
    shapes = {name: tuple(w.shape) for name, w in weights.items()}
    if shapes != adapter_shapes(model, config):
        raise ConfigError("the model's adapter is not the one described, or it has none; give what was attached")
    folder = Path(folder).expanduser()
    n_bytes = sum(w.size * mx.float32.size for w in weights.values())
    require_space(folder, n_bytes + (1 << 16))
    file = _File(
        csm_mlx_version=__version__, adapter=config, base=AdapterBase.of(model, base), summary=dict(summary or {})
    )
    with AtomicFolder(folder, force=force) as new:
        specs = {name: (mx.float32, shape) for name, shape in shapes.items()}
        with SafetensorsWriter(new / files.ADAPTER_WEIGHTS, specs) as writer:
            for name, weight in weights.items():
                rows = weight.astype(mx.float32)
                require_finite(name, files.ADAPTER_WEIGHTS, rows)
                writer.write_rows(name, 0, rows)
        write_json(new / files.ADAPTER_CONFIG, file.to_dict())


def read_adapter(folder: str | Path) -> Adapter:
    """Read an adapter whole: it is small.

    `CheckpointError` when it is none, or names the tensors that are missing, extra, misshapen or not finite;
    `ConfigError` for a config that is not as this version writes it.
    """
    folder = Path(folder).expanduser()
    file = _read_config(folder)
    path = folder / files.ADAPTER_WEIGHTS
    if not path.is_file():
        raise CheckpointError(f"{folder} lacks {files.ADAPTER_WEIGHTS}; copy the whole folder again")
    tensors = read_tensors(path)
    _require_fit(folder, tensors, adapter_shapes(CsmModel(file.base.csm), file.adapter))
    weights = {}
    for name, tensor in tensors.items():
        tensor.require_float()
        weights[name] = tensor.load()
        require_finite(name, path.name, weights[name])
    return Adapter(path=folder, config=file.adapter, base=file.base, summary=file.summary, weights=weights)


def _read_config(folder: Path) -> _File:
    path = folder / files.ADAPTER_CONFIG
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is no folder; give the folder of an adapter, as csm train makes it")
    if not path.is_file():
        whole = (folder / files.CONFIG).is_file()
        told = "it is a whole checkpoint: give it as the model" if whole else "give what csm train made"
        raise CheckpointError(f"{folder} is no adapter, it holds no {files.ADAPTER_CONFIG}; {told}")
    data = read_json(path)
    version = data.get("format_version")
    if version is None:
        raise CheckpointError(
            f"{folder} is no adapter of csm-mlx: {path.name} states no format_version; give one that csm train made"
        )
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has format_version {version!r}, this csm-mlx reads {FORMAT_VERSION}; update csm-mlx"
        )
    return _File.from_dict(data, str(path))


def _require_fit(folder: Path, tensors: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> None:
    if problems := misfits(shapes, tensors):
        raise CheckpointError(
            f"{folder / files.ADAPTER_WEIGHTS} does not fit {files.ADAPTER_CONFIG}: {problems}; "
            "copy both again, from the same training"
        )


def apply_adapter(model: CsmModel, adapter: Adapter) -> None:
    """Attach an adapter as it was trained, in place. `CheckpointError` when the model is not its base."""
    adapter.base.require(model, adapter.path)
    attach(model, adapter.config)
    set_weights(adapters(model), adapter)


def set_weights(layers: Mapping[str, Any], adapter: Adapter) -> None:
    """Give adapted layers, by path, an adapter's weights."""
    for name, weight in adapter.weights.items():
        path, _, part = name.rpartition(".")
        layers[path][part] = weight.astype(mx.float32)
