"""Words with times out of text ids, and what is to be noticed while they come: pauses, loops, and a model gone mute.

All of it is pure. The rules of words are those of Kyutai's server (moshi-core's `asr.rs`): pads and word marks end a
word, the mark before a word is where it starts, and the mark after it where it stops; text follows the sound by the
delay it was trained with.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from csm_mlx.config import MoshiConfig

Decode = Callable[[Sequence[int]], str]
"""Text of a word's ids."""

MAX_LAST_WORD_S = 1.0
"""A word that no mark follows is not longer than this, or than its ids took: the sound may end in silence."""
MAX_WORD_IDS = 100
"""A word that is longer is told in parts, so that a session has no end even where a word has none."""
QUIET_S = 2.0
"""Without a voice for so long, whoever spoke has stopped."""


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

    @property
    def said_s(self) -> float:
        """When it has been said, at the latest. Its time stops where the next word begins, so that pauses are in it."""
        longest_s = self.start_s + 0.4 + 0.08 * len(self.text)
        return longest_s if self.stop_s is None else min(self.stop_s, longest_s)


class WordClock:
    """Makes words with times out of text ids, one per frame; one per conversation.

    Times are of the sound alone: frames of silence that were pushed in between take none.
    """

    def __init__(self, config: MoshiConfig, decode: Decode, *, delay_frames: int, frame_rate_hz: float):
        self._pad, self._mark, self._decode = config.text_pad_id, config.text_word_id, decode
        self._delay_frames, self._frame_rate_hz = delay_frames, frame_rate_hz
        self._n_steps = 1  # the one that a session begins with
        self._n_heard = 0
        self._positions = self._standing_at(0)
        """How much had been heard at each of the last steps, as far back as the delay reaches."""
        self._ids: list[int] = []
        self._open: Word | None = None
        self._whole_s = self._last_stop_s = 0.0

    @property
    def now_s(self) -> float:
        """Where in the sound the text is; it never goes back."""
        n_frames = self._positions[0] + (self._delay_frames == 0)
        return max(self._last_stop_s, n_frames / self._frame_rate_hz)

    @property
    def n_growing(self) -> int:
        """Ids of the word that may still grow."""
        return len(self._ids)

    def is_text(self, token: int) -> bool:
        """Whether an id is part of a word."""
        return token not in (self._pad, self._mark)

    def step(self, token: int, *, is_sound: bool = True) -> tuple[Word, ...]:
        """The words that one more id changes: begun, grown, whole or ended.

        is_sound: False where the frame it came with was pushed in and is no part of the sound.
        """
        self._n_steps += 1
        self._n_heard += is_sound
        self._positions.append(self._n_heard)
        if self._n_steps < self._delay_frames:
            return ()
        if self.is_text(token):
            if len(self._ids) == MAX_WORD_IDS:
                self._whole()
            closed = self._stop(self.now_s) if self._open else ()  # there was no mark between them
            self._ids.append(token)
            return (*closed, *self._told(self._word()))
        whole = self._whole()
        return self._stop(self.now_s) if token == self._mark else whole

    def end(self) -> tuple[Word, ...]:
        """The last word, if it has no end yet: it ends here, unless that is long ago."""
        self._whole()
        limit_s = self.now_s if self._open is None else max(self._whole_s, self._open.start_s + MAX_LAST_WORD_S)
        return self._stop(min(self.now_s, limit_s))

    def restart(self, n_frames: int) -> None:
        """A model that begins anew hears the last `n_frames` of the sound again. The last word must have ended."""
        self._n_steps = 1
        self._n_heard = max(0, self._n_heard - n_frames)
        self._positions = self._standing_at(self._n_heard)

    def _standing_at(self, n_heard: int) -> deque[int]:
        n = max(1, self._delay_frames)
        return deque([n_heard] * n, maxlen=n)

    def _whole(self) -> tuple[Word, ...]:
        """The word whose last id was the one before, if there is one."""
        if not self._ids:
            return ()
        word, self._ids = self._word(), []
        if word.text:
            self._open, self._whole_s = word, self.now_s
        return self._told(word)

    def _stop(self, stop_s: float) -> tuple[Word, ...]:
        """The whole word, if there is one, which stops here; and here the next one starts."""
        self._last_stop_s = stop_s
        if self._open is None:
            return ()
        word, self._open = replace(self._open, stop_s=stop_s), None
        return (word,)

    def _word(self) -> Word:
        return Word(text=self._decode(self._ids).strip(), start_s=self._last_stop_s)

    @staticmethod
    def _told(word: Word) -> tuple[Word, ...]:
        """Control tokens and spaces alone are no word; a character whose bytes are not all there is left out."""
        text = word.text.rstrip("\ufffd")
        return (replace(word, text=text),) if text else ()


