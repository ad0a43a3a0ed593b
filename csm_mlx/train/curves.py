"""Curves of a training as a picture."""

from collections.abc import Sequence
from pathlib import Path

from csm_mlx.plots import new_figure, save_figure
from csm_mlx.train.loss import codebook_groups
from csm_mlx.train.state import CurvePoint

_COLORS = ("#4062bb", "#59c3c3", "#e6a23c", "#b5446e")


def plot_curves(curve: Sequence[CurvePoint], n_codebooks: int, path: str | Path, title: str = "") -> None:
    """A PNG of the losses by group of codebooks, in training and validation, and of the learning rate.

    Needs matplotlib (`pip install 'csm-mlx[plots]'`); `CsmError` where it is missing or the disk refuses.
    """
    figure = new_figure(9, 6)
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    steps = [point.step for point in curve]
    validated = [point for point in curve if point.validation is not None]
    for i, group in enumerate(codebook_groups(n_codebooks)):
        last = group.stop - 1
        name = f"codebook {last}" if len(group) == 1 else f"codebooks {group.start} to {last}"
        top.plot(steps, [p.losses.groups[i] for p in curve], color=_COLORS[i], alpha=0.6, label=name)
        points = [p.validation.groups[i] for p in validated if p.validation is not None]
        top.plot([p.step for p in validated], points, "o-", color=_COLORS[i], markersize=4, label=f"{name}, validation")
    top.set_ylabel("loss (nats)")
    if curve:
        top.legend()
    bottom.plot(steps, [point.learning_rate for point in curve], color="#666666")
    bottom.set_ylabel("learning rate")
    bottom.set_xlabel("step")
    bottom.xaxis.get_major_locator().set_params(integer=True)
    if title:
        figure.suptitle(title)
    save_figure(figure, path)
