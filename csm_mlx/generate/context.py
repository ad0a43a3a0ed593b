"""The turns that the backbone has seen, and its cache of them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import mlx.core as mx
import numpy as np

from csm_mlx.errors import ContextError
from csm_mlx.frames import TurnRows
from csm_mlx.models.csm import CsmModel
from csm_mlx.nn import cache
from csm_mlx.nn.transformer import BLOCK

PREFILL_ROWS = BLOCK
"""Rows run at once."""
EMBEDDED_ROWS = 32
"""Rows embedded at once: a row of sound is the sum of K lookups."""
GROWTH = 256
"""The cache grows by this many positions: short conversations attend over few."""


@dataclass(frozen=True, eq=False)
class Held:
    """A turn in the cache, from position `start` on."""

    rows: TurnRows
    start: int
    reference: bool


@dataclass(frozen=True, eq=False)
class ContextSnapshot:
    """Arrays are immutable, so this costs nothing until the context is written again, and then one copy."""

    state: cache.CacheState
    turns: tuple[Held, ...]
    n_positions: int


class Context:
    """Appends turns to the backbone's cache, makes room by forgetting the oldest, and cuts the newest short.

    Batch of one. The last turn may be open: its text is in, its frames come one by one (`step`) until `close_turn`.
    """

    def __init__(self, model: CsmModel):
        model.prepare()
        self._model = model
        self._max_positions = model.config.max_positions
        self.restore(ContextSnapshot(model.backbone.make_state(1, model.dtype, GROWTH), (), 0))

    def snapshot(self) -> ContextSnapshot:
        """The context as it is now; only between turns."""
        return ContextSnapshot(self._state, self.turns, self.n_positions)

    def restore(self, snapshot: ContextSnapshot) -> None:
        """Back to a snapshot of this model's context."""
        self._state, self.turns, self.n_positions = snapshot.state, snapshot.turns, snapshot.n_positions

    @property
    def free_positions(self) -> int:
        return self._max_positions - self.n_positions

    @property
    def reachable_positions(self) -> int:
        """Those free once all that may be forgotten is."""
        return self._max_positions - sum(turn.rows.n_rows for turn in self.turns if turn.reference)

    def reserve(self, n_rows: int) -> None:
        """Makes room for `n_rows` more, forgetting the oldest turns that are no reference, whole.

        When it must forget, it forgets until a quarter of all positions are free besides, so that the rebuild,
        a prefill of what stays, comes once in many turns. What cannot be freed is not an error here.
        """
        if n_rows <= self.free_positions:
            return
        wanted = n_rows + self._max_positions // 4
        kept, free = list(self.turns), self.free_positions
        for turn in self.turns:
            if free >= wanted:
                break
            if not turn.reference:
                kept.remove(turn)
                free += turn.rows.n_rows
        self._rebuild(kept)

    def add(self, rows: TurnRows, reference: bool) -> None:
        """A whole turn; `ContextError`, with nothing forgotten, if it does not fit even with the references alone."""
        if rows.n_rows > self.reachable_positions:
            n_held = self._max_positions - self.reachable_positions
            held = f", of which the voice's reference holds {n_held}" if n_held else ""
            shorter = "the turn's text or sound, or the reference" if n_held else "its text or sound"
            raise ContextError(
                f"a turn needs {rows.n_rows} positions, the model has {self._max_positions}{held}; shorten {shorter}"
            )
        self.reserve(rows.n_rows)
        with self._whole():
            self._append(rows, reference)

    def open_turn(self, text_ids: tuple[int, ...]) -> mx.array:
        """The text of a turn that is about to be spoken; (1, dim), the state that predicts its first frame.

        The caller has reserved room for it, a frame and the end frame.
        """
        start = self.n_positions
        with self._whole():
            hidden = self._feed_text(text_ids)
        self.turns = (*self.turns, Held(TurnRows(text_ids, None), start, reference=False))
        return hidden

    def step(self, codes: mx.array) -> mx.array:
        """One frame (1, n_codebooks) of the open turn; (1, dim), the state that predicts the next.

        Builds the graph and waits for nothing.
        """
        self._grow(1)
        hidden, self._state = self._model.backbone(self._model.embed_audio(codes[:, None]), self._state)
        self.n_positions += 1
        return hidden[:, -1]

    def close_turn(self, codes: np.ndarray) -> None:
        """Ends the last turn after `codes` (n_frames, n_codebooks), fewer or one more than were stepped through.

        No frames at all take its text out too: nothing was said. So does an interruption, since by then what the
        cache held of it may be written over.
        """
        held, before, n_positions = self.turns[-1], self.turns[:-1], self.n_positions
        self._rewind(held.start)
        self.turns = before
        if len(codes) == 0:
            return
        rows = TurnRows(held.rows.text_ids, codes)
        audio_start = held.start + len(rows.text_ids)
        n_cached = min(n_positions - audio_start, len(codes))
        with self._whole():
            self._rewind(audio_start + n_cached)
            self._feed_audio(rows.audio_rows()[n_cached:])
        self.turns = (*before, replace(held, rows=rows))

    def evaluated(self) -> list[mx.array]:
        """The state's arrays, for `mx.eval` beside what depends on them."""
        return [*self._state["keys"], *self._state["values"]]

    def _append(self, rows: TurnRows, reference: bool) -> None:
        start = self.n_positions
        self._feed_text(rows.text_ids)
        if rows.codes is not None:
            self._feed_audio(rows.audio_rows())
        self.turns = (*self.turns, Held(rows, start, reference))

    def _rebuild(self, kept: list[Held]) -> None:
        """The cache of `kept` alone; what stands before the first forgotten turn stays as it is."""
        same = 0
        while same < len(kept) and kept[same] is self.turns[same]:
            same += 1
        if same == len(self.turns):
            return
        before = self.snapshot()  # costs one copy of the cache, a little beside the prefill
        try:
            self._rewind(self.turns[same].start)
            self.turns = self.turns[:same]
            for turn in kept[same:]:
                self._append(turn.rows, turn.reference)
        except BaseException:
            self.restore(before)
            raise

    @contextmanager
    def _whole(self) -> Iterator[None]:
        """Rows written inside are all written or, where something (Ctrl-C too) comes between, none of them."""
        n_positions, turns = self.n_positions, self.turns
        try:
            yield
        except BaseException:
            self._rewind(n_positions)
            self.turns = turns
            raise

    def _feed_text(self, ids: tuple[int, ...]) -> mx.array:
        rows = mx.array([ids], mx.int32)
        return self._feed(rows, self._model.embed_text)

    def _feed_audio(self, codes: np.ndarray) -> mx.array:
        return self._feed(mx.array(codes[None]), self._model.embed_audio)

    def _feed(self, rows: mx.array, embed: Callable[[mx.array], mx.array]) -> mx.array:
        hidden = mx.zeros((1, 1, self._model.config.backbone.dim), self._model.dtype)
        self._grow(rows.shape[1])
        for start in range(0, rows.shape[1], PREFILL_ROWS):
            end = min(start + PREFILL_ROWS, rows.shape[1])
            parts = [embed(rows[:, i : min(i + EMBEDDED_ROWS, end)]) for i in range(start, end, EMBEDDED_ROWS)]
            hidden, self._state = self._model.backbone(mx.concatenate(parts, axis=1), self._state, last_only=True)
            mx.eval(hidden, self._state)
        self.n_positions += rows.shape[1]
        return hidden[:, -1]

    def _rewind(self, n_positions: int) -> None:
        self._state, self.n_positions = cache.rewind(self._state, n_positions), n_positions

    def _grow(self, n_rows: int) -> None:
        needed = self.n_positions + n_rows
        if needed > cache.capacity(self._state):
            rounded = -(-needed // GROWTH) * GROWTH
            self._state = cache.grow(self._state, max(needed, min(rounded, self._max_positions)))
