"""A training at one moment, on disk: one file that is replaced whole, so that no kill and no full disk leaves half."""

import contextlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import mlx.core as mx

from csm_mlx.checkpoint.files import TRAINING_CURVES, TRAINING_STATE, TRAINING_SUFFIX
from csm_mlx.checkpoint.read import read_tensors
from csm_mlx.checkpoint.save import SafetensorsWriter, write_error
from csm_mlx.errors import CheckpointError, TrainingError
from csm_mlx.train.config import NEUTRAL
from csm_mlx.train.loss import Losses

Stop = Literal["done", "patience", "interrupted"]
_METADATA = "training"
_VERSION = 1
_AGAIN = "start anew with --force"
HASHES = {
    "examples": "the examples are others",
    "validation": "the examples to validate with are others",
    "base model": "the base model is another",
}
"""Of `TrainState.identity`: fields whose value tells people nothing, and what to say when they differ."""


@dataclass(frozen=True, kw_only=True)
class CurvePoint:
    """One step."""

    step: int
    """From 1 on."""
    learning_rate: float
    losses: Losses
    validation: Losses | None = None


@dataclass(kw_only=True)
class TrainState:
    """All that a training knows; going on from it equals never having stopped."""

    identity: dict[str, Any]
    """What must be the same to go on: configuration, data and base model, by name."""
    weights: dict[str, mx.array]
    """Float32, by name, as are the optimizer's moments `m` and `v`."""
    m: dict[str, mx.array]
    v: dict[str, mx.array]
    step: int = 0
    """Updates made."""
    best_step: int | None = None
    best: Losses | None = None
    """Of the validation at `best_step`."""
    n_worse: int = 0
    """Validations since."""
    stopped: Stop | None = None
    curve: list[CurvePoint] = field(default_factory=list)

    def arrays(self) -> dict[str, mx.array]:
        groups = {"weights": self.weights, "m": self.m, "v": self.v}
        return {f"{group}/{name}": array for group, arrays in groups.items() for name, array in arrays.items()}


def training_folder(out: str | Path) -> Path:
    """Beside what a training makes: what only its continuation needs."""
    out = Path(out).absolute()
    return out.with_name(out.name + TRAINING_SUFFIX)


def state_path(out: str | Path) -> Path:
    return training_folder(out) / TRAINING_STATE


def curves_path(out: str | Path) -> Path:
    """Where the picture of the curves belongs."""
    return training_folder(out) / TRAINING_CURVES


def write_state(path: Path, state: TrainState) -> None:
    """Replaces the file, whole or not at all; `CheckpointError` when the disk refuses."""
    data = {
        "version": _VERSION,
        "identity": state.identity,
        "step": state.step,
        "best_step": state.best_step,
        "best": asdict(state.best) if state.best else None,
        "n_worse": state.n_worse,
        "stopped": state.stopped,
        "curve": [asdict(point) for point in state.curve],
    }
    arrays = state.arrays()
    part = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        specs = {name: (array.dtype, array.shape) for name, array in arrays.items()}
        with SafetensorsWriter(part, specs, {_METADATA: json.dumps(data)}) as writer:
            for name, array in arrays.items():
                writer.write_rows(name, 0, array)
        os.replace(part, path)
    except OSError as error:
        raise write_error(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


def read_state(path: Path) -> TrainState:
    """`TrainingError` when there is none or it is broken."""
    if not path.is_file():
        raise TrainingError(f"there is no training to resume at {path.parent}; start one without --resume")
    try:
        tensors = read_tensors(path)
        _, metadata = cast(tuple[Any, dict[str, str]], mx.load(str(path), return_metadata=True))
        data: dict[str, Any] = json.loads(metadata[_METADATA])
        if data.pop("version") != _VERSION:
            raise TrainingError(f"{path} was written by another version of csm-mlx; {_AGAIN}")
        groups: dict[str, dict[str, mx.array]] = {"weights": {}, "m": {}, "v": {}}
        for name, tensor in tensors.items():
            group, _, own_name = name.partition("/")
            groups[group][own_name] = tensor.load()
        data |= {**groups, "best": _losses(data["best"]), "curve": [_point(point) for point in data["curve"]]}
        return TrainState(**data)
    except (CheckpointError, LookupError, ValueError, TypeError, RuntimeError) as error:
        raise TrainingError(f"{path} is no state of a training ({error}); {_AGAIN}") from None


def _losses(data: dict[str, Any] | None) -> Losses | None:
    return Losses(**{**data, "groups": tuple(data["groups"])}) if data else None


def _point(data: dict[str, Any]) -> CurvePoint:
    losses = _losses(data["losses"])
    assert losses is not None
    return CurvePoint(**{**data, "losses": losses, "validation": _losses(data["validation"])})


def read_curve(out: str | Path) -> tuple[CurvePoint, ...]:
    """Of the training that makes `out`, as far as it was saved."""
    return tuple(read_state(state_path(out)).curve)


def require_same(saved: Mapping[str, Any], given: Mapping[str, Any], path: Path) -> None:
    """`TrainingError` names the fields in which a training to resume differs from what was asked for."""
    if differing := _differences(saved, given):
        raise TrainingError(
            f"cannot resume the training of {path.parent}: {'; '.join(differing)}; give the same, or {_AGAIN}"
        )


def _differences(saved: Mapping[str, Any], given: Mapping[str, Any]) -> list[str]:
    told = []
    for name in dict.fromkeys([*given, *saved]):
        then, now = saved.get(name), given.get(name)
        if name in NEUTRAL or then == now:
            continue
        if name in HASHES:
            told.append(HASHES[name])
        elif isinstance(then, dict) and isinstance(now, dict):
            told += _differences(then, now)
        else:
            told.append(f"{name} is {now!r}, it had {then!r}")
    return told
