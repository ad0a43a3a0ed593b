"""Sampling against probabilities worked out by hand, rows of a batch apart."""

from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from csm_mlx.config import SamplingConfig
from csm_mlx.errors import ConfigError
from csm_mlx.sampling import Sampler, filtered

LOGITS = np.log(np.array([[0.5, 0.3, 0.15, 0.05], [0.05, 0.15, 0.3, 0.5]], np.float32))


def probabilities(**options) -> np.ndarray:
    config = SamplingConfig(**{"temperature": 1.0, "top_k": 0, **options})
    return np.array(mx.softmax(filtered(mx.array(LOGITS), config) / config.temperature, axis=-1))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [0.5, 0.3, 0.15, 0.05]),
        ({"top_k": 2}, [0.625, 0.375, 0, 0]),
        ({"top_k": 9}, [0.5, 0.3, 0.15, 0.05]),
        ({"top_p": 0.5}, [1, 0, 0, 0]),
        ({"top_p": 0.7}, [0.625, 0.375, 0, 0]),
        ({"min_p": 0.2}, [0.5 / 0.95, 0.3 / 0.95, 0.15 / 0.95, 0]),
        ({"temperature": 0.5}, np.array([0.25, 0.09, 0.0225, 0.0025]) / 0.365),
        # Temperature comes first: at 0.5 the two likeliest hold 0.93 of the mass, so top-p 0.9 keeps just them.
        ({"temperature": 0.5, "top_p": 0.9}, [0.25 / 0.34, 0.09 / 0.34, 0, 0]),
    ],
)
def test_filters(options: dict, expected: list[float]) -> None:
    p = probabilities(**options)
    assert p[0] == pytest.approx(np.asarray(expected), abs=1e-6)
    assert p[1] == pytest.approx(np.asarray(expected)[::-1], abs=1e-6)


def test_ties_with_the_kth_stay() -> None:
    tied = filtered(mx.array([[1.0, 0.0, 0.0, -1.0]]), SamplingConfig(temperature=1.0, top_k=2))
    assert np.isfinite(np.array(tied)).tolist() == [[True, True, True, False]]


def test_draws_follow_the_distribution() -> None:
    n = 20000
    sampler = Sampler(SamplingConfig(temperature=1.0, top_k=3))
    logits = mx.broadcast_to(mx.array(LOGITS[:1]), (n, 4))
    ids = np.array(sampler(logits, sampler.noise(mx.random.key(0), (n, 4))))[:, 0]
    frequencies = np.bincount(ids, minlength=4) / n
    assert frequencies == pytest.approx(np.array([0.5, 0.3, 0.15, 0]) / 0.95, abs=0.015)


def test_same_key_same_draw_and_greedy_needs_none() -> None:
    sampler = Sampler(SamplingConfig(temperature=1.0))
    logits = mx.random.normal((1, 100))
    noise = [np.array(sampler.noise(mx.random.key(seed), (1, 100))) for seed in (1, 1, 2)]
    assert np.array_equal(noise[0], noise[1])
    assert not np.array_equal(noise[0], noise[2])
    greedy = Sampler(SamplingConfig(temperature=0.0))
    assert greedy.noise(mx.random.key(0), (1, 100)) is None
    assert greedy(logits, None).item() == mx.argmax(logits).item()


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("temperature", -0.1, "expected 0 (greedy) to 10"),
        ("temperature", float("nan"), "expected 0 (greedy) to 10"),
        ("top_k", -1, "expected 0 (off) or more"),
        ("top_p", 0.0, "expected above 0"),
        ("top_p", 1.5, "at most 1 (off)"),
        ("min_p", 1.0, "below 1"),
    ],
)
def test_bad_options_say_what_is_expected(option: str, value: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        SamplingConfig(**{option: value})
    assert message in str(caught.value)
    assert str(value) in str(caught.value)


@pytest.mark.parametrize("temperature", [1e-10, 1e-38, 1e-40])
def test_the_coldest_draws_are_the_likeliest(temperature: float) -> None:
    sampler = Sampler(SamplingConfig(temperature=temperature, top_k=0))
    logits = mx.array([[1.0, 50.0, 49.0]])
    assert sampler(logits, sampler.noise(mx.random.key(0), (1, 3))).item() == 1
