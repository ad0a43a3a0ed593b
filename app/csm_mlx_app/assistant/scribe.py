"""Recognition by Kyutai's speech-to-text, which hears all the time: each frame's codes are made once and used three
times, for the words, for the end of the turn, and as the user's sound in CSM's context.

`StreamHearing` takes the microphone's sound in the listening thread; `Scribe` is the worker's, which owns MLX.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from csm_mlx.generate.transcribe import Stt
from csm_mlx.generate.words import Word
from csm_mlx_app.assistant import events
from csm_mlx_app.assistant.ears import KEPT_S, Ears
from csm_mlx_app.assistant.report import Report
from csm_mlx_app.assistant.transcripts import is_echo
from csm_mlx_app.sound.clock import Clock
from csm_mlx_app.sound.device import RATE_HZ

LATE_S = 2.0
"""Recognition that is so far behind is told."""
_VOICE = 0.5
_EARLY_S = 0.2
"""By which the model may place a word too early: one that ends so shortly before a turn's sound still is of it."""


@dataclass(frozen=True, eq=False)
class Heard:
    """A frame (frame_size,) of the microphone's sound, which ends at `t_s`."""

    pcm: np.ndarray
    t_s: float
    is_voice: bool | None = None
    """Whether somebody speaks in it; None where nobody knows."""


class StreamHearing:
    """In place of `Hearing`, for a recognizer that is the worker's."""

    is_busy = False
    """What it was asked waits with the worker, which is busy then."""

    def __init__(self, ears: Ears, tell: Callable[[object], None], frame_size: int):
        """tell: takes what the worker is to do."""
        self._ears, self._tell, self._frame_size = ears, tell, frame_size
        self._waiting = np.zeros(0, np.float32)
        ears.on_sound = self.hear

    def hear(self, pcm: np.ndarray, t_s: float) -> None:
        """Sound that ends at `t_s`; from the listening thread."""
        self._waiting = np.concatenate([self._waiting, pcm])
        while len(self._waiting) >= self._frame_size:
            frame, self._waiting = self._waiting[: self._frame_size], self._waiting[self._frame_size :]
            is_voice = self._ears.probability >= _VOICE  # loudness alone would take a fan for a voice
            self._tell(Heard(frame, t_s - len(self._waiting) / RATE_HZ, is_voice))

    def submit(self, action: events.Transcribe) -> None:
        """From any thread."""
        self._tell(action)

    def audio(self, start_s: float, end_s: float) -> np.ndarray:
        return self._ears.audio(start_s, end_s)

    def close(self) -> None:
        """Nothing runs here."""


class _Frame(NamedTuple):
    end_s: float
    codes: mx.array


class Scribe:
    """What was heard and read of it, by the clock of the conversation. For the thread that owns MLX."""

    def __init__(self, stt: Stt, *, n_codebooks: int | None):
        """n_codebooks: of the codes that CSM takes, where its codec is this one; None where it has another."""
        self._session, self._n_codebooks = stt.session(), n_codebooks
        self.frame_size = stt.frame_size
        self._frame_s = stt.frame_size / stt.sample_rate_hz
        self._frames: deque[_Frame] = deque(maxlen=round(KEPT_S / self._frame_s))
        self._words: deque[Word] = deque(maxlen=1000)
        self._growing: Word | None = None
        self._start_s = 0.0
        """Of the words' own time, on the clock."""

    @property
    def shares_codec(self) -> bool:
        """Whether its codes are CSM's too."""
        return self._n_codebooks is not None

    @property
    def now_s(self) -> float:
        """How far what was heard has been read."""
        return self._start_s + self._session.now_s

    def hear(self, heard: Heard) -> bool:
        """One frame; whether the model has heard that the turn is over."""
        codes = self._session.encode(heard.pcm)[0]
        self._frames.append(_Frame(heard.t_s, codes))
        # The words' times count frames; a gap in the microphone's sound moves all later ones.
        self._start_s = heard.t_s - self._session.stats.n_frames * self._frame_s - self._frame_s
        step = self._session.step_codes(codes, is_voice=heard.is_voice)
        self._read(step.words)
        return step.pause

    def text(self, start_s: float, end_s: float, *, final: bool) -> str:
        """The words from `start_s` to `end_s`. final: of all that was heard until now, for which silence is pushed
        through the model; else of what it has written so far."""
        if final:
            for step in self._session.flush():
                self._read(step.words)
        words = [*self._words, *([self._growing] if self._growing else [])]
        return " ".join(w.text for w in words if self._lies_in(w, start_s, end_s))

    def codes(self, start_s: float, end_s: float) -> np.ndarray | None:
        """Of the frames that lie between two times, at least by half: (n_frames, n_codebooks) int32. None where CSM's
        codec is another, or they are forgotten."""
        if self._n_codebooks is None:
            return None
        half_s = self._frame_s / 2
        found = [f.codes for f in self._frames if start_s <= f.end_s - half_s < end_s]
        return np.array(mx.stack(found)[:, : self._n_codebooks]) if found else None

    def _read(self, words: tuple[Word, ...]) -> None:
        for word in words:
            placed = _moved(word, self._start_s)
            if word.final:
                self._words.append(placed)
                self._growing = None
            else:
                self._growing = placed

    def _lies_in(self, word: Word, start_s: float, end_s: float) -> bool:
        return word.said_s > start_s - _EARLY_S and word.start_s < end_s


class Desk:
    """Where the worker's mail for its `Scribe` is dealt with, and the answers are posted."""

    def __init__(
        self,
        scribe: Scribe,
        post: Callable[[events.Event], None],
        clock: Clock,
        report: Report,
        speaking_text: Callable[[], str],
    ):
        """speaking_text: what the assistant is saying, by which an echo is known."""
        self.scribe = scribe
        self._post, self._clock, self._report, self._speaking_text = post, clock, report, speaking_text
        self._is_late = False
        self._asked: list[events.Transcribe] = []
        """What somebody said over a reply: it is told once it is read, for silence pushed in now would cut a word."""

    def handle(self, message: Heard | events.Transcribe) -> None:
        if isinstance(message, Heard):
            self._hear(message)
        elif message.final or not self._speaking_text():
            self._asked = []
            self._answer(message)
        else:
            self._asked.append(message)

    def _hear(self, heard: Heard) -> None:
        started_s = self._clock.now_s()
        is_over = self.scribe.hear(heard)
        now_s = self._clock.now_s()
        self._report.span("worker", "listening", started_s, now_s)
        self._watch(now_s - heard.t_s)
        if is_over:
            self._post(events.Finished(now_s))
        while self._asked and self.scribe.now_s >= self._asked[0].end_s:
            self._answer(self._asked.pop(0))

    def _answer(self, message: events.Transcribe) -> None:
        started_s = self._clock.now_s()
        text = self.scribe.text(message.start_s, message.end_s, final=message.final)
        now_s, echo = self._clock.now_s(), is_echo(text, self._speaking_text())
        self._report.span("worker", "recognition", started_s, now_s, message.turn)
        self._post(events.Transcribed(now_s, message.turn, message.revision, text, message.final, echo))

    def _watch(self, behind_s: float) -> None:
        if behind_s > LATE_S and not self._is_late:
            self._is_late = True
            self._report.note(
                f"recognition is {behind_s:.0f} s behind: this machine is too slow for it beside the rest; "
                "a q4 checkpoint is faster, and --asr tiny.en leaves it to the CPU"
            )


def _moved(word: Word, by_s: float) -> Word:
    stop_s = None if word.stop_s is None else word.stop_s + by_s
    return Word(text=word.text, start_s=word.start_s + by_s, stop_s=stop_s)
