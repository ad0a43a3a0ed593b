"""The conversation on a terminal: what was said scrolls by, and below it one live region shows what happens now."""

from collections import deque
from dataclasses import dataclass
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from csm_mlx_app.assistant.lines import told

_METER = " ▁▂▃▄▅▆▇█"
_METER_CELLS = 8
_QUIET_DB, _LOUD_DB = -60.0, -10.0
_STATES = {
    "listening": ("●", "green"),
    "thinking": ("◌", "yellow"),
    "speaking": ("▶", "cyan"),
    "paused": ("‖", "magenta"),
}
_STYLES = {"you:": "bold green", "assistant:": "bold cyan", "note:": "yellow", "error:": "bold red"}
_TEXT_LINES = 3
"""Of what is said: the live region must fit into a small window."""
KEYS = "space interrupts or talks · m mutes · t types · q quits"


@dataclass(frozen=True)
class Now:
    """What the live region shows and no event tells; asked for at every `poll`."""

    level_db: float
    heard: str
    """Of the reply that is being spoken, what was heard by now."""
    typed: str | None
    is_muted: bool
    is_talking: bool


class Screen:
    """A sink whose `event` only queues; the main thread calls `poll`, which draws."""

    def __init__(self, console: Console | None = None):
        self._console = console or Console(stderr=True, highlight=False)
        self._live = Live(
            console=self._console,
            auto_refresh=False,
            transient=True,
            vertical_overflow="ellipsis",
            redirect_stdout=False,  # it would put back a `sys.stderr` that the devices' noise was kept from meanwhile
            redirect_stderr=False,
        )
        self._queue: deque[dict[str, Any]] = deque()
        self._state = "listening"
        self._partial = ""
        self._reply = ""
        self._latency = ""
        self._is_started = False

    def event(self, event: dict[str, Any]) -> None:
        self._queue.append(event)

    def span(self, thread: str, name: str, start_s: float, end_s: float) -> None:
        pass

    def close(self) -> None:
        if self._is_started:
            self._live.stop()
            self._is_started = False
        while self._queue:
            self._take(self._queue.popleft())

    def poll(self, now: Now) -> None:
        """Show what happened since the last call, and what is."""
        while self._queue:
            self._take(self._queue.popleft())
        if not self._is_started:
            self._live.start()
            self._is_started = True
        self._live.update(self._drawn(now), refresh=True)

    def _take(self, event: dict[str, Any]) -> None:
        match event["event"]:
            case "listening" | "thinking" | "speaking" | "paused" as state:
                self._state = state
                if state == "listening":  # the user may have gone on before any of it was heard
                    self._reply = ""
            case "partial":
                self._partial = event["text"]
            case "speech_start" | "transcript":
                self._partial = ""
            case "clause":
                self._reply = f"{self._reply} {event['text']}".strip()
                return  # printed when the turn is over: until then the live region shows it
            case "turn":
                self._finish(event)
                return
            case "interrupted":
                return  # its turn shows what was not heard
        line = told(event)
        if line is not None:
            self._print(line)

    def _finish(self, turn: dict[str, Any]) -> None:
        """The reply moves from the live region into what scrolls by; what was not heard stays dim."""
        self._reply = self._partial = ""
        line = Text("assistant: ", style=_STYLES["assistant:"])
        line.append(turn["heard"], style="not bold default")
        if (missed := turn["reply"][len(turn["heard"]) :].strip()) and turn["heard"] != turn["reply"]:
            line.append(f" ‖ {missed}", style="dim not bold default")
        if turn["reply"]:
            self._console.print(line)
        wait_ms = turn["latency_ms"].get("voice_to_voice")
        self._latency = "" if wait_ms is None else f"answered after {wait_ms} ms"

    def _print(self, line: str) -> None:
        head, _, rest = line.partition(" ")
        text = (
            Text(f"{head} ", style=_STYLES[head]).append(rest, style="not bold default")
            if head in _STYLES
            else Text(line)
        )
        self._console.print(text)

    def _drawn(self, now: Now) -> Group:
        symbol, colour = _STATES[self._state]
        state = "push-to-talk: space ends it" if now.is_talking else self._state
        head = Text(f"{symbol} {state}", style=f"bold {colour}", no_wrap=True, overflow="ellipsis")
        head.append("  muted" if now.is_muted else f"  {_meter(now.level_db)}", style="not bold default")
        if self._latency:
            head.append(f"  {self._latency}", style="dim not bold default")
        lines, n_chars = [head], _TEXT_LINES * self._console.width
        if now.typed is not None:
            lines.append(Text(f"type: {now.typed}▏", overflow="fold"))
        elif self._partial and self._state in ("listening", "thinking"):
            said = Text(f"you: {self._partial}", style="dim", overflow="fold")
            lines.append(
                said if len(said) <= n_chars else Text("…", style="dim", overflow="fold") + said[1 - n_chars :]
            )
        if self._reply:
            lines.append(_spoken(self._reply, now.heard, n_chars))
        lines.append(
            Text(
                "enter sends · escape leaves" if now.typed is not None else KEYS,
                "dim",
                no_wrap=True,
                overflow="ellipsis",
            )
        )
        return Group(*lines)


def _spoken(reply: str, heard: str, n_chars: int) -> Text:
    """What was heard bright, what is to come dim; of a long reply the `n_chars` around what is being heard."""
    n_heard = min(len(reply), len(heard.strip()))
    line = Text(reply, overflow="fold")
    line.stylize("dim", n_heard)
    start = max(0, min(n_heard - n_chars // 2, len(reply) - n_chars))
    return Text("…", overflow="fold") + line[start + 1 : start + n_chars] if start else line[:n_chars]


def _meter(level_db: float) -> str:
    """A bar of cells, each of them in eighths."""
    part = (min(_LOUD_DB, max(_QUIET_DB, level_db)) - _QUIET_DB) / (_LOUD_DB - _QUIET_DB)
    eighths = round(part * _METER_CELLS * 8)
    return "".join(_METER[min(8, max(0, eighths - 8 * cell))] for cell in range(_METER_CELLS))
