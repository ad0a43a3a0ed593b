"""Pictures as PNG, with matplotlib where it is installed."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from csm_mlx.errors import CsmError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def check_png(path: str | Path) -> Path:
    """The path, if a picture can go there; `CsmError` otherwise. Cheap: ask before the work that the picture shows."""
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise CsmError(f"{path} does not end in .png; pictures are written as PNG")
    if not path.absolute().parent.is_dir():
        raise CsmError(f"the folder {path.parent} is not there; make it, or choose another place for {path.name}")
    return path


def new_figure(width: float, height: float) -> "Figure":
    """An empty figure, sizes in inches, bound to no screen; `CsmError` where matplotlib is missing."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise CsmError("drawing needs matplotlib, which is not installed: pip install 'csm-mlx[plots]'") from None
    return Figure(figsize=(width, height), layout="constrained")


def save_figure(figure: "Figure", path: str | Path) -> None:
    """Writes a PNG, whole or not at all; `CsmError` when the disk refuses."""
    path = check_png(path)
    part = path.with_name(f".{path.stem}.part.png")
    try:
        figure.savefig(part, dpi=100)
        os.replace(part, path)
    except OSError as error:
        raise CsmError(f"cannot write {path}: {error.strerror}; choose another place") from None
    finally:
        part.unlink(missing_ok=True)
