"""What `csm transcribe` does between its flags and its words."""

import math
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np

from csm_mlx import SttSession
from csm_mlx.audio import read_audio
from csm_mlx.errors import AudioError
from csm_mlx.generate.reader import SttStats, SttStep
from csm_mlx_app import console, loading
from csm_mlx_app.codes import write_tensors, write_text
from csm_mlx_app.sound.clock import RealClock
from csm_mlx_app.sound.device import RATE_HZ
from csm_mlx_app.sound.devices import find_device
from csm_mlx_app.sound.live import LiveSound
from csm_mlx_app.sound.resampling import Resampler
from csm_mlx_app.telling import JsonTeller, LiveTeller, Teller, teller

BEHIND_S = 2.0
"""Of sound that waits: from then on the text comes late, which is told once."""


@dataclass(frozen=True, kw_only=True)
class Flags:
    """What the user asked for, one field a flag."""

    sources: tuple[str, ...]
    """Sound files, or `-`; none for the microphone."""
    out: Path | None
    format: str
    as_json: bool
    tokens: Path | None
    batch: int
    model: str | None
    input_device: str | None
    seed: int
    sampling: dict[str, Any]


def transcribe(flags: Flags) -> int:
    """All of the command; the exit code."""
    first, *others = flags.sources or (None,)
    if first is None:
        find_device("input", flags.input_device)  # before a model is loaded
        return _Work(flags).microphone()
    if others:
        return _Work(flags).several()
    with _readable(first) as path:
        if not path.is_file():  # before a model is loaded
            raise AudioError(f"{path} is {'no regular file' if path.exists() else 'missing'}; expected a sound file")
        return _Work(flags).one(path)


class _Work:
    """A model that is loaded, and what was asked for."""

    def __init__(self, flags: Flags):
        self._flags = flags
        self._stt = loading.load_stt(flags.model)
        self._sampling = replace(self._stt.config.text_sampling, **flags.sampling)
        self._tokens: list[int] = []

    def _session(self) -> SttSession:
        return self._stt.session(seed=self._flags.seed, sampling=self._sampling)

    # Files.

    def one(self, path: Path) -> int:
        """A file's words as they come."""
        pcm, session = read_audio(path, self._stt.sample_rate_hz), self._session()
        place = _Place(self._flags)
        steps = self._shown(session.follow(pcm), session, len(pcm) / self._stt.sample_rate_hz, place.shows)
        try:
            self._tell(steps, place.tellers)
        except KeyboardInterrupt:
            place.end()
            self._account(session.stats)
            return 130
        self._end(place, session.stats)
        return 0

    def several(self) -> int:
        """Files, some at a time; one that cannot be read does not stop the others."""
        flags, failed, started = self._flags, False, time.perf_counter()
        n_done, sound_s = 0, 0.0
        with console.progress("{task.completed}/{task.total} files  {task.fields[name]}") as show:
            for start in range(0, len(flags.sources), flags.batch):
                sounds: dict[str, np.ndarray] = {}
                for source in flags.sources[start : start + flags.batch]:
                    show(completed=start, total=len(flags.sources), name=source)
                    try:
                        sounds[source] = read_audio(source, self._stt.sample_rate_hz)
                    except AudioError as error:
                        console.error(str(error))
                        failed = True
                made = self._stt.transcribe_batch(list(sounds.values()), seed=flags.seed, sampling=self._sampling)
                for source, transcript in zip(sounds, made, strict=True):
                    place = _Place(flags, source)
                    self._tell([SttStep(words=transcript.words)], place.tellers)
                    place.end()
                    sound_s += transcript.stats.sound_s
                    try:
                        place.keep()
                        n_done += 1
                    except AudioError as error:
                        console.error(str(error))
                        failed = True
        work_s = time.perf_counter() - started
        console.talk(f"{n_done} of {len(flags.sources)} files, {_pace(sound_s, work_s)}")
        return 1 if failed else 0

    @staticmethod
    def _shown(steps: Iterator[SttStep], session: SttSession, sound_s: float, hides: bool) -> Iterator[SttStep]:
        """With a bar on stderr, unless the words are shown where it would be."""
        if hides:
            yield from steps
            return
        with console.progress("{task.completed:.0f} of {task.total:.0f} s") as show:
            for step in steps:
                show(completed=session.stats.sound_s, total=sound_s)
                yield step

    # The microphone.

    def microphone(self) -> int:
        """What is said until Ctrl-C."""
        place, session = _Place(self._flags), self._session()
        session.step(np.zeros(self._stt.frame_size, np.float32))  # the first one is slow
        session.reset()
        sound = LiveSound(self._flags.input_device, None, RealClock(), speak=False)
        sound.start()
        try:
            with _until_interrupt(sound.clock.now_s) as stop_s:
                console.talk(f"listening to {sound.input_name!r}; Ctrl-C ends it")
                self._tell(self._live(sound, session, stop_s), place.tellers)
                self._tell(session.flush(), place.tellers)
        except KeyboardInterrupt:  # once more, while the last words were on their way
            return 130
        finally:
            sound.close()
            self._end(place, session.stats)
        return 0

    def _live(self, sound: LiveSound, session: SttSession, stop_s: Callable[[], float]) -> Iterator[SttStep]:
        """stop_s: what was heard until then is still transcribed, however late."""
        frame_size, resampler = self._stt.frame_size, Resampler(RATE_HZ, self._stt.sample_rate_hz)
        waiting, n_lost, is_behind = np.zeros(0, np.float32), 0, False
        while (block := sound.read()) is not None and block.t_s <= stop_s():
            for fault in sound.faults():
                console.note(fault.message)
            late_s = sound.clock.now_s() - block.t_s
            if sound.n_overruns > n_lost:
                n_lost = sound.n_overruns
                console.note("the model is too slow for this machine: sound was lost; try a smaller or quantized one")
            elif late_s > BEHIND_S and not is_behind:
                console.note(f"the text is {late_s:.0f} s behind the sound")
            is_behind = late_s > BEHIND_S
            waiting = np.concatenate([waiting, resampler.put(block.pcm)])
            while len(waiting) >= frame_size:
                frame, waiting = waiting[:frame_size], waiting[frame_size:]
                yield session.step(frame)
        if len(waiting):
            yield session.step(np.pad(waiting, (0, frame_size - len(waiting))))

    # What becomes of it.

    def _tell(self, steps: Iterable[SttStep], tellers: "Sequence[Teller]") -> None:
        for step in steps:
            if self._flags.tokens is not None:
                self._tokens += step.tokens
            for one in tellers:
                for word in step.words:
                    one.put(word)
                if step.pause:
                    one.pause()

    def _end(self, place: "_Place", stats: SttStats) -> None:
        """Keeps what was made, each part whatever becomes of the others."""
        with ExitStack() as kept:  # which does all of it, the last first
            kept.callback(self._account, stats)
            kept.callback(self._keep_tokens)
            kept.callback(place.keep)
            kept.callback(place.end)

    def _keep_tokens(self) -> None:
        if self._flags.tokens is not None:
            write_tensors(self._flags.tokens, {"text": np.array(self._tokens, np.int32)})

    def _account(self, stats: SttStats) -> None:
        stuck = f"; the model was stuck {stats.n_restarts} times and began anew" if stats.n_restarts else ""
        console.talk(f"{self._stt.path.name}: {_pace(stats.sound_s, stats.work_s)}{stuck}")


