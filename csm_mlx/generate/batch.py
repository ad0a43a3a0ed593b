"""Many texts at once: the rows of one batch, each of which says what it would say alone.

A frame reads every weight in thousands of small operations, whether one utterance asks for it or eight. So utterances
share frames: whoever ends leaves the batch, and the next text takes its place, however long the others still are.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import mlx.core as mx
import numpy as np

from csm_mlx.errors import CsmError
from csm_mlx.frames import is_end
from csm_mlx.generate.context import GROWTH
from csm_mlx.generate.frame import sample_frame
from csm_mlx.generate.speech import Guards, Prefilled, Stop
from csm_mlx.generate.tail import Tail
from csm_mlx.models.csm import CsmModel
from csm_mlx.models.mimi import Mimi, State
from csm_mlx.nn import cache
from csm_mlx.sampling import Sampler

if TYPE_CHECKING:
    from csm_mlx.generate.session import CsmSession

DECODED_FRAMES = 16
"""A row's frames decoded at once, in far fewer operations than one by one. A guard that listens may come so many frames
late; those are dropped."""


@dataclass(frozen=True, eq=False)
class Utterance:
    """One text of a batch, spoken to its end."""

    index: int
    """Of its text, from 0."""
    text: str
    pcm: np.ndarray
    """(n_samples,) float32 in [-1, 1]: all that `Speech` would hand out."""
    codes: np.ndarray
    """(n_frames, n_codebooks) int32."""
    stop: Stop
    """Why it ended; `closed` where there is an error."""
    error: CsmError | None
    """Why this text has no sound; None where it has."""


def utterances(
    session: "CsmSession",
    model: CsmModel,
    codec: Mimi,
    sampler: Sampler,
    texts: Iterator[str],
    *,
    batch_size: int,
    speaker: int,
    max_seconds: float | None,
) -> Iterator[Utterance]:
    """Each text as the session would say it next, from where the session stands now; in the order in which they end.

    While the device computes a frame, Python builds the graph of the next one, before it knows whose turns end: such a
    row goes on for that one frame, unheard. A text is taken when there is a row for it.
    """
    snapshot = session.snapshot()

    def prefilled(index: int, text: str) -> _Row:
        session.rewind(snapshot)
        start = session.speak(text, speaker, max_seconds=max_seconds).prefilled()
        return _Row(index, text, start, Guards(text, sampler.config, codec.config, start.limit), codec)

    lanes, door = Lanes(model, sampler), _Door(texts, prefilled, model.config.n_codebooks)
    rows: list[_Row] = []
    drawn: mx.array | None = None  # the frame of those rows that is on its way, (B, n_codebooks)
    while rows or not door.is_closed:
        kept = [i for i, row in enumerate(rows) if row.goes_on]
        new = door.admit(batch_size - len(kept))
        following = [rows[i] for i in kept] + new
        built = lanes.build(kept, [row.begin() for row in new]) if following else None
        for row in following:
            row.n_drawn += 1
        if drawn is not None:
            for row, frame in zip(rows, np.array(drawn), strict=True):
                try:
                    if (again := row.take(frame)) is not None:
                        door.readmit(again)
                except CsmError as error:
                    door.refuse(row.index, row.text, error)
        mx.async_eval([row.decode() for row in rows if row.is_due])
        heard, rows, drawn = rows, [], None
        if not all(row.is_over for row in following):  # else what was built is never computed
            lanes.queue()
            rows, drawn = following, built
        yield from door.refused()
        for row in heard:
            if row.hear():
                yield row.utterance()


class Lanes:
    """The backbone's caches, the keys and the last frames of many utterances, in one batch. Builds graphs and waits for
    nothing."""

    def __init__(self, model: CsmModel, sampler: Sampler):
        self._model, self._sampler = model, sampler
        self._state: cache.CacheState | None = None
        self._codes = self._keys = mx.zeros((0, 2))

    def build(self, kept: list[int], new: Sequence[Prefilled]) -> mx.array:
        """The frame that follows in the rows `kept` of the last one, and the first of `new` ones, which come behind
        them; codes (B, n_codebooks)."""
        states, hidden, keys = [row.state for row in new], [row.hidden for row in new], [row.key[None] for row in new]
        has_left = len(kept) < len(self._codes)
        if kept:
            state, hidden_kept, keys_kept = self._stepped(kept)
            states, hidden, keys = [state, *states], [hidden_kept, *hidden], [keys_kept, *keys]
        # Who left may have been the longest: then the others have padding that nobody needs.
        self._state = cache.aligned(states, GROWTH) if new or has_left else states[0]
        pairs = mx.vmap(mx.random.split)(mx.concatenate(keys))
        self._keys = pairs[:, 0]
        self._codes = sample_frame(self._model, mx.concatenate(hidden), self._sampler, pairs[:, 1])
        return self._codes

    def queue(self) -> None:
        """Has what was built last computed."""
        mx.async_eval(self.evaluated())

    def evaluated(self) -> list[mx.array]:
        """All that was built last, for `mx.eval`."""
        assert self._state is not None
        return [self._codes, self._keys, *self._state["keys"], *self._state["values"]]

    def _stepped(self, kept: list[int]) -> tuple[cache.CacheState, mx.array, mx.array]:
        """The rows `kept` after their last frame: their caches, the states that predict the next, and their keys."""
        assert self._state is not None
        state, codes, keys = self._state, self._codes, self._keys
        if len(kept) < len(codes):
            index = mx.array(kept, mx.int32)
            state, codes, keys = cache.chosen(state, kept), codes[index], keys[index]
        n_slots = cache.capacity(state)
        if state["offset"] == n_slots:
            state = cache.grow(state, n_slots + GROWTH)
        hidden, state = self._model.backbone(self._model.embed_audio(codes[:, None]), state)
        return state, hidden[:, -1], keys


class _Row:
    """One utterance in the batch, from its prefill on."""

    def __init__(self, index: int, text: str, start: Prefilled, guards: Guards, codec: Mimi):
        self.index, self.text = index, text
        self.n_drawn = 0
        """Frames asked for, the one on its way included."""
        self.is_over = False
        """It wants no more frames."""
        self._start: Prefilled | None = start  # until its first frame is said: an end frame begins again
        self._guards, self._codec = guards, codec
        self._tail = Tail(codec.config.sample_rate_hz)
        self._n_taken = 0
        self._frames: list[np.ndarray] = []  # taken and not yet heard
        self._decoded: mx.array | None = None  # (1, n_samples, 1) of those, where decoded
        self._codec_state: State | None = None
        self._pieces: list[np.ndarray] = []

    @property
    def goes_on(self) -> bool:
        """Whether there may be a frame after the one on its way."""
        return not self.is_over and self.n_drawn < self._guards.limit

    def begin(self) -> Prefilled:
        assert self._start is not None
        return self._start

    def take(self, frame: np.ndarray) -> "_Row | None":
        """The frame (n_codebooks,) that was on its way; where the first one is to be drawn again, the row that does so
        in this one's place. GenerationError when that was done often enough."""
        if self.is_over:
            return None
        if self._start is not None:
            start, self._start, self.is_over = self._start, None, True
            if self._guards.retries(frame):
                start = start._replace(key=mx.random.split(start.key)[0])
                return _Row(self.index, self.text, start, self._guards, self._codec)
        self._frames.append(frame)
        self._n_taken += 1
        self.is_over = is_end(frame) or self._n_taken == self._guards.limit
        return None

    @property
    def is_due(self) -> bool:
        """Whether its frames are to be heard now."""
        return len(self._frames) >= DECODED_FRAMES or (self.is_over and bool(self._frames))

    def decode(self) -> list[mx.array]:
        """The graph of the sound of its frames, for the device."""
        n_said = len(self._frames) - is_end(self._frames[-1])
        if n_said:
            codes = mx.array(np.stack(self._frames[:n_said])[None])
            self._decoded, self._codec_state = self._codec.decode(codes, self._codec_state)
        return [] if self._decoded is None else [self._decoded]

    def hear(self) -> bool:
        """Hands its frames to the guards one by one, as `Speech` does; whether it is finished with that."""
        if not self.is_due:
            return False
        sound = np.zeros(0, np.float32) if self._decoded is None else np.array(self._decoded, np.float32).reshape(-1)
        sounds = iter(sound.reshape(-1, self._codec.config.frame_size))
        for frame in self._frames:
            if not self._guards.take(frame):
                break
            pcm = next(sounds)
            self._pieces.append(self._tail.push(pcm))
            self._guards.hear(pcm)
            if self._guards.stop is not None:
                break
        self._frames, self._decoded = [], None
        if self._guards.stop is None:
            return False
        self.is_over = True
        self._pieces.append(self._tail.finish())
        return True

    def utterance(self) -> Utterance:
        """All of it, once it is finished."""
        assert self._guards.stop is not None
        pcm = np.clip(np.concatenate(self._pieces), -1.0, 1.0)
        return Utterance(self.index, self.text, pcm, np.stack(self._guards.codes), self._guards.stop, None)


