"""The key/value cache, as data.

A cache is a plain tree of arrays (`CacheState`), so `mx.eval`, copying, saving and rewinding all work on it. Arrays
are immutable: keeping an old state costs nothing until the next write, which then copies instead of writing in place.

Position p lives in slot p % capacity. Attention without a window counts its positions in Python, so that a step needs
no mask; one that is full grows by what is written. A window of W positions fed T at a time needs a ring of W + T - 1
slots and then never ends: its count is in the graph.
"""

from typing import NamedTuple, TypedDict

import mlx.core as mx


class CacheState(TypedDict):
    """`keys` and `values` hold one (B, n_kv_heads, capacity, head_dim) array per layer."""

    offset: int | mx.array
    """Positions written so far: an int, or () int32 for a ring."""
    keys: list[mx.array]
    values: list[mx.array]


class Step(NamedTuple):
    """What every layer needs to know about the T positions of one call; made once, shared by all layers."""

    n_steps: int
    """T."""
    offset: int | mx.array
    """Position of the first of them."""
    slots: mx.array
    """Where their keys and values go: (1,) int32, the first, or (1, 1, T, 1) int32 for a ring."""
    mask: mx.array | str | None
    """Which slots each of them sees: (T, capacity) bool for a ring; None for all of those written up to here."""
    turns: mx.array | None = None
    """How their queries and keys are turned, made once (`rope.turned`); None where every layer has it done."""


def make_cache(
    batch: int, n_layers: int, n_kv_heads: int, capacity: int, head_dim: int, dtype: mx.Dtype, *, ring: bool
) -> CacheState:
    """An empty cache."""
    shape = (batch, n_kv_heads, capacity, head_dim)
    return {
        "offset": mx.array(0, mx.int32) if ring else 0,
        "keys": [mx.zeros(shape, dtype) for _ in range(n_layers)],
        "values": [mx.zeros(shape, dtype) for _ in range(n_layers)],
    }


def capacity(state: CacheState) -> int:
    """Slots per layer."""
    return state["keys"][0].shape[2]


def grow(state: CacheState, new_capacity: int) -> CacheState:
    """The same positions with room for more. Only for a cache that is no ring."""
    extra = [(0, 0), (0, 0), (0, max(0, new_capacity - capacity(state))), (0, 0)]
    return {
        "offset": state["offset"],
        "keys": [mx.pad(keys, extra) for keys in state["keys"]],
        "values": [mx.pad(values, extra) for values in state["values"]],
    }


def rewind(state: CacheState, n_positions: int) -> CacheState:
    """The cache as it was after `n_positions`. Only for a cache that is no ring: later slots are not looked at, and
    written over when positions come again."""
    return {"offset": n_positions, "keys": state["keys"], "values": state["values"]}


def step(offset: int | mx.array, n_steps: int, n_slots: int, window: int | None) -> Step:
    """Slots and mask for positions `offset ... offset + n_steps - 1` of a cache with `n_slots` slots."""
    if isinstance(offset, int):
        return Step(n_steps, offset, mx.array([offset], mx.int32), "causal" if n_steps > 1 else None)
    positions = offset + mx.arange(n_steps, dtype=mx.int32)
    last = positions[-1]
    # The position that each slot holds once this call has written: the newest one congruent to it, negative if none.
    held = last - (last - mx.arange(n_slots, dtype=mx.int32)) % n_slots
    distance = positions[:, None] - held[None]
    mask = (held[None] >= 0) & (distance >= 0)
    if window is not None:
        mask = mask & (distance < window)
    return Step(n_steps, offset, (positions % n_slots).reshape(1, 1, n_steps, 1), mask)


def write(cache: mx.array, new: mx.array, at: Step) -> tuple[mx.array, mx.array]:
    """`cache` (B, H, capacity, D) with `new` (B, H, T, D) in its slots, in place when nobody else holds `cache`; and
    those of its slots that the mask is about."""
    if not isinstance(at.offset, int):
        cache = mx.put_along_axis(cache, mx.broadcast_to(at.slots, new.shape), new.astype(cache.dtype), axis=2)
        return cache, cache
    n_slots, end = cache.shape[2], at.offset + at.n_steps
    if n_slots == at.offset:
        cache = mx.concatenate([cache, new], axis=2) if n_slots else new
        return cache, cache
    cache = mx.slice_update(cache, new, at.slots, [2])
    return cache, cache if n_slots == end else cache[:, :, :end]
