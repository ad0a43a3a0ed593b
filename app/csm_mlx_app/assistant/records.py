"""What is kept of a conversation where the user asks for it: words, sound, and who worked when."""

import contextlib
import json
import os
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from csm_mlx.audio import write_audio
from csm_mlx.errors import AudioError, CsmError
from csm_mlx_app.sound.device import RATE_HZ

MAX_TRACED = 200_000
"""Events of a trace: about two hours."""


class Log:
    """A line per turn, or per sentence of full duplex, appended and flushed to the disk before the next, readable by
    its owner only.

    A full disk is told once; the conversation goes on and what was logged stays whole.
    """

    def __init__(self, path: Path, note: Callable[[str], None]):
        self._path, self._note = path, note
        self._is_full = False
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
            self._mend()
        except OSError as error:
            raise CsmError(f"cannot write the log {path}: {error.strerror}; name another --log") from None

    def _mend(self) -> None:
        """A last line that a crash cut short must not swallow the next one."""
        end = os.lseek(self._file, 0, os.SEEK_END)
        if end and os.pread(self._file, 1, end - 1) != b"\n":
            os.write(self._file, b"\n")

    def event(self, event: dict[str, Any]) -> None:
        line: dict[str, Any] = {"time": datetime.now().astimezone().isoformat(timespec="seconds")}
        if event["event"] == "turn":
            line |= {"turn": event["turn"], "user": event["transcript"], "assistant": event["heard"]}
            line |= {"reply": event["reply"], "latency_ms": event["latency_ms"]}
        elif event["event"] == "said":
            line |= {"start_s": event["start_s"], "stop_s": event["t_s"], "assistant": event["text"]}
        else:
            return
        data = (json.dumps(line, ensure_ascii=False) + "\n").encode()
        end = os.lseek(self._file, 0, os.SEEK_END)
        try:
            if os.write(self._file, data) != len(data):
                raise OSError(28, "no space left on device")
            os.fsync(self._file)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, end)  # no half line
            if not self._is_full:
                self._is_full = True
                self._note(f"cannot log to {self._path} ({error.strerror}): nothing is logged until there is room")
        else:
            self._is_full = False

    def span(self, thread: str, name: str, start_s: float, end_s: float) -> None:
        pass

    def close(self) -> None:
        os.close(self._file)


class Recording:
    """The sound of both sides, a file per turn and side, in a folder that only its owner reads."""

    def __init__(self, folder: Path, note: Callable[[str], None]):
        self._folder, self._note = folder, note
        self._has_failed = False
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise CsmError(f"cannot make the folder {folder}: {error.strerror}; name another --record") from None
        self._first = 1 + max((int(p.name[5:9]) for p in folder.glob("turn-[0-9][0-9][0-9][0-9]-*.wav")), default=0)

    def keep(self, turn: int, side: str, pcm: np.ndarray) -> None:
        """side: user or reply. Older conversations in the folder are kept: numbers go on."""
        if not len(pcm):
            return
        path = self._folder / f"turn-{self._first + turn:04}-{side}.wav"
        try:
            write_audio(path, pcm, RATE_HZ)
            path.chmod(0o600)
        except (AudioError, OSError) as error:
            if not self._has_failed:
                self._has_failed = True
                self._note(f"{error}: this turn's sound is not kept")
        else:
            self._has_failed = False


class Trace:
    """Who worked when, in Chrome's trace format; written as a whole when the conversation ends."""

    def __init__(self, path: Path):
        self._path = path
        self._events: list[dict[str, Any]] = []
        self._threads: dict[str, int] = {}

    def event(self, event: dict[str, Any]) -> None:
        details = {k: v for k, v in event.items() if k not in ("event", "t_s")}
        self._add(event["event"], "i", event["t_s"], "events", s="g", args=details)

    def span(self, thread: str, name: str, start_s: float, end_s: float) -> None:
        self._add(name, "X", start_s, thread, dur=1e6 * (end_s - start_s))

    def _add(self, name: str, phase: str, t_s: float, thread: str, **fields: Any) -> None:
        if len(self._events) == MAX_TRACED:
            name, phase, fields = "the trace is full and stops here", "i", {"s": "g"}
        if len(self._events) <= MAX_TRACED:
            number = self._threads.setdefault(thread, len(self._threads))
            self._events.append({"name": name, "ph": phase, "ts": 1e6 * t_s, "pid": 1, "tid": number, **fields})

    def close(self) -> None:
        names = [
            {"name": "thread_name", "ph": "M", "pid": 1, "tid": number, "args": {"name": thread}}
            for thread, number in self._threads.items()
        ]
        part = self._path.with_name(self._path.name + ".part")
        try:
            part.write_text(json.dumps({"traceEvents": names + self._events}))
            os.replace(part, self._path)
        except OSError as error:
            part.unlink(missing_ok=True)
            raise CsmError(f"cannot write the trace {self._path}: {error.strerror}") from None
