"""Loads the checkpoint of `--model`, watched while it is fetched."""

from typing import TYPE_CHECKING

import csm_mlx
from csm_mlx_app import console, options

if TYPE_CHECKING:
    from csm_mlx import Csm


def load(model: str | None, *, speaks: bool = False) -> "Csm":
    """speaks: say the checkpoint's notice, which is about its voice."""
    with console.progress("{task.completed:.0f}/{task.total:.0f} MB  {task.fields[name]}") as show:

        def on_progress(name: str, done: int, total: int) -> None:
            show(name=name, completed=done / 1e6, total=total / 1e6)

        csm = csm_mlx.load(options.resolve_model(model), on_progress=on_progress)
    if speaks and csm.config.notice:
        console.note(csm.config.notice)
    return csm
