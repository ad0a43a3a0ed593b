"""The picture of a training, drawn anew while it runs."""

import time
from collections.abc import Sequence
from pathlib import Path

from csm_mlx.errors import CsmError
from csm_mlx.plots import new_figure
from csm_mlx.train import CurvePoint, StepReport, curves_path, plot_curves, read_curve
from csm_mlx_app import console

_EVERY_S = 30.0
"""Between two drawings, which take a second."""


class Curves:
    """path: where it goes, which has to work; None is beside `out`, and no reason to stop a training.

    resumed: begin with what the training of `out` has saved.
    """

    def __init__(self, out: Path, path: Path | None, n_codebooks: int, *, resumed: bool):
        self.path, self._out, self._n_codebooks = path or curves_path(out), out, n_codebooks
        self._points = list(read_curve(out)) if resumed else []
        self._drawn_s = time.monotonic()
        self._asked, self._works = path is not None, True
        if self._asked:
            new_figure(1, 1)  # raises where matplotlib is missing, before hours of work

    def add(self, report: StepReport) -> None:
        self._points.append(
            CurvePoint(
                step=report.step,
                learning_rate=report.learning_rate,
                losses=report.losses,
                validation=report.validation,
            )
        )
        if time.monotonic() - self._drawn_s > _EVERY_S:
            self._draw(self._points)

    def finish(self, curve: Sequence[CurvePoint]) -> bool:
        """Draw all of it; whether there is a picture."""
        self._draw(curve)
        return self._works

    def _draw(self, curve: Sequence[CurvePoint]) -> None:
        if not self._works:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            plot_curves(curve, self._n_codebooks, self.path, self._out.name)
        except (CsmError, OSError) as error:
            self._works = False
            console.note(f"no picture of the curves: {error}")
        self._drawn_s = time.monotonic()
