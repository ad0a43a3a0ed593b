"""Speech to text as it is spoken: the words, their times and the pauses in what Kyutai's models write frame by frame.

The rules are those of Kyutai's server (moshi-core's `asr.rs`): pads and word marks end a word, the mark before a word
is where it starts, and the mark after it where it stops; text follows the sound by the delay it was trained with.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import mlx.core as mx
import numpy as np

from csm_mlx.config import MoshiConfig, SamplingConfig
from csm_mlx.errors import ConfigError
from csm_mlx.generate.duplex import TokenSession
from csm_mlx.models.moshi import MoshiModel

Decode = Callable[[Sequence[int]], str]
"""Text of a word's ids."""

GREEDY = SamplingConfig(temperature=0.0)


@dataclass(frozen=True, kw_only=True)
class Word:
    """What is known of a word: it is told again, with `final`, once it will not change."""

    text: str
    start_s: float
    stop_s: float | None = None
    """None until the mark after it."""

    @property
    def final(self) -> bool:
        return self.stop_s is not None


@dataclass(frozen=True, kw_only=True)
class SttStep:
    """What one frame brought."""

    words: tuple[Word, ...] = ()
    pauses: tuple[float, ...] = ()
    """Probability, by each pause head, that nobody speaks; () for a model without them."""
    pause: bool = False
    """Whether those say, for long enough and after some word, that the turn is over."""
    token: int | None = None
    """The text id itself; None where no frame was heard."""


@dataclass(frozen=True, kw_only=True)
class PauseRule:
    """When pauses count as the end of a turn: single frames spike on digits and breaths, and so do the first ones."""

    head: int = 2
    """Of four: 0.5, 1, 2 and 3 s ahead."""
    threshold: float = 0.5
    hold_frames: int = 3
    warm_up_frames: int = 12


class WordClock:
    """Makes words with times out of text ids, one per frame; pure, and one per conversation."""

    def __init__(self, config: MoshiConfig, decode: Decode, *, delay_frames: int, frame_rate_hz: float):
        self._pad, self._mark, self._decode = config.text_pad_id, config.text_word_id, decode
        self._delay_frames, self._frame_rate_hz = delay_frames, frame_rate_hz
        self._n_steps = 1  # the one that a session begins with
        self._ids: list[int] = []
        self._open: Word | None = None
        self._last_stop_s = 0.0

    @property
    def now_s(self) -> float:
        """Where in the sound the text is."""
        return max(0.0, (self._n_steps - self._delay_frames) / self._frame_rate_hz)

    def step(self, token: int) -> tuple[Word, ...]:
        """The words that one more id changes: begun, grown, whole or ended."""
        self._n_steps += 1
        if self._n_steps < self._delay_frames:
            return ()
        if token not in (self._pad, self._mark):
            closed = self._stop() if self._open else ()  # there was no mark between them
            self._ids.append(token)
            return (*closed, self._word())
        whole = self._whole()
        return self._stop() if token == self._mark else whole

    def end(self) -> tuple[Word, ...]:
        """The last word, if it has no end yet: it ends here."""
        self._whole()
        return self._stop()

    def _whole(self) -> tuple[Word, ...]:
        """The word whose last id was the one before, if there is one."""
        if not self._ids:
            return ()
        self._open, self._ids = self._word(), []
        return (self._open,)

    def _stop(self) -> tuple[Word, ...]:
        """The whole word, if there is one, which stops here; and here the next one starts."""
        self._last_stop_s = self.now_s
        if self._open is None:
            return ()
        word, self._open = replace(self._open, stop_s=self.now_s), None
        return (word,)

    def _word(self) -> Word:
        return Word(text=self._decode(self._ids).strip(), start_s=self._last_stop_s)


@dataclass
class PauseWatch:
    """Applies a `PauseRule` to the pauses of each frame."""

    rule: PauseRule = field(default_factory=PauseRule)
    _n_frames: int = 0
    _n_held: int = 0
    _any_word: bool = False

    def step(self, pauses: Sequence[float], *, word: bool) -> bool:
        """Whether the turn is over; word: whether this frame brought one, which begins a turn and denies a pause."""
        self._n_frames += 1
        self._any_word |= word
        is_pause = len(pauses) > self.rule.head and pauses[self.rule.head] > self.rule.threshold
        self._n_held = self._n_held + 1 if is_pause and not word else 0
        is_over = self._n_held >= self.rule.hold_frames and self._n_frames > self.rule.warm_up_frames
        if is_over and self._any_word:
            self._any_word = False
            return True
        return False


class SttSession:
    """One stream of sound becoming text. It has no end, and many may share a model."""

    def __init__(
        self,
        model: MoshiModel,
        decode: Decode,
        *,
        delay_s: float,
        frame_rate_hz: float,
        sampling: SamplingConfig = GREEDY,
        pause: PauseRule | None = None,
        seed: int = 0,
    ):
        """delay_s: by which text follows sound, `audio_delay_seconds` of the model's `stt_config`.

        frame_rate_hz: the codec's. `ConfigError` for a model that speaks.
        """
        c = model.config
        if c.n_generated:
            raise ConfigError(f"this model says {c.n_generated} codebooks; transcribing needs one that says text alone")
        self._model = model
        self._session = TokenSession(model, seed=seed, text=sampling)
        self._flush_frames = math.ceil(delay_s * frame_rate_hz) + 1
        delay_frames = int(delay_s * frame_rate_hz)
        self._clock = WordClock(c, decode, delay_frames=delay_frames, frame_rate_hz=frame_rate_hz)
        self._watch = PauseWatch(pause or PauseRule())

    def step(self, frame: np.ndarray | mx.array) -> SttStep:
        """Hear one frame (n_heard,) of codes; waits for its text id. `AudioError` for codes of another shape."""
        text = self._session.step(frame).text
        pauses: tuple[float, ...] = ()
        if self._model.config.n_extra_heads:
            logits = self._model.extra_logits(self._session.state["hidden"])[0].astype(mx.float32)
            pauses = tuple(np.array(mx.softmax(logits, axis=-1)[:, 0]).tolist())
        token = int(np.array(text)[0])
        words = self._clock.step(token)
        return SttStep(words=words, pauses=pauses, pause=self._watch.step(pauses, word=bool(words)), token=token)

    def flush(self, silence: np.ndarray | mx.array) -> list[SttStep]:
        """Push out what the delay still holds, faster than it would come; the last word ends with it.

        silence: one frame (n_heard,) of codes in which nobody speaks; `delay_s` of it is heard.
        """
        steps = [self.step(silence) for _ in range(self._flush_frames)]
        return [*steps, SttStep(words=self._clock.end())]