class _Door:
    """Where texts become rows, or errors."""

    def __init__(self, texts: Iterator[str], prefilled: Callable[[int, str], _Row], n_codebooks: int):
        self._texts, self._prefilled, self._n_codebooks = enumerate(texts), prefilled, n_codebooks
        self._has_texts = True
        self._returning: list[_Row] = []
        self._refused: list[Utterance] = []

    @property
    def is_closed(self) -> bool:
        """Whether nobody will come any more."""
        return not (self._has_texts or self._returning)

    def admit(self, n_free: int) -> list[_Row]:
        """At most so many rows; takes no more texts than that."""
        rows, self._returning = self._returning[:n_free], self._returning[n_free:]
        n_wanted = n_free - len(rows) if self._has_texts else 0
        n_taken = 0
        for index, text in islice(self._texts, n_wanted):
            n_taken += 1
            try:
                rows.append(self._prefilled(index, text))
            except CsmError as error:
                self.refuse(index, text, error)
        self._has_texts = self._has_texts and n_taken == n_wanted
        return rows

    def readmit(self, row: _Row) -> None:
        """A row that begins again."""
        self._returning.append(row)

    def refuse(self, index: int, text: str, error: CsmError) -> None:
        pcm, codes = np.zeros(0, np.float32), np.zeros((0, self._n_codebooks), np.int32)
        self._refused.append(Utterance(index, text, pcm, codes, "closed", error))

    def refused(self) -> list[Utterance]:
        """Those refused since the last call."""
        refused, self._refused = self._refused, []
        return refused
