"""Drawing a code from its logits: temperature, top-k, top-p and min-p, in the graph and in float32."""

import math
from collections.abc import Callable
from functools import lru_cache

import mlx.core as mx

from csm_mlx.config import SamplingConfig
from csm_mlx.errors import ConfigError

MIN_TEMPERATURE = 1e-6
"""Colder ones draw as this one does: dividing by less would overflow."""


def first_key(seed: int) -> mx.array:
    """All randomness of a session; ConfigError for a seed that is none."""
    if not isinstance(seed, int) or not 0 <= seed < 1 << 64:
        raise ConfigError(f"seed is {seed!r}, expected a whole number from 0 to 2^64 - 1")
    return mx.random.key(seed)


class Sampler:
    """A pure function of logits and noise: the same two give the same code, and nothing waits for the device.

    Temperature comes first, as in Sesame's code and in transformers: the filters see the tempered distribution. The
    logits themselves stay as they are; it is the noise that is scaled, once for all codebooks of a frame.
    """

    def __init__(self, config: SamplingConfig):
        self.config = config
        self.draw = _compiled_draw(config)
        """`__call__`, the same for all samplers of a kind; without noise where there is none."""

    def noise(self, key: mx.array, shape: tuple[int, ...]) -> mx.array | None:
        """Scaled Gumbel noise for `__call__`, all that one frame needs in one draw; None when sampling is greedy."""
        if self.config.temperature == 0:
            return None
        return mx.random.gumbel(shape, key=key) * _temperature(self.config)

    def __call__(self, logits: mx.array, noise: mx.array | None) -> mx.array:
        """logits (B, V) and noise (B, V); ids (B, 1) uint32. argmax(logits + Gumbel noise) is an exact draw."""
        return self.draw(logits) if noise is None else self.draw(logits, noise)


def _temperature(config: SamplingConfig) -> float:
    return max(config.temperature, MIN_TEMPERATURE)


@lru_cache
def _compiled_draw(config: SamplingConfig) -> Callable[..., mx.array]:
    """Compiled once for all samplers of a kind: a frame draws 32 times."""

    def draw(logits: mx.array, noise: mx.array) -> mx.array:
        return _likeliest(filtered(logits, config) + noise)

    return _likeliest if config.temperature == 0 else mx.compile(draw)


def _likeliest(logits: mx.array) -> mx.array:
    return mx.argmax(logits, axis=-1, keepdims=True)


def filtered(logits: mx.array, config: SamplingConfig) -> mx.array:
    """Logits (B, V) as float32 with -inf where an id is out; not yet divided by the temperature."""
    n = logits.shape[-1]
    logits = logits.astype(mx.float32)
    if 0 < config.top_k < n:
        threshold = mx.partition(logits, n - config.top_k, axis=-1)[..., n - config.top_k : n - config.top_k + 1]
        logits = mx.where(logits < threshold, -mx.inf, logits)  # ids that tie with the k-th stay
    if config.top_p < 1:
        ordered = mx.sort(logits, axis=-1)[..., ::-1]
        p = mx.softmax(ordered / _temperature(config), axis=-1)
        kept = mx.cumsum(p, axis=-1) - p < config.top_p  # the mass before an id: the first one always stays
        threshold = mx.where(kept, ordered, mx.inf).min(axis=-1, keepdims=True)
        logits = mx.where(logits < threshold, -mx.inf, logits)
    if config.min_p > 0:
        threshold = logits.max(axis=-1, keepdims=True) + _temperature(config) * math.log(config.min_p)
        logits = mx.where(logits < threshold, -mx.inf, logits)
    return logits
