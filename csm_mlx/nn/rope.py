"""Rotary positions: the frequency curve, and the rotation of interleaved pairs."""

import math
from functools import cache

import mlx.core as mx
import numpy as np

from csm_mlx.config import Llama3Rope


def rope_periods(head_dim: int, base: float, scaling: Llama3Rope | None = None) -> np.ndarray:
    """Radians-per-position of each pair, inverted: (head_dim / 2,) float64, as `mx.fast.rope(freqs=…)` takes them.

    Llama 3's stretching (Meta's `apply_scaling`): pairs that turn often within the original context stay as they
    are, those that never finish a turn slow down by `factor`, and those between are blended.
    """
    frequencies = base ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    if scaling is not None:
        turns = scaling.original_max_positions * frequencies / (2 * math.pi)
        low, high = scaling.low_freq_factor, scaling.high_freq_factor
        kept = np.clip((turns - low) / (high - low), 0.0, 1.0)
        frequencies = kept * frequencies + (1 - kept) * frequencies / scaling.factor
    return 1.0 / frequencies


class Rope:
    """Turns pairs (0, 1), (2, 3), … of the last axis by their position; no parameters."""

    def __init__(self, head_dim: int, base: float, scaling: Llama3Rope | None = None):
        self.head_dim = head_dim
        self._periods = rope_periods(head_dim, base, scaling).astype(np.float32)
        self.periods = mx.array(self._periods)

    def __call__(self, x: mx.array, offset: mx.array | int) -> mx.array:
        """x (B, n_heads, T, head_dim) at positions offset, offset + 1, …; offset is an int, () int32, or (B,)
        int32 with one per row."""
        return mx.fast.rope(x, self.head_dim, traditional=True, base=None, scale=1.0, offset=offset, freqs=self.periods)

    def turns(self, positions: tuple[int, ...], n_queries: int, n_keys: int, scale: float) -> mx.array:
        """Each position's heads as complex factors of their pairs, for `turned`: queries, which are scaled too, keys,
        and as many values, which stay as they are.

        (len(positions), (n_queries + 2 * n_keys) * head_dim / 2) complex64.
        """
        angles = np.array(positions, np.float32)[:, None, None] * (np.float32(1) / self._periods)
        factor, addend = _heads(n_queries, n_keys, scale)
        return mx.array((np.exp(1j * angles) * factor + addend).reshape(len(positions), -1))


@cache
def _heads(n_queries: int, n_keys: int, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """What a position's turn is multiplied with in each head, and what is added: (n_queries + 2 * n_keys, 1)."""
    factor = np.repeat(np.array([scale, 1, 0], np.complex64), [n_queries, n_keys, n_keys])[:, None]
    return factor, (factor == 0).astype(np.complex64)


def turned(x: mx.array, turns: mx.array) -> mx.array:
    """x (…, n) float32 with each of its pairs turned as `turns` says, (…, n / 2), which is broadcast.

    Two views and a product where `mx.fast.rope` takes thirty primitives on a CPU; views have no gradient.
    """
    return (x.view(mx.complex64) * turns).view(mx.float32)