def _pace(sound_s: float, work_s: float) -> str:
    factor = f", real-time factor {work_s / sound_s:.2f}" if sound_s else ""
    return f"{sound_s:.1f} s of sound in {work_s:.1f} s of work{factor}"


class _Place:
    """Where the words of one sound go: stdout, a file, or both."""

    def __init__(self, flags: Flags, source: str | None = None):
        """source: None where it is the only one."""
        self._parts: list[str] = []
        self._path = flags.out
        if self._path is not None and source is not None:
            self._path = self._path / f"{Path(source).stem}.{flags.format}"
        self.tellers: list[Teller] = []
        self._named: list[str] = []
        """What becomes its one line on stdout, its name first, where there are several sounds."""
        self.shows = False
        """On a terminal, word by word."""
        if self._path is not None:
            self.tellers.append(teller(flags.format, self._parts.append))
        if flags.as_json:
            self.tellers.append(JsonTeller(_stdout, None if source is None else {"file": source}))
        elif self._path is None or not flags.sources:  # who speaks wants to see it
            self.shows = sys.stdout.isatty()
            self.tellers.append(self._on_stdout("txt" if self._path else flags.format, source))

    def _on_stdout(self, format: str, source: str | None) -> Teller:
        if source is not None:
            self._named = [f"{source}: "]
            return teller("txt", self._named.append)
        return LiveTeller(_stdout) if self.shows and format == "txt" else teller(format, _stdout)

    def end(self) -> None:
        for one in self.tellers:
            one.end()
        if self._named:
            _stdout(" ".join("".join(self._named).split()) + "\n")

    def keep(self) -> None:
        """Writes the file, whole; where that fails, what nobody has seen yet goes to stdout before it is told."""
        if self._path is None:
            return
        text = "".join(self._parts)
        try:
            write_text(self._path, text)
        except AudioError:
            if len(self.tellers) == 1:  # the file's
                _stdout(text)
            raise


def _stdout(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


@contextmanager
def _readable(source: str) -> Iterator[Path]:
    """A file's path; for `-` that of what stdin holds, which cannot be read twice."""
    if source != "-":
        yield Path(source)
        return
    with tempfile.TemporaryDirectory(prefix="csm-") as folder:
        path = Path(folder) / "stdin"
        path.write_bytes(sys.stdin.buffer.read())
        yield path


@contextmanager
def _until_interrupt(now_s: Callable[[], float]) -> Iterator[Callable[[], float]]:
    """Gives the time of the first Ctrl-C, which is without end before, and breaks nothing off; the second does."""
    stop_s = math.inf

    def on_interrupt(_signal: int, _frame: FrameType | None) -> None:
        nonlocal stop_s
        stop_s = now_s()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield lambda: stop_s
    finally:
        signal.signal(signal.SIGINT, before)
