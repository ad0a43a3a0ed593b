"""The keyboard of a conversation: single keys without Enter, and a line where the user types."""

import codecs
import contextlib
import os
import re
import select
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

from csm_mlx_app.assistant import events

_BACKSPACES, _ENTERS, _ESCAPE = "\x7f\b", "\r\n", "\x1b"
_FUNCTION_KEYS = re.compile(r"\x1b(\[[0-9;]*[A-Za-z~]|O[A-Za-z])")
"""Arrows and the like: they come as an escape with more behind it."""
_BLOCK_BYTES = 1024


class Keys:
    """stdin as single keys while the `with` block lasts; nothing where it is no terminal, or closed.

    Ctrl-C and Ctrl-Z stay signals. The terminal is put back however the block is left.
    """

    def __init__(self) -> None:
        self._descriptor: int | None = None
        self._before: list[Any] | None = None
        self._on_continue: Any = None
        self._decoder = codecs.getincrementaldecoder("utf-8")("ignore")  # a letter may come in pieces

    def __enter__(self) -> "Keys":
        if sys.stdin is None or sys.stdin.closed or not sys.stdin.isatty():
            return self
        import termios

        descriptor = sys.stdin.fileno()
        try:
            self._before = termios.tcgetattr(descriptor)
        except termios.error:  # it went away just now
            return self
        self._descriptor = descriptor
        self._single()
        self._on_continue = signal.signal(signal.SIGCONT, self._continued)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._before is not None:
            import termios

            with contextlib.suppress(OSError, termios.error):  # the terminal may be gone
                termios.tcsetattr(sys.stdin.fileno(), termios.TCSADRAIN, self._before)
            signal.signal(signal.SIGCONT, self._on_continue)

    def read(self) -> str:
        """The keys pressed since the last call; never waits."""
        if self._descriptor is None:
            return ""
        try:
            if not select.select([self._descriptor], [], [], 0)[0]:
                return ""
            block = os.read(self._descriptor, _BLOCK_BYTES)
        except OSError:
            block = b""
        if not block:  # closed: there will be no more
            self._descriptor = None
        return self._decoder.decode(block)

    def _single(self) -> None:
        import tty

        assert self._descriptor is not None
        tty.setcbreak(self._descriptor)

    def _continued(self, _signal: int, _frame: FrameType | None) -> None:
        """After Ctrl-Z and fg the shell has put the terminal back."""
        if self._descriptor is not None:
            self._single()


class Controls:
    """What keys mean: space interrupts, or begins and ends push-to-talk; m mutes, t types, q quits."""

    def __init__(self, post: Callable[[events.Event], None], now_s: Callable[[], float], state: Callable[[], str]):
        self._post, self._now_s, self._state = post, now_s, state
        self.typed: str | None = None
        """The line that is being typed; None while none is."""
        self.is_muted = False
        self.is_talking = False
        self.has_quit = False

    def press(self, keys: str) -> None:
        for key in _FUNCTION_KEYS.sub("", keys):
            if self.typed is None:
                self._command(key)
            else:
                self._type(key)

    def _command(self, key: str) -> None:
        now_s = self._now_s()
        match key.lower():
            case " " if self.is_talking:
                self.is_talking = False
                self._post(events.Talking(now_s, False))
            case " " if self._state() == "listening":
                self.is_talking = True
                self._post(events.Talking(now_s, True))
            case " ":
                self._post(events.Interrupt(now_s))
            case "m":
                self.is_muted = not self.is_muted
                self._post(events.Muted(now_s, self.is_muted))
            case "t":
                self.typed = ""
            case "q":
                self.has_quit = True

    def _type(self, key: str) -> None:
        assert self.typed is not None
        if key in _ENTERS:
            text, self.typed = self.typed.strip(), None
            if text:
                self._post(events.Typed(self._now_s(), text))
        elif key == _ESCAPE:
            self.typed = None
        elif key in _BACKSPACES:
            self.typed = self.typed[:-1]
        elif key.isprintable():
            self.typed += key


class TypedLines:
    """The lines of stdin, read by a thread of its own, since a read cannot be interrupted."""

    def __init__(self) -> None:
        self._lines: deque[str] = deque()
        self._is_read = False
        threading.Thread(target=self._read, name="stdin", daemon=True).start()

    def take(self) -> str | None:
        """The next line that says something, or None while there is none."""
        return self._lines.popleft() if self._lines else None

    @property
    def has_ended(self) -> bool:
        """stdin is closed and every line was taken."""
        return self._is_read and not self._lines

    def _read(self) -> None:
        try:
            for line in sys.stdin or ():
                if line.strip():
                    self._lines.append(line.strip())
        except (OSError, ValueError):  # closed under it
            pass
        self._is_read = True
