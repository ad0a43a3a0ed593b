"""What one frame brings to a stream of speech-to-text: the words, the pauses, and whether the model is stuck."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import mlx.core as mx
import numpy as np

from csm_mlx.config import MoshiConfig
from csm_mlx.generate.duplex import TokenSession
from csm_mlx.generate.words import Decode, GuardRule, LoopWatch, MuteWatch, PauseRule, PauseWatch, Word, WordClock
from csm_mlx.models.moshi import MoshiModel

SUFFIX_S = 1.0
"""Silence after a whole sound, beyond the delay, as in Kyutai's scripts."""
MAX_MORE_S = 1.0
"""How much longer than that silence goes on while a word still grows."""
LAST_WORD_S = 0.5
"""Of the sound before the last text: what a model that went mute does not hear again, as it was told."""

Stuck = Literal["loop", "mute"]


@dataclass(frozen=True, kw_only=True)
class SttStep:
    """What one frame brought."""

    words: tuple[Word, ...] = ()
    pauses: tuple[float, ...] = ()
    """Probability, by each pause head, that nobody speaks; () for a model without them."""
    pause: bool = False
    """Whether those say, for long enough and after some word, that the turn is over."""
    tokens: tuple[int, ...] = ()
    """The text id itself, after those of frames that were heard before it: a silent prefix, and again what a model that
    was stuck did not tell. () where no frame was heard."""
    stuck: Stuck | None = None
    """Why the model's memory was emptied, if it was: it said the same over and over, or nothing while a voice spoke."""


@dataclass(frozen=True)
class SttStats:
    """What transcribing cost; times of the monotonic clock on this machine."""

    n_frames: int
    """Of the sound."""
    sound_s: float
    work_s: float
    n_more_frames: int
    """Heard besides: silence that was pushed in, and what was heard again."""
    n_restarts: int
    """Times that the model was stuck."""

    @property
    def real_time_factor(self) -> float | None:
        """Seconds of work per second of sound; below 1 is faster than real time."""
        return self.work_s / self.sound_s if self.sound_s else None


@dataclass(frozen=True, eq=False)
class Transcript:
    """Of a whole sound."""

    words: tuple[Word, ...]
    tokens: np.ndarray
    """(n,) int32, the text ids of all frames that were heard, in order."""
    stats: SttStats

    @property
    def text(self) -> str:
        return " ".join(word.text for word in self.words)

    @classmethod
    def of(cls, steps: Iterable[SttStep], stats: SttStats) -> "Transcript":
        """What the steps of one sound told."""
        steps = list(steps)
        words = tuple(word for step in steps for word in step.words if word.final)
        return cls(words, np.array([token for step in steps for token in step.tokens], np.int32), stats)


class Frame(NamedTuple):
    """What the model hears next."""

    codes: np.ndarray | mx.array
    """(n_heard,)"""
    kind: Literal["sound", "silence", "again"]
    is_voice: bool | None = None


class Reader:
    """Makes the steps of one stream out of what its model writes; holds no array, so that a batch has one per row."""

    def __init__(
        self,
        config: MoshiConfig,
        decode: Decode,
        pause: PauseRule,
        guard: GuardRule | None,
        *,
        delay_frames: int,
        frame_rate_hz: float,
    ):
        """guard: None looks away."""
        self._delay_frames, self._guards, guard = delay_frames, guard is not None, guard or GuardRule()
        self.clock = WordClock(config, decode, delay_frames=delay_frames, frame_rate_hz=frame_rate_hz)
        self._pauses, self._loop = PauseWatch(pause), LoopWatch(guard)
        self._mute = MuteWatch(guard, delay_frames=delay_frames, frame_rate_hz=frame_rate_hz)
        self._last_word_frames = math.ceil(LAST_WORD_S * frame_rate_hz)
        self.max_again = round(guard.mute_s * frame_rate_hz) + 2 * delay_frames
        """Frames of the sound that a model that was stuck may have to hear again."""

    def step(self, frame: Frame, token: int, pauses: tuple[float, ...]) -> SttStep:
        """What a frame brought; `stuck` asks for `restart`."""
        words = self.clock.step(token, is_sound=frame.kind != "silence")
        pause, stuck, is_loop = False, None, self._loop.step(words, self.clock.n_growing)
        if frame.kind == "sound":
            pause = self._pauses.step(pauses, word=bool(words))
            is_mute = self._mute.step(is_text=self.clock.is_text(token), is_voice=frame.is_voice)
            stuck = "loop" if is_loop else "mute" if is_mute else None
        stuck = stuck if self._guards else None
        return SttStep(words=words, pauses=pauses, pause=pause, tokens=(token,), stuck=stuck)

    def restart(self, stuck: Stuck, n_kept: int) -> tuple[int, tuple[Word, ...]]:
        """How many of the last `n_kept` frames a model that begins anew hears again, and the word that ends here.

        That is what was not told: all since the last text; or after a loop what the delay holds.
        """
        untold = self._delay_frames
        if stuck == "mute":
            untold = self._mute.n_since_text + max(0, self._delay_frames - self._last_word_frames)
        words, n_again = self.clock.end(), min(untold, n_kept)
        self.clock.restart(n_again)
        self._pauses.warm_up()
        return n_again, words


class Queued(NamedTuple):
    """What a model writes, on its way."""

    text: mx.array
    """(B,) int32"""
    pauses: mx.array | None
    """(B, n_extra_heads)"""

    def read(self) -> tuple[list[int], list[tuple[float, ...]]]:
        """The text id and the pauses of each row; waits for them."""
        tokens = np.array(self.text).tolist()
        pauses = [()] * len(tokens) if self.pauses is None else [tuple(row) for row in np.array(self.pauses).tolist()]
        return tokens, pauses


def queue(model: MoshiModel, session: TokenSession, frame: np.ndarray | mx.array) -> Queued:
    """Has a session hear a frame and waits for nothing. `AudioError` as `TokenSession.step`."""
    text, pauses = session.step(frame).text, None
    if model.config.n_extra_heads:
        logits = model.extra_logits(session.state["hidden"]).astype(mx.float32)
        pauses = mx.softmax(logits, axis=-1)[..., 0]
        mx.async_eval(text, pauses)
    return Queued(text, pauses)


def merged(steps: Iterable[SttStep]) -> SttStep:
    """The last one, with what the others told."""
    steps = list(steps)
    words = tuple(word for step in steps for word in step.words)
    tokens = tuple(token for step in steps for token in step.tokens)
    return replace(steps[-1], words=words, tokens=tokens)
