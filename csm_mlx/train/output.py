"""What a training writes besides its state: an adapter, or a whole checkpoint."""

from pathlib import Path
from typing import Any

from csm_mlx.checkpoint.adapter import write_adapter
from csm_mlx.checkpoint.fuse import write_full
from csm_mlx.checkpoint.save import require_replaceable, require_space, write_error
from csm_mlx.checkpoint.source import open_csm, source_name
from csm_mlx.errors import TrainingError
from csm_mlx.generate.session import Csm
from csm_mlx.train.config import TrainConfig
from csm_mlx.train.state import TrainState, state_path


def require_room(out: Path, *, resume: bool, force: bool) -> None:
    """`CheckpointError` or `TrainingError` unless a training may write to `out` and beside it."""
    state = state_path(out)
    if state.exists() and not (force or resume):
        raise TrainingError(
            f"{state.parent} holds an earlier training; go on with it with --resume, or replace it with --force"
        )
    require_replaceable(out, force=force or resume)


def require_base(out: Path, csm: Csm, config: TrainConfig, base: str | Path) -> None:
    """`TrainingError` when `out` is the model itself; `CheckpointError` when a whole checkpoint could not be written,
    because `base`, whose codec, tokenizer and voices it takes, is not there."""
    if out.exists() and out.resolve() == csm.path.resolve():
        raise TrainingError(f"{out} is the model that is trained on, which would be lost; choose another place")
    if config.adapter_config is None:
        open_csm(base)


def begin(out: Path, state: TrainState) -> None:
    """Removes an earlier training's state, which would be resumed in place of this one.

    `CheckpointError`, and nothing is removed, where the place cannot be written to or its disk lacks the space for
    what is saved, twice: the old stays until the new is whole.
    """
    path = state_path(out)
    n_bytes = sum(array.nbytes for array in state.arrays().values())
    n_weights = sum(array.nbytes for array in state.weights.values())
    freed = path.stat().st_size if path.is_file() else 0
    require_space(path.parent, 2 * (n_bytes + n_weights) - freed)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_name(f".{path.name}.part").touch()  # as the saves will be, so that a place that refuses is told now
        path.with_name(f".{path.name}.part").unlink()
        path.unlink(missing_ok=True)
    except OSError as error:
        raise write_error(path, error) from error


def write(out: Path, csm: Csm, config: TrainConfig, base: str | Path, summary: dict[str, Any]) -> None:
    """Replaces `out` with the weights as they are; `CheckpointError` when the disk refuses.

    base: what the model was loaded from.
    """
    adapter = config.adapter_config
    if adapter is None:
        write_full(out, base, csm.model, summary=summary, force=True)
    else:
        write_adapter(out, csm.model, adapter, base=source_name(base), summary=summary, force=True)
