"""The one key/value cache: a ring of positions, as data.

A cache is a plain tree of arrays (`CacheState`), so `mx.eval`, copying, saving and rewinding all work on it. Arrays
are immutable: keeping an old state costs nothing until the next write, which then copies instead of writing in place.

Position p lives in slot p % capacity. A capacity that no position exceeds makes an ordinary cache; a window of W
positions fed T at a time needs W + T - 1 slots and then never ends. Both are the same code.
"""

from typing import NamedTuple, TypedDict

import mlx.core as mx


class CacheState(TypedDict):
    """`keys` and `values` hold one (B, n_kv_heads, capacity, head_dim) array per layer."""

    offset: mx.array
    """() int32: positions written so far."""
    keys: list[mx.array]
    values: list[mx.array]


class Step(NamedTuple):
    """What every layer needs to know about the T positions of one call; made once, shared by all layers."""

    offset: mx.array
    """() int32: position of the first of them."""
    slots: mx.array
    """(1, 1, T, 1) int32: where their keys and values go."""
    mask: mx.array
    """(T, capacity) bool: which slots each of them sees."""


def make_cache(batch: int, n_layers: int, n_kv_heads: int, capacity: int, head_dim: int, dtype: mx.Dtype) -> CacheState:
    """An empty cache."""
    shape = (batch, n_kv_heads, capacity, head_dim)
    return {
        "offset": mx.array(0, mx.int32),
        "keys": [mx.zeros(shape, dtype) for _ in range(n_layers)],
        "values": [mx.zeros(shape, dtype) for _ in range(n_layers)],
    }


def capacity(state: CacheState) -> int:
    """Slots per layer."""
    return state["keys"][0].shape[2]


def grow(state: CacheState, new_capacity: int) -> CacheState:
    """The same positions with room for more. Only for a cache that has not wrapped around."""
    extra = [(0, 0), (0, 0), (0, max(0, new_capacity - capacity(state))), (0, 0)]
    return {
        "offset": state["offset"],
        "keys": [mx.pad(keys, extra) for keys in state["keys"]],
        "values": [mx.pad(values, extra) for values in state["values"]],
    }


def rewind(state: CacheState, n_positions: int) -> CacheState:
    """The cache as it was after `n_positions`. Only for a cache that has not wrapped around: later slots are
    masked, and written over when positions come again."""
    return {"offset": mx.array(n_positions, mx.int32), "keys": state["keys"], "values": state["values"]}


def step(offset: mx.array, n_steps: int, n_slots: int, window: int | None) -> Step:
    """Slots and mask for positions `offset ... offset + n_steps - 1` of a cache with `n_slots` slots."""
    positions = offset + mx.arange(n_steps, dtype=mx.int32)
    last = positions[-1]
    # The position that each slot holds once this call has written: the newest one congruent to it, negative if none.
    held = last - (last - mx.arange(n_slots, dtype=mx.int32)) % n_slots
    distance = positions[:, None] - held[None]
    mask = (held[None] >= 0) & (distance >= 0)
    if window is not None:
        mask = mask & (distance < window)
    return Step(offset, (positions % n_slots).reshape(1, 1, n_steps, 1), mask)


def write(cache: mx.array, new: mx.array, slots: mx.array) -> mx.array:
    """`cache` (B, H, capacity, D) with `new` (B, H, T, D) in its slots; in place when nobody else holds `cache`."""
    return mx.put_along_axis(cache, mx.broadcast_to(slots, new.shape), new.astype(cache.dtype), axis=2)
