"""The loss and its gradient."""

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_unflatten
from support.models import csm_config, llama, random_csm_model
from support.training import largest_difference, random_examples

from csm_mlx.models.csm import CsmModel
from csm_mlx.quantize import named_parameters
from csm_mlx.train.data import FRAMES, Batch, chosen_frames, make_batch
from csm_mlx.train.loss import (
    checkpointed_blocks,
    codebook_groups,
    codebook_sums,
    mean_losses,
    objective,
)

SMALL = csm_config(
    backbone=llama(32, n_heads=2, n_kv_heads=1), depth=llama(32, n_layers=1, n_heads=2, n_kv_heads=1), n_codebooks=3
)

STEP = 0.01


def batch_of(model: CsmModel, lengths: tuple[int, ...] = (9, 4, 14), share: float = 0.25) -> Batch:
    examples = random_examples(model.config, lengths)
    frames = [chosen_frames(0, FRAMES, 0, i, example.n_frames, share) for i, example in enumerate(examples)]
    return make_batch(examples, frames)


def loss(model: CsmModel, batch: Batch, parameters: dict[str, mx.array]) -> mx.array:
    model.update(tree_unflatten(list(parameters.items())))
    return objective(codebook_sums(model, batch), batch.n_own, batch.n_chosen, 0.7)


def gradients(model: CsmModel, batch: Batch) -> dict[str, mx.array]:
    parameters = named_parameters(model)
    found = mx.grad(lambda p: loss(model, batch, p))(parameters)
    mx.eval(found)
    model.update(tree_unflatten(list(parameters.items())))
    return found


@pytest.mark.parametrize("lengths", [(9, 4, 14), (260,)], ids=["short", "two blocks of attention"])
def test_every_gradient_is_the_slope(lengths: tuple[int, ...]) -> None:
    """Through the writes of the cache too. Half the direction is the gradient's own, so that no slope is lost in
    rounding, half is random."""
    model = random_csm_model(SMALL)
    batch, parameters = batch_of(model, lengths), named_parameters(model)
    found = gradients(model, batch)
    for name, gradient in found.items():
        if max(lengths) > 256 and not name.startswith("backbone.layers"):
            continue  # of all others length is nothing new
        random = mx.random.normal(gradient.shape, key=mx.random.key(1))
        direction = random / mx.linalg.norm(random) + gradient / mx.maximum(mx.linalg.norm(gradient), 1e-9)
        slope = float((gradient * direction).sum())

        def at(distance: float, name: str = name, direction: mx.array = direction) -> float:
            return float(loss(model, batch, parameters | {name: parameters[name] + distance * direction}))

        # The central difference of fourth order: float32 leaves little room between rounding and curvature.
        difference = (8 * (at(STEP) - at(-STEP)) - (at(2 * STEP) - at(-2 * STEP))) / (12 * STEP)
        assert slope > 0, name
        assert difference == pytest.approx(slope, rel=0.01, abs=1e-3), name


def test_recomputed_blocks_have_the_same_gradients() -> None:
    model = random_csm_model(SMALL)
    batch = batch_of(model)
    plain, before = gradients(model, batch), type(model.backbone.layers[0])
    with checkpointed_blocks(model):
        recomputed = gradients(model, batch)
    assert largest_difference(plain, recomputed) == 0
    assert type(model.backbone.layers[0]) is before


def test_sums_add_up() -> None:
    """Padding changes nothing, and the parts of a batch are the whole."""
    model = random_csm_model(SMALL)
    examples = random_examples(SMALL, (9, 4, 14))
    frames = [chosen_frames(0, FRAMES, 0, i, example.n_frames, 0.3) for i, example in enumerate(examples)]
    whole = np.array(codebook_sums(model, make_batch(examples, frames)))
    parts = [np.array(codebook_sums(model, make_batch([e], [f]))) for e, f in zip(examples, frames, strict=True)]
    assert whole == pytest.approx(np.sum(parts, axis=0), rel=1e-5)


def test_context_is_not_learnt() -> None:
    model = random_csm_model(SMALL)
    batch = batch_of(model, (3, 8))
    assert batch.n_own == 4 + 9
    assert batch.codes.shape[0] == 4 + 6 + 9
    assert batch.own.tolist() == [*range(4), *range(10, 19)]


def test_losses_are_means_per_target() -> None:
    losses = mean_losses(np.array([20.0, 6.0, 9.0, 3.0]), n_frames=10, n_chosen=3, depth_weight=0.5)
    assert losses.first == 2.0
    assert losses.others == pytest.approx(2.0)
    assert losses.total == pytest.approx(3.0)
    assert losses.groups == pytest.approx((2.0, 2.0, 2.0))
    assert [(g.start, g.stop) for g in codebook_groups(4)] == [(0, 1), (1, 2), (2, 4)]
    assert [(g.start, g.stop) for g in codebook_groups(32)] == [(0, 1), (1, 4), (4, 16), (16, 32)]
    assert [(g.start, g.stop) for g in codebook_groups(2)] == [(0, 1), (1, 2)]


def test_a_flat_model_loses_the_logarithm_of_the_vocabulary() -> None:
    model = random_csm_model(SMALL)
    for head in (model.codebook0_head, *model.audio_head):
        head.weight = mx.zeros_like(head.weight)
    batch = batch_of(model)
    losses = mean_losses(np.array(codebook_sums(model, batch)), batch.n_own, batch.n_chosen, 1.0)
    assert losses.first == pytest.approx(np.log(SMALL.audio_vocab_size), rel=1e-5)
    assert losses.others == pytest.approx(np.log(SMALL.audio_vocab_size), rel=1e-5)
