"""What happens in a conversation, told once to everybody who wants to know: screen, JSON lines, log, trace, numbers."""

import threading
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from csm_mlx_app.assistant.latency import TurnClock


class Sink(Protocol):
    """Who is told. Called from any thread of the conversation, one call at a time."""

    def event(self, event: dict[str, Any]) -> None:
        """`event` has at least `event` and `t_s`."""
        ...

    def span(self, thread: str, name: str, start_s: float, end_s: float) -> None:
        """A piece of work."""
        ...

    def close(self) -> None: ...


class Report:
    """Tells every sink in turn; keeps the times of the turns, from which the numbers are made."""

    def __init__(self, now_s: Callable[[], float], sinks: Sequence[Sink]):
        self._now_s, self._sinks = now_s, list(sinks)
        self._lock = threading.RLock()
        self._turns: dict[int, TurnClock] = {}
        """Of those that are not over."""
        self._is_closed = False
        self.n_turns = 0
        """Those that are over."""
        self.waits_s: list[float] = []
        """From the end of speech to the first sample, of each turn over that was spoken and heard."""

    def add(self, sink: Sink) -> None:
        """One more, which is told what comes from now on."""
        with self._lock:
            self._sinks.append(sink)

    def emit(self, event: str, **fields: Any) -> None:
        """Fields that are None are left out."""
        told = {k: v for k, v in fields.items() if v is not None}
        with self._lock:
            if self._is_closed:  # from a thread that ends late
                return
            told = {"event": event, "t_s": round(told.pop("t_s", self._now_s()), 3), **told}
            for sink in self._sinks:
                sink.event(told)

    def note(self, message: str) -> None:
        """Something that the user should know: an event of its own, `note`."""
        self.emit("note", message=message)

    def span(self, thread: str, name: str, start_s: float, end_s: float, turn: int | None = None) -> None:
        """A piece of work; with `turn`, one that its reply waits for."""
        with self._lock:
            if turn is not None:
                self.turn(turn).worked(name, start_s, end_s)
            for sink in () if self._is_closed else self._sinks:
                sink.span(thread, name, start_s, end_s)

    def turn(self, turn: int) -> TurnClock:
        """The times of a turn; a new one is made when it is first asked for."""
        with self._lock:
            return self._turns.setdefault(turn, TurnClock())

    def finish(self, turn: int) -> None:
        """A turn is over and told: of its times the numbers stay, and of those that came to nothing before it none."""
        with self._lock:
            self.n_turns += 1
            wait_s = self.turn(turn).voice_to_voice_s
            if wait_s is not None:
                self.waits_s.append(wait_s)
            self._turns = {number: times for number, times in self._turns.items() if number > turn}

    def close(self) -> None:
        """Closes every sink, also where one fails; raises what the first of those raised. Once only."""
        failures: list[Exception] = []
        with self._lock:
            sinks, self._is_closed = () if self._is_closed else self._sinks, True
            for sink in sinks:
                try:
                    sink.close()
                except Exception as error:
                    failures.append(error)
        if failures:
            raise failures[0]
