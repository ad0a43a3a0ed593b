"""The compiled step of a code against the teacher-forced logits, which come another way: prepared, changed, adapted,
packed."""

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from csm_mlx.config import SamplingConfig
from csm_mlx.generate.frame import frame_noise, sample_frame
from csm_mlx.lora import AdapterConfig, attach
from csm_mlx.models.code_step import MOST_STEPS
from csm_mlx.models.csm import CsmModel
from csm_mlx.sampling import Sampler, filtered
from tests.support.models import random_csm_model

BATCH = 2
KEY = mx.random.key(5)
SAMPLINGS = [SamplingConfig(temperature=0.0), SamplingConfig(temperature=0.9, top_k=20)]


def drawn(model: CsmModel, sampling: SamplingConfig) -> np.ndarray:
    """The codes (B, n_codebooks) of a frame, seen to be those that the frame's own logits and noise say."""
    config, sampler = model.config, Sampler(sampling)
    hidden = mx.random.normal((BATCH, config.backbone.dim), key=mx.random.key(1))
    codes = sample_frame(model, hidden, sampler, KEY)
    logits = model.frame_logits(hidden, codes)[..., : config.codebook_size]
    noise = frame_noise(sampler, KEY, (config.n_codebooks, BATCH, config.codebook_size))
    for k, own in enumerate(noise):
        scores = filtered(logits[:, k], sampling) + own[0] if own else logits[:, k]
        np.testing.assert_array_equal(np.array(codes[:, k]), np.array(mx.argmax(scores, axis=-1)), f"codebook {k}")
    return np.array(codes)


def prepared() -> CsmModel:
    model = random_csm_model(seed=3)
    model.prepare()
    return model


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_it_draws_what_the_logits_say(sampling: SamplingConfig) -> None:
    model = random_csm_model(seed=3)
    before = drawn(model, sampling)
    model.prepare()
    np.testing.assert_array_equal(drawn(model, sampling), before)


def other_head(model: CsmModel) -> None:
    model.audio_head[1].weight = mx.random.normal(model.audio_head[1].weight.shape)


def other_layer(model: CsmModel) -> None:
    mlp = model.depth_decoder.layers[0].mlp
    mlp.up_proj.weight = mx.random.normal(mlp.up_proj.weight.shape)


def adapted(model: CsmModel) -> None:
    for path in attach(model, AdapterConfig(targets=("depth_decoder.*_proj", "audio_head.*"))):
        layer = dict(model.named_modules())[path]
        layer.lora_b = mx.random.normal(layer.lora_b.shape)


def packed(model: CsmModel) -> None:
    """Heads of unlike bits, one left as it was."""
    heads: list[Any] = model.audio_head
    for k, bits in enumerate((4, 8)):
        heads[k].weight = mx.random.normal(heads[k].weight.shape)
        heads[k] = nn.QuantizedLinear.from_linear(heads[k], group_size=32, bits=bits)


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("prepare_again", [False, True])
@pytest.mark.parametrize("change", [other_head, other_layer, adapted, packed])
def test_what_changed_since_counts(
    change: Callable[[CsmModel], None], prepare_again: bool, sampling: SamplingConfig
) -> None:
    model = prepared()
    before = drawn(model, sampling)
    mx.random.seed(7)
    change(model)
    if prepare_again:
        model.prepare()
    assert (drawn(model, sampling) != before).any(), "the change changes no code: this test would not see it"


def test_more_ways_to_draw_than_are_kept() -> None:
    model = prepared()
    samplings = [SamplingConfig(temperature=0.5 + 0.1 * n, top_k=20) for n in range(MOST_STEPS + 2)]
    first, again = ([drawn(model, sampling) for sampling in samplings] for _ in range(2))
    np.testing.assert_array_equal(first, again)
