"""What is minimized: cross-entropy of codebook 0 at every frame, and of the others at a few of them.

The backbone learns from all frames; the depth decoder, most of the work, from a random share ("compute amortization",
https://www.sesame.com/research/crossing_the_uncanny_valley_of_voice). Losses are sums: parts of a batch, computed one
after the other or on several machines, add up to exactly the whole.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.nn.utils import checkpoint

from csm_mlx.models.csm import CsmModel
from csm_mlx.nn.cache import Step
from csm_mlx.nn.transformer import Block
from csm_mlx.train.data import Batch

EMBEDDED_FRAMES = 64
"""Frames whose codes are looked up at once: 17 MB for csm-1b, where all frames of a batch take gigabytes."""


@dataclass(frozen=True, kw_only=True)
class Losses:
    """Means per target, in nats."""

    total: float
    """What is minimized."""
    first: float
    """Of codebook 0."""
    others: float
    """Of the other codebooks."""
    groups: tuple[float, ...]
    """Of each of `codebook_groups`."""


def codebook_groups(n_codebooks: int) -> list[range]:
    """What curves show: codebook 0, and the others in up to three ranges, each about four times the one before."""
    starts = sorted({0, 1, *(n for n in (n_codebooks // 8, n_codebooks // 2) if n > 1)})
    return [range(a, b) for a, b in zip(starts, [*starts[1:], n_codebooks], strict=True)]


def codebook_sums(model: CsmModel, batch: Batch) -> mx.array:
    """Summed cross-entropy of each codebook, (n_codebooks,) float32: the first one's over all frames to be learnt,
    the others' over the chosen ones."""
    states = _states(model, batch)
    targets = batch.codes[batch.own]
    logits = model.codebook0_head(states)[..., : model.config.audio_vocab_size].astype(mx.float32)
    first = nn.losses.cross_entropy(logits, targets[:, 0], reduction="sum")
    chosen = targets[batch.chosen]
    logits = model.frame_logits(states[batch.chosen], chosen)[:, 1:]
    others = nn.losses.cross_entropy(logits, chosen[:, 1:], reduction="none").sum(axis=0)
    return mx.concatenate([first[None], others])


def _states(model: CsmModel, batch: Batch) -> mx.array:
    """(n_own, dim): the backbone's states from which the frames are predicted."""
    codes = batch.codes[None]
    # Every look-up of a table that is trained has a gradient as large as the table: then one for all.
    at_once = codes.shape[1] if model.audio_embeddings.trainable_parameters() else EMBEDDED_FRAMES
    blocks = [model.embed_audio(codes[:, start : start + at_once])[0] for start in range(0, codes.shape[1], at_once)]
    text = model.embed_text(batch.text_ids[None])[0]
    rows = mx.concatenate([text, *blocks, mx.zeros((1, text.shape[1]), text.dtype)])
    x = rows[batch.layout]
    y, _ = model.backbone(x, model.backbone.make_state(x.shape[0], x.dtype, x.shape[1]))
    return y.reshape(-1, y.shape[-1])[batch.before]


def objective(sums: mx.array, n_frames: int, n_chosen: int, depth_weight: float) -> mx.array:
    """() of `codebook_sums`: what is minimized, as means over `n_frames` and `n_chosen`, which may count more than
    this batch does."""
    return sums[0] / n_frames + depth_weight * sums[1:].sum() / (n_chosen * (sums.shape[0] - 1))


def mean_losses(sums: np.ndarray, n_frames: int, n_chosen: int, depth_weight: float) -> Losses:
    """Losses of summed `codebook_sums`."""
    means = np.asarray(sums, np.float64) / np.array([n_frames] + [n_chosen] * (len(sums) - 1))
    return Losses(
        total=float(means[0] + depth_weight * means[1:].mean()),
        first=float(means[0]),
        others=float(means[1:].mean()),
        groups=tuple(float(means[group.start : group.stop].mean()) for group in codebook_groups(len(means))),
    )


class _CheckpointedBlock(Block):
    """Keeps its inputs alone for the way back, where it computes the rest again."""

    def __call__(
        self, x: mx.array, keys: mx.array, values: mx.array, at: Step, *, last_only: bool = False
    ) -> tuple[mx.array, mx.array, mx.array]:
        run = super().__call__
        # `at` stays outside: MLX would ask for gradients with respect to its slots.
        return checkpoint(self, lambda x, keys, values: run(x, keys, values, at, last_only=last_only))(x, keys, values)


@contextmanager
def checkpointed_blocks(model: CsmModel) -> Iterator[None]:
    """Inside, the blocks of both transformers keep no activations (gradient checkpointing)."""
    blocks = [*model.backbone.layers, *model.depth_decoder.layers]
    try:
        for block in blocks:
            block.__class__ = _CheckpointedBlock
        yield
    finally:
        for block in blocks:
            block.__class__ = Block
