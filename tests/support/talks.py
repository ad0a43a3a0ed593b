"""Whole conversations in this process: questions in a file, a simulated clock, the answers in another file."""

import re
import threading
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from csm_mlx_app.assistant.conversation import Conversation, Parts
from csm_mlx_app.assistant.ears import Echo
from csm_mlx_app.assistant.engine import Engine
from csm_mlx_app.assistant.replies import Message, Replier
from csm_mlx_app.assistant.report import Report
from csm_mlx_app.assistant.turn_config import Eagerness, TurnConfig
from csm_mlx_app.sound.clock import SimulatedClock
from csm_mlx_app.sound.device import BLOCK_SAMPLES, RATE_HZ
from csm_mlx_app.sound.filed import FileSound

from csm_mlx.audio import read_audio, write_audio
from csm_mlx.recognize import Recognizer

DATA = Path(__file__).parents[1] / "data"
WORDS = {
    "harbour": "The harbour was quiet when the ferry came in.",
    "france": "What is the capital of France?",
    "moon": "How far away is the moon?",
    "juliet": "Who wrote Romeo and Juliet?",
}
GIVE_UP_S = 120.0
"""Real time after which a conversation hangs."""
_ALIKE = 0.6
_PART = 0.4
"""Of a clip's norm, in what was heard of it."""
_VOICED = 0.02


@cache
def clip(name: str) -> np.ndarray:
    return read_audio(DATA / f"{name}.flac", RATE_HZ)


def voiced(name: str) -> tuple[float, float]:
    """When the speech in a clip begins and ends, in seconds."""
    loud = np.flatnonzero(np.abs(clip(name)) > _VOICED) / RATE_HZ
    return float(loud[0]), float(loud[-1])


def scene(*sounds: tuple[float, str | np.ndarray], end_s: float = 0.0) -> np.ndarray:
    """Clips by name, or sound, from the seconds at which each begins; silence between them and until `end_s`."""
    parts = [(round(t_s * RATE_HZ), clip(sound) if isinstance(sound, str) else sound) for t_s, sound in sounds]
    pcm = np.zeros(max([round(end_s * RATE_HZ), *(start + len(part) for start, part in parts)]), np.float32)
    for start, part in parts:
        pcm[start : start + len(part)] += part
    return pcm


class Known:
    """A recogniser of the clips alone, by correlation: exact, and quick enough for a conversation of many turns.

    Of a clip that was heard in part it writes that part of its words.
    """

    model = "clips"

    def transcribe(self, pcm: np.ndarray, sample_rate_hz: int) -> str:
        assert sample_rate_hz == RATE_HZ
        found = [place for name in WORDS if (place := self._find(name, pcm)) is not None]
        return " ".join(words for _, words in sorted(found))

    def _find(self, name: str, pcm: np.ndarray) -> tuple[int, str] | None:
        known = clip(name)
        n = 1 << (len(known) + len(pcm)).bit_length()
        spectrum = np.fft.rfft(pcm, n) * np.conj(np.fft.rfft(known, n))
        lag = int(np.argmax(np.fft.irfft(spectrum, n)))
        lag = lag - n if lag >= len(pcm) else lag
        start, end = max(0, -lag), min(len(known), len(pcm) - lag)
        mine, theirs = known[start:end], pcm[start + lag : end + lag]
        size = float(np.linalg.norm(mine) * np.linalg.norm(theirs))
        is_much = float(np.linalg.norm(mine)) > _PART * float(np.linalg.norm(known))
        if not (is_much and size and np.abs(theirs).max() > _VOICED) or float(mine @ theirs) < _ALIKE * size:
            return None
        words, (begin_s, end_s) = WORDS[name].split(), voiced(name)
        loud = start + np.flatnonzero(np.abs(theirs) > _VOICED)[[0, -1]]
        parts = [(edge / RATE_HZ - begin_s) / (end_s - begin_s) for edge in loud]
        first, last = (round(len(words) * min(1.0, max(0.0, part))) for part in parts)
        return lag, " ".join(words[first:last])


class Microphone(FileSound):
    """Into which somebody may speak while it is heard."""

    def say(self, sound: str | np.ndarray) -> None:
        """A clip or sound, over what is in the file, 40 ms from now."""
        pcm = clip(sound) if isinstance(sound, str) else sound
        with self._lock:
            start = (self._n_read + 2) * BLOCK_SAMPLES
            self._input = np.pad(self._input, (0, max(0, start + len(pcm) - len(self._input))))
            self._input[start : start + len(pcm)] += pcm
            self._busy_s = max(self._busy_s, self.start_s + len(self._input) / RATE_HZ)


class Says:
    """A language model that gives one answer after another, one word a step; `asked` is what it was told each time.

    An exception among the answers is raised instead. on_ask: called when it is asked.
    """

    name, computes = "says", True

    def __init__(self, *answers: str | Exception, on_ask: Callable[[], None] = lambda: None):
        self._answers, self.on_ask = list(answers), on_ask
        self.asked: list[list[Message]] = []

    def reply(self, messages: Sequence[Message], notify: Callable[[], None]) -> "SaysReply":  # noqa: ARG002
        self.asked.append(list(messages))
        self.on_ask()
        return SaysReply(self._answers.pop(0) if len(self._answers) > 1 else self._answers[0])

    def warm_up(self) -> None:
        pass


