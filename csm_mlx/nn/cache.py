"""The key/value cache, as data.

A cache is a plain tree of arrays (`CacheState`), so `mx.eval`, copying, saving and rewinding all work on it. Arrays
are immutable: keeping an old state costs nothing until the next write, which then copies instead of writing in place.

Position p lives in slot p % capacity. Attention without a window needs no mask for a step; a cache that is full grows
by what is written. A window of W positions fed T at a time needs a ring of W + T - 1 slots and then never ends; a mask
hides what has left the window. Fed one at a time, a ring of up to W slots needs no mask either, and begins with none
(`with_room`).

Rows of unlike length are right-aligned (`aligned`): all write to one slot, and what stands before a row's first
position is padding, which a mask hides.
"""

from collections.abc import Sequence
from typing import NamedTuple, TypedDict

import mlx.core as mx
import numpy as np

GROWTH = 256
"""Slots that a ring grows by that is fed one position at a time."""


class CacheState(TypedDict):
    """`keys` and `values` hold one (B, n_kv_heads, capacity, head_dim) array per layer."""

    offset: int
    """Positions written so far."""
    keys: list[mx.array]
    values: list[mx.array]
    padding: tuple[int, ...]
    """Slots before each row's first position; () where no row has any, as in a ring."""


class Step(NamedTuple):
    """What every layer needs to know about the T positions of one call; made once, shared by all layers."""

    n_steps: int
    """T."""
    offset: int | None
    """Position of the first of them, padding included; None where it is data, and the mask is about all slots."""
    positions: int | mx.array
    """The same for the rotation, without the padding: also (B,) int32, one per row."""
    slots: mx.array
    """Where their keys and values go: (1,) int32, the first, or (1, 1, T, 1) int32, each, of a ring with a mask."""
    mask: mx.array | str | None
    """Which slots each of them sees: (T, capacity) bool for a ring, or what is added to the scores, float32
    (T, capacity) or (B, n_heads, T, capacity); (B, 1, 1, written) bool beside padding; "causal" for those written up to
    itself; None, with one step, for all of those written up to here. Without an offset, for one step of no ring, what
    is added to the scores (B, n_kv_heads, heads per key, capacity)."""
    turns: mx.array | None = None
    """How their queries and keys are turned, and queries scaled, made once (`rope.turned`), for float32 on a CPU; None
    where every layer has it done."""
    wraps: bool = False
    """Whether it is one position of a ring without a mask, whose first slot follows its last."""


def make_cache(batch: int, n_layers: int, n_kv_heads: int, capacity: int, head_dim: int, dtype: mx.Dtype) -> CacheState:
    """An empty cache."""
    shape = (batch, n_kv_heads, capacity, head_dim)
    return {
        "offset": 0,
        "keys": [mx.zeros(shape, dtype) for _ in range(n_layers)],
        "values": [mx.zeros(shape, dtype) for _ in range(n_layers)],
        "padding": (),
    }


def capacity(state: CacheState) -> int:
    """Slots per layer."""
    return state["keys"][0].shape[2]


def grow(state: CacheState, new_capacity: int) -> CacheState:
    """The same positions with room for more. Only for a cache that is no ring."""
    extra = [(0, 0), (0, 0), (0, max(0, new_capacity - capacity(state))), (0, 0)]
    return {
        **state,
        "keys": [mx.pad(keys, extra) for keys in state["keys"]],
        "values": [mx.pad(values, extra) for values in state["values"]],
    }


def with_room(state: CacheState, window: int) -> CacheState:
    """A ring for one position at a time with a free slot, or one that may be written over.

    It grows up to `window` slots: until it has wrapped, a position's slot is its number, and growing is padding. Layer
    by layer, each some positions after the next, so that no step has to copy all of a long conversation.
    """
    n_layers, offset = len(state["keys"]), state["offset"]

    def roomy(layer: int, array: mx.array) -> mx.array:
        n_slots = array.shape[2]
        if n_slots == window or n_slots > offset + layer * GROWTH // n_layers:
            return array
        return mx.pad(array, [(0, 0), (0, 0), (0, min(GROWTH, window - n_slots)), (0, 0)])

    return {
        **state,
        "keys": [roomy(*pair) for pair in enumerate(state["keys"])],
        "values": [roomy(*pair) for pair in enumerate(state["values"])],
    }


def rewind(state: CacheState, n_positions: int) -> CacheState:
    """The cache as it was after `n_positions`. Only for a cache that is no ring: later slots are not looked at, and
    written over when positions come again."""
    return {**state, "offset": n_positions}


