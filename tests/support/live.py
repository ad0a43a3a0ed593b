"""`csm talk` as a user has it: a process on a terminal of its own, with a microphone to speak into and a loudspeaker
that is listened to."""

import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.pulse import RATE_HZ, Pulse, Tap

from csm_mlx.audio import read_audio
from csm_mlx.evaluate import compare
from csm_mlx.recognize import Whisper

DATA = Path(__file__).parents[1] / "data"
GIVE_UP_S = 120.0
"""Of real time, on a machine that does much else."""
AUDIBLE = 0.004
"""Of full scale, -48 dB: the level at which something counts as heard, or as silence."""
_COLUMNS, _LINES = 80, 24
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[=>]|\r")


class Terminal:
    """Both ends of a terminal: what a process writes on it is kept, what is typed it reads."""

    def __init__(self) -> None:
        self._ours, self.theirs = pty.openpty()
        fcntl.ioctl(self.theirs, termios.TIOCSWINSZ, struct.pack("HHHH", _LINES, _COLUMNS, 0, 0))
        self._written = bytearray()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        try:
            while data := os.read(self._ours, 4096):
                self._written += data
        except OSError:  # how Linux says that the other end is closed
            pass

    def type(self, keys: str) -> None:
        os.write(self._ours, keys.encode())

    @property
    def text(self) -> str:
        """All that was ever drawn, line under line, without colours and movements of the cursor."""
        return _ESCAPES.sub("", self._written.decode(errors="replace"))

    def close(self) -> None:
        os.close(self.theirs)
        self._reader.join(timeout=2)
        os.close(self._ours)


class LiveTalk:
    """A running `csm talk`: its events (`--json`, or of the log where it draws a screen), and what it sounds.

    microphone, loudspeaker: recordings on one clock, `time.monotonic()`.
    """

    def __init__(self, server: Pulse, folder: Path, flags: Sequence[str], screen: bool):
        self.server, self.screen = server, Terminal() if screen else None
        self.microphone, self.loudspeaker = server.tap("micfeed"), server.tap("speaker")
        self.events: list[dict[str, Any]] = []
        self.arrived_s: list[float] = []
        self._log = folder / "log.jsonl"
        command = [sys.executable, "-m", "csm_mlx_app", "talk", "--offline", "--eagerness", "high", *flags]
        env = {k: v for k, v in os.environ.items() if k != "NO_COLOR"} | server.env | {"TERM": "xterm-256color"}
        if self.screen is not None:
            ends: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), self.screen.theirs)
            command += ["--log", str(self._log)]
        else:
            ends = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE}
            command += ["--json"]
        self.process = subprocess.Popen(command, cwd=folder, env=env, start_new_session=True, **ends)
        self._reader = threading.Thread(target=self._read_events, daemon=True)
        if self.screen is None:
            self._reader.start()

    def _read_events(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:
                self.arrived_s.append(time.monotonic())
                self.events.append(json.loads(line))

    def of(self, event: str) -> list[dict[str, Any]]:
        return [e for e in self.events if e["event"] == event]

    def turns(self) -> list[dict[str, Any]]:
        """The log's lines."""
        return [json.loads(line) for line in self._log.read_text().splitlines()] if self._log.exists() else []

    def told_s(self, event: dict[str, Any]) -> float:
        """An event's time, on the clock of the recordings."""
        return event["t_s"] + min(s - e["t_s"] for s, e in zip(self.arrived_s, self.events, strict=False))

    def until(self, ready: Callable[[], Any], what: str) -> Any:
        """What `ready` answers as soon as that is something."""
        end_s = time.monotonic() + GIVE_UP_S
        while not (answer := ready()):
            said = self.screen.text[-2000:] if self.screen else self.events[-10:]
            assert self.process.poll() is None, f"ended with {self.process.returncode} before {what}: {said}"
            assert time.monotonic() < end_s, f"no {what} in {GIVE_UP_S:.0f} s: {said}"
            time.sleep(0.02)
        return answer

    def until_ready(self) -> None:
        if (screen := self.screen) is not None:
            self.until(lambda: "q quits" in screen.text, "screen")
        else:
            self.until(lambda: self.of("ready"), "ready")
        time.sleep(0.5)  # the first blocks of a microphone are its opening

    def ask(self, pcm: np.ndarray) -> None:
        """Speak it into the microphone, until all of it was said."""
        self.server.speak(pcm).wait(timeout=GIVE_UP_S)

    def leave(self) -> int:
        """By `q`, or Ctrl-C where there is no terminal; the exit code."""
        if self.screen is not None:
            self.screen.type("q")
        else:
            self.process.terminate()
        return self.process.wait(timeout=20)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        if self.screen is not None:
            self.screen.close()
        else:
            self._reader.join(timeout=5)


@contextmanager
def unless_overloaded() -> Iterator[None]:
    """Skips a test that failed on a machine that does much else: what must be in time there is not."""
    try:
        yield
    except AssertionError as error:
        load, n_cores = os.getloadavg()[0], os.cpu_count() or 1
        if load > 1.5 * n_cores:
            pytest.skip(f"with a load of {load:.1f} on {n_cores} cores, sound is late or lost: {error}")
        raise


@contextmanager
def live_talk(server: Pulse, folder: Path, *flags: str, screen: bool = False) -> Iterator[LiveTalk]:
    talk = LiveTalk(server, folder, flags, screen)
    try:
        talk.until_ready()
        yield talk
    finally:
        talk.close()


def question(name: str) -> np.ndarray:
    return read_audio(DATA / f"{name}.flac", RATE_HZ)


def sounding_s(tap: Tap, since_s: float, until_s: float | None = None) -> tuple[float, float] | None:
    """When the first and the last audible sample of a recording were, between two times."""
    pcm, start_s = tap.between(since_s, until_s)
    audible = np.flatnonzero(np.abs(pcm) > AUDIBLE)
    if not len(audible):
        return None
    return start_s + audible[0] / RATE_HZ, start_s + audible[-1] / RATE_HZ


def word_error_rate(text: str, pcm: np.ndarray, whisper: Whisper) -> tuple[float, str]:
    """Of what whisper hears in (n_samples,) at 24 kHz, and what that is; at most 1, though it may repeat itself."""
    heard = whisper.transcribe(pcm, RATE_HZ)
    n_words, n_wrong, _ = compare(text, heard)
    return min(1.0, n_wrong / n_words), heard