class SaysReply:
    def __init__(self, answer: str | Exception):
        self._error = answer if isinstance(answer, Exception) else None
        self._words = [] if isinstance(answer, Exception) else re.findall(r"\s*\S+", answer)

    def step(self) -> str | None:
        if self._error is not None:
            raise self._error
        return self._words.pop(0) if self._words else None

    def cancel(self) -> None:
        self._words = []


class Told:
    """A sink that keeps everything."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self.spans: list[tuple[str, str, float, float]] = []

    def event(self, event: dict[str, Any]) -> None:
        self.events.append(event)

    def span(self, thread: str, name: str, start_s: float, end_s: float) -> None:
        self.spans.append((thread, name, start_s, end_s))

    def close(self) -> None:
        pass

    def of(self, event: str) -> list[dict[str, Any]]:
        return [e for e in self.events if e["event"] == event]


class StandingClock(SimulatedClock):
    """Work takes no time on it: what is told is then the same on every machine, however busy it is."""

    def now_s(self) -> float:
        return self._skipped_s


class Talk:
    """A conversation from `with` until its input has ended and all was answered (`finish`), or the block is left."""

    def __init__(
        self,
        folder: Path,
        pcm: np.ndarray | None,
        replier: Replier,
        *,
        recognizer: Recognizer | None = None,
        echo: Echo = "off",
        echo_db: float | None = None,
        eagerness: Eagerness = "high",
        sinks: Sequence[Any] = (),
        clock: SimulatedClock | None = None,
        **parts: Any,
    ):
        self.clock, self.told, self.replier = clock or SimulatedClock(), Told(), replier
        self._folder = folder
        path = None if pcm is None else folder / "in.wav"
        if path is not None and pcm is not None:
            write_audio(path, pcm, RATE_HZ)
        self.sound = Microphone(path, folder / "out.wav", self.clock, echo_db=echo_db)
        self.report = Report(self.clock.now_s, [self.told, *sinks])
        turns = TurnConfig.of(eagerness, echo_rules=echo in ("auto", "aec"))
        given = {"turns": turns, "smart_turn": None, "recording": None, "system": ""} | parts
        self.conversation = Conversation(
            Parts(
                sound=self.sound,
                report=self.report,
                load=self._load,
                recognizer=None if given.get("streams") or pcm is recognizer is None else recognizer or Known(),
                echo=echo,
                **given,
            )
        )
        self.sound.hold = lambda: self.conversation.is_busy
        self.engine: Engine

    def _load(self) -> Engine:
        import csm_mlx

        csm = csm_mlx.load()
        for _ in csm.session().speak("Hello.", max_seconds=0.4):  # compiles
            pass
        self.replier.warm_up()
        return Engine(csm, csm.session(), self.replier, 0)

    def __enter__(self) -> "Talk":
        try:
            self.engine = self.conversation.start()
        except BaseException:
            self.conversation.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.conversation.close()
        self.report.close()

    def finish(self, give_up_s: float = GIVE_UP_S) -> "Talk":
        """Until it is over, and everything is written."""
        self.until(lambda: self.conversation.is_over, give_up_s)
        self.conversation.close()
        self.report.close()
        return self

    def until(self, ready: Callable[[], bool], give_up_s: float = GIVE_UP_S) -> None:
        """Looks on from outside, without a part in the clock."""
        pause = threading.Event()
        for _ in range(round(give_up_s / 0.01)):
            if ready():
                return
            pause.wait(0.01)
        assert ready(), self.told.events[-20:]

    def until_heard(self, n_chars: int = 30) -> None:
        """So much of the answer."""
        self.until(lambda: len(self.conversation.heard) >= n_chars)

    @property
    def turns(self) -> list[dict[str, Any]]:
        return self.told.of("turn")

    def output(self) -> np.ndarray:
        """What was heard, from the beginning of the clock's second `sound.start_s` on."""
        return read_audio(self._folder / "out.wav", RATE_HZ)

    def at(self, t_s: float) -> int:
        """The sample of the output at a time of the clock."""
        return round((t_s - self.sound.start_s) * RATE_HZ)


def stretches(pcm: np.ndarray, gap_s: float = 1.0) -> list[tuple[int, int]]:
    """Where there is sound, as first and last sample: stretches with at least `gap_s` of silence between them."""
    sounding = np.flatnonzero(pcm)
    if not len(sounding):
        return []
    borders = np.flatnonzero(np.diff(sounding) > gap_s * RATE_HZ)
    starts, ends = [0, *(borders + 1)], [*borders, len(sounding) - 1]
    return [(int(sounding[a]), int(sounding[b])) for a, b in zip(starts, ends, strict=True)]