def chosen(state: CacheState, rows: list[int]) -> CacheState:
    """Only those rows of a cache, in that order; their padding stays."""
    index, padding = mx.array(rows, mx.int32), paddings(state)
    return {
        "offset": state["offset"],
        "keys": [keys[index] for keys in state["keys"]],
        "values": [values[index] for values in state["values"]],
        "padding": tuple(padding[row] for row in rows),
    }


def aligned(states: Sequence[CacheState], n_free: int) -> CacheState:
    """The rows of several caches in one, with room for `n_free` more positions: the last ones of all rows stand in the
    same slot, and no padding before the longest. Only for caches that are no rings."""
    ends = [int(state["offset"]) for state in states]
    longest = max(end - min(paddings(state)) for state, end in zip(states, ends, strict=True))

    def laid(arrays: Sequence[mx.array]) -> mx.array:
        pieces = []
        for array, end in zip(arrays, ends, strict=True):
            before = max(0, longest - end)
            around = [(0, 0), (0, 0), (before, n_free), (0, 0)]
            pieces.append(mx.pad(array[:, :, max(0, end - longest) : end], around))
        return pieces[0] if len(pieces) == 1 else mx.concatenate(pieces)

    padding = (p + longest - end for state, end in zip(states, ends, strict=True) for p in paddings(state))
    return {
        "offset": longest,
        "keys": [laid(arrays) for arrays in zip(*(state["keys"] for state in states), strict=True)],
        "values": [laid(arrays) for arrays in zip(*(state["values"] for state in states), strict=True)],
        "padding": tuple(padding),
    }


def paddings(state: CacheState) -> tuple[int, ...]:
    """Of every row."""
    return state["padding"] or (0,) * state["keys"][0].shape[0]


def step(offset: int, n_steps: int, n_slots: int, window: int | None, padding: tuple[int, ...] = ()) -> Step:
    """Slots and mask for positions `offset ... offset + n_steps - 1` of a cache with `n_slots` slots; one position at a
    time where a row has padding."""
    if window is not None and (n_steps > 1 or n_slots > window):
        return _step_of_ring(offset, n_steps, n_slots, window)
    if window is not None:
        if offset >= n_slots != window:
            raise ValueError(f"a ring of {n_slots} slots has none for position {offset}; `with_room` gives it one")
        return Step(1, offset, offset, mx.array([offset % n_slots], mx.int32), None, wraps=True)
    slots = mx.array([offset], mx.int32)
    if not any(padding):
        return Step(n_steps, offset, offset, slots, "causal" if n_steps > 1 else None)
    if n_steps > 1:
        raise ValueError(f"a batch with padding takes one position at a time, not {n_steps}")
    before = np.array(padding, np.int32)
    mask = mx.array(np.arange(offset + 1, dtype=np.int32)) >= mx.array(before[:, None, None, None])
    return Step(n_steps, offset, mx.array(offset - before), slots, mask)


def _step_of_ring(offset: int, n_steps: int, n_slots: int, window: int) -> Step:
    """Of one that takes several positions at a time."""
    if n_slots < window + n_steps - 1:
        raise ValueError(f"{n_steps} positions take a ring of {window + n_steps - 1} slots at least, not {n_slots}")
    positions = np.arange(offset, offset + n_steps)
    last = positions[-1]
    # The position that each slot holds once this call has written: the newest one congruent to it, negative if none.
    held = last - (last - np.arange(n_slots)) % n_slots
    distance = positions[:, None] - held
    mask = mx.array((held >= 0) & (distance >= 0) & (distance < window))
    slots = mx.array((positions % n_slots).reshape(1, 1, n_steps, 1), mx.int32)
    return Step(n_steps, offset, offset, slots, mask)


def write(cache: mx.array, new: mx.array, at: Step) -> tuple[mx.array, mx.array]:
    """`cache` (B, H, capacity, D) with `new` (B, H, T, D) in its slots, in place when nobody else holds `cache`; and
    those of its slots that the mask is about."""
    if at.slots.ndim > 1:
        cache = mx.put_along_axis(cache, mx.broadcast_to(at.slots, new.shape), new.astype(cache.dtype), axis=2)
        return cache, cache
    if at.offset is None:
        cache = mx.slice_update(cache, new, at.slots, [2])
        return cache, cache
    n_slots, end = cache.shape[2], at.offset + at.n_steps
    if n_slots == at.offset and not at.wraps:
        cache = mx.concatenate([cache, new], axis=2) if n_slots else new
        return cache, cache
    cache = mx.slice_update(cache, new, at.slots, [2])
    return cache, cache if n_slots <= end else cache[:, :, :end]
