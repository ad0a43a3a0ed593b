"""A program in a pseudo-terminal of its own, as a person would run it."""

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

GIVE_UP_S = 60.0
_MOVES, _PAINTS = re.compile(r"\x1b\[[0-9;?]*[A-HJKhl]|\r\n?"), re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Bystander:
    """A Python that imports what a program does, and sleeps: how long it takes to end is how busy the machine is.

    Ends when the block is left, at the latest.
    """

    def __init__(self, modules: str):
        code = (
            f"import {modules}, signal, sys; signal.signal(signal.SIGTERM, lambda *_: sys.exit()); "
            "print(flush=True); signal.pause()"
        )
        self._process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
        self._ended_s = float("inf")
        self._waiter = threading.Thread(target=self._wait, daemon=True)

    def _wait(self) -> None:
        self._process.wait()
        self._ended_s = time.monotonic()

    def __enter__(self) -> "Bystander":
        assert self._process.stdout is not None
        with self._process.stdout as out:
            out.readline()
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()

    def end(self) -> None:
        """Told to end; returns at once."""
        self._began_s = time.monotonic()
        self._process.terminate()
        self._waiter.start()

    @property
    def took_s(self) -> float:
        self._waiter.join(GIVE_UP_S)
        return self._ended_s - self._began_s


class Terminal:
    """stdin, stdout and stderr are the terminal; Ctrl-C is a key. Kills the program when the block is left."""

    def __init__(self, command: Sequence[str], *, columns: int = 80, env: dict[str, str] | None = None, **options: Any):
        self._master, self._slave = pty.openpty()
        self.resize(columns)
        self.before = self.settings
        self._shown = ""
        self._process = subprocess.Popen(
            command,
            stdin=self._slave,
            stdout=self._slave,
            stderr=self._slave,
            env=(env or dict(os.environ)) | {"TERM": "xterm-256color"},
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
            **options,
        )
        self.pid = self._process.pid
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._slave)  # the reader then finds the end
        self._reader.join(timeout=5)
        os.close(self._master)

    def resize(self, columns: int, rows: int = 24) -> None:
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    @property
    def settings(self) -> list[Any]:
        """What `stty -a` prints."""
        return termios.tcgetattr(self._slave)

    def type(self, keys: str) -> None:
        os.write(self._master, keys.encode())

    @property
    def raw(self) -> str:
        """All that was written, with its control sequences."""
        return self._shown

    @property
    def text(self) -> str:
        """All that was written, a line for each that was drawn."""
        return _PAINTS.sub("", _MOVES.sub("\n", self._shown))

    def wait_for(self, what: str | Callable[[], bool]) -> None:
        ready = (lambda: what in self.text) if isinstance(what, str) else what
        until_s = time.monotonic() + GIVE_UP_S
        while not ready():
            assert self._process.poll() is None or ready(), f"it ended ({self._process.returncode}):\n{self.text}"
            assert time.monotonic() < until_s, f"no {what} in\n{self.text}"
            time.sleep(0.02)

    def leave(self) -> tuple[int, float]:
        """Until it ends: its exit code, and how long that took."""
        began = time.monotonic()
        code = self._process.wait(GIVE_UP_S)
        took_s = time.monotonic() - began
        until_s = time.monotonic() + GIVE_UP_S
        while select.select([self._master], [], [], 0)[0] and time.monotonic() < until_s:
            time.sleep(0.01)
        time.sleep(0.1)  # for the reader, which has it all
        return code, took_s

    def _read(self) -> None:
        while True:
            try:
                block = os.read(self._master, 4096)
            except OSError:
                return
            if not block:
                return
            self._shown += block.decode(errors="replace")