@dataclass(frozen=True, kw_only=True)
class PauseRule:
    """When pauses count as the end of a turn: single frames spike on digits and breaths, and so do the first ones."""

    head: int = 2
    """Of four: 0.5, 1, 2 and 3 s ahead."""
    threshold: float = 0.5
    hold_frames: int = 3
    warm_up_frames: int = 12


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

    def warm_up(self) -> None:
        """The model begins anew: its first frames do not count again."""
        self._n_frames = self._n_held = 0


@dataclass(frozen=True, kw_only=True)
class GuardRule:
    """When a model is taken to be stuck, and its memory is emptied."""

    mute_s: float = 4.0
    """Of a voice without text; twice as long each time that it did not help, up to 16 times."""
    max_loop_words: int = 8
    """Of a phrase that is said over and over: six times up to three words, three times from four on."""
    max_word_ids: int = 40
    """Of a word that never ends."""


GUARD = GuardRule()


@dataclass
class LoopWatch:
    """Notices that the same words come over and over."""

    rule: GuardRule = field(default_factory=GuardRule)
    _words: deque[str] = field(default_factory=deque)

    def step(self, words: Sequence[Word], n_growing: int) -> bool:
        """Whether the words of one more frame make a loop; n_growing: ids of the word that is being said."""
        rule, found = self.rule, n_growing > self.rule.max_word_ids
        for word in words:
            if word.final and (text := "".join(c for c in word.text.casefold() if c.isalnum())):
                self._words.append(text)
                found |= any(self._repeats(n) for n in range(1, rule.max_loop_words + 1))
                while len(self._words) > 6 * rule.max_loop_words:
                    self._words.popleft()
        if found:
            self._words.clear()
        return found

    def _repeats(self, n: int) -> bool:
        """Whether the last words are a phrase of `n`, over and over."""
        n_times = 6 if n < 4 else 3
        words = list(self._words)[-n * n_times :]
        return len(words) == n * n_times and words[n:] == words[:-n]


class MuteWatch:
    """Notices that somebody speaks and no text comes."""

    def __init__(self, rule: GuardRule, *, delay_frames: int, frame_rate_hz: float):
        self._least = self._limit = round(rule.mute_s * frame_rate_hz) + delay_frames
        self._quiet_frames = round(QUIET_S * frame_rate_hz)
        self._n_voiced = self._n_quiet = 0
        self.n_since_text = 0
        """Frames since the last text."""

    def step(self, *, is_text: bool, is_voice: bool | None) -> bool:
        """Whether it is mute; is_voice: None where nobody knows, which is never mute."""
        self.n_since_text += 1
        if is_text:
            self.n_since_text = self._n_voiced = self._n_quiet = 0
            self._limit = self._least
            return False
        self._n_quiet = 0 if is_voice else self._n_quiet + 1
        self._n_voiced = 0 if self._n_quiet >= self._quiet_frames else self._n_voiced + bool(is_voice)
        if self._n_voiced < self._limit:
            return False
        self._n_voiced, self._limit = 0, min(2 * self._limit, 16 * self._least)
        return True
