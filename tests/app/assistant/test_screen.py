"""What people and programs see of a conversation, and what its keys do."""

import contextlib
import io
import json
import os
import pty
import re
import select
import sys
import termios
import time

import pytest
from csm_mlx_app.assistant import events
from csm_mlx_app.assistant.keys import Controls, Keys, TypedLines
from csm_mlx_app.assistant.lines import JsonLines, Plain
from csm_mlx_app.assistant.screen import Now, Screen
from rich.console import Console

REPLY = "It is Paris, the city of light. And this is another sentence, which goes on for longer than any line does."
HEARD = REPLY[:38]
MIDDLE = {
    "ready": {"model": "/models/csm-1b-q4", "asr": "tiny.en", "llm": "Qwen", "input": "Mic", "output": "Speaker"},
    "speech_start": {"turn": 0},
    "partial": {"turn": 0, "text": "What is the [bold]"},
    "speech_end": {"turn": 0},
    "thinking": {},
    "transcript": {"turn": 0, "text": "What is the [bold] capital?"},
    "clause": {"turn": 0, "text": REPLY},
    "speaking": {},
}
TURN = {
    "transcript": "What is the [bold] capital?",
    "reply": REPLY,
    "heard": HEARD,
    "latency_ms": {"voice_to_voice": 812},
    "turn": 0,
}


class View:
    """A screen of a given width; `show()` is what one poll writes, a list of lines."""

    def __init__(self, width: int, **options):
        self.file = io.StringIO()
        self.screen = Screen(Console(file=self.file, width=width, height=24, highlight=False, **options))

    def tell(self, event: str, **fields) -> None:
        self.screen.event({"event": event, "t_s": 0.0, **fields})

    def show(self, heard: str = "", typed: str | None = None, muted: bool = False, talking: bool = False) -> list[str]:
        self.file.seek(0)
        self.file.truncate(0)
        self.screen.poll(Now(-30.0, heard, typed, muted, talking))
        return self.lines()

    def lines(self) -> list[str]:
        moved = re.sub(r"\x1b\[[0-9;?]*[A-HJK]|\r\n?", "\n", self.file.getvalue())
        return [line for line in re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", moved).split("\n") if line.strip()]


def screens(width: int) -> View:
    return View(width, force_terminal=True)


def test_a_turn_on_a_screen():
    view = screens(80)
    view.tell("ready", **MIDDLE["ready"])
    first, state, keys = view.show()
    assert "csm-1b-q4" in first
    assert state.startswith("● listening  ████")
    assert keys == "space interrupts or talks · m mutes · t types · q quits"
    view.tell("partial", turn=0, text="What is the [bold]")
    assert view.show()[1] == "you: What is the [bold]", "brackets are no markup"
    for name in ("speech_end", "thinking", "transcript", "clause", "speaking"):
        view.tell(name, **MIDDLE[name])
    lines = view.show(heard=HEARD)
    assert lines[0] == "you: What is the [bold] capital?", "it scrolls by"
    assert "▶ speaking" in lines[-4]
    assert " ".join(line.strip() for line in lines[-3:-1]) == REPLY
    view.tell("interrupted", turn=0, heard=HEARD)
    view.tell("turn", **TURN)
    view.tell("listening")
    lines = view.show()
    assert lines[0].startswith(f"assistant: {HEARD.strip()} ‖ ")
    assert lines[-2] == "● listening  ████▊     answered after 812 ms" or "812 ms" in lines[-2]
    assert REPLY[:20] not in lines[-2] + lines[-1], "the reply has left the live region"


def test_what_was_heard_is_bright_and_the_rest_is_dim():
    view = screens(200)
    view.tell("clause", turn=0, text=REPLY)
    view.show(heard=HEARD)
    assert f"\n{HEARD}\x1b[2m{REPLY[len(HEARD) :]}" in view.file.getvalue().replace("\r", "")


def test_keys_and_modes_show():
    view = screens(80)
    assert "muted" in view.show(muted=True)[0]
    assert "push-to-talk: space ends it" in view.show(talking=True)[0]
    lines = view.show(typed="How are")
    assert lines[-2:] == ["type: How are▏", "enter sends · escape leaves"]


@pytest.mark.parametrize("width", [20, 8])
def test_a_narrow_terminal(width):
    """Nothing is wider, and the live region stays below ten lines, however long the words are."""
    view = screens(width)
    for name, fields in MIDDLE.items():
        view.tell(name, **fields)
    view.tell("clause", turn=0, text=REPLY * 5)
    view.show()
    lines = view.show(heard=REPLY * 2)
    assert max(map(len, lines)) <= width
    assert len(lines) < 10
    view.tell("turn", **TURN)
    view.tell("partial", turn=1, text=REPLY * 5)
    view.tell("listening")
    view.show()
    assert max(map(len, view.lines())) <= width
    assert len(view.show()) < 10


def test_no_colour(monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    view = screens(80)
    for name, fields in MIDDLE.items():
        view.tell(name, **fields)
    view.show(heard=HEARD)
    colours = re.findall(r"\x1b\[[0-9;]*m", view.file.getvalue())
    assert not [c for c in colours if re.search(r"[;\[](3[0-7]|9[0-7]|38)[;m]", c)]


def test_closing_gives_the_cursor_back_and_tells_the_rest():
    view = screens(80)
    view.show()
    assert "\x1b[?25l" in view.file.getvalue()
    view.tell("summary", turns=2, voice_to_voice_p50_ms=700, voice_to_voice_p95_ms=900, underruns=0)
    view.screen.close()
    assert view.file.getvalue().rfind("\x1b[?25h") > view.file.getvalue().rfind("\x1b[?25l")
    assert "2 turns; from the end of your words to the first sound: p50 700 ms, p95 900 ms" in view.file.getvalue()


def test_plain_lines(capsys):
    plain = Plain()
    for name, fields in MIDDLE.items():
        plain.event({"event": name, "t_s": 0.0, **fields})
    plain.event({"event": "interrupted", "t_s": 0.0, "turn": 0, "heard": ""})
    plain.event({"event": "error", "t_s": 0.0, "message": "the server is gone; start it"})
    plain.event({"event": "turn", "t_s": 0.0, **TURN})
    plain.event({"event": "summary", "t_s": 0.0, "turns": 1})
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines()[1:] == [
        "you: What is the [bold] capital?",
        f"assistant: {REPLY}",
        "(interrupted; heard was: nothing)",
        "error: the server is gone; start it",
        "(812 ms from the end of your words to the first sound)",
        "1 turn",
    ]


def test_json_lines(capsys):
    sink = JsonLines()
    sink.event({"event": "transcript", "t_s": 1.5, "text": "Où est la lune ?"})
    sink.span("worker", "synthesis", 0, 1)
    out, err = capsys.readouterr()
    assert err == ""
    assert [json.loads(line) for line in out.splitlines()] == [
        {"event": "transcript", "t_s": 1.5, "text": "Où est la lune ?"}
    ]


class Table:
    """Controls whose events are kept; `state` is what the conversation does."""

    def __init__(self):
        self.posted: list = []
        self.state = "listening"
        self.controls = Controls(self.posted.append, lambda: 3.0, lambda: self.state)

    def press(self, keys: str) -> list:
        self.posted.clear()
        self.controls.press(keys)
        return list(self.posted)


def test_what_keys_mean():
    table = Table()
    assert table.press(" ") == [events.Talking(3.0, True)]
    assert table.controls.is_talking
    assert table.press(" ") == [events.Talking(3.0, False)]
    for state in ("speaking", "thinking", "interrupted"):
        table.state = state
        assert table.press(" ") == [events.Interrupt(3.0)]
    assert table.press("m") == [events.Muted(3.0, True)]
    assert table.press("M") == [events.Muted(3.0, False)]
    assert table.press("x\x1b[A") == []
    assert not table.controls.has_quit
    table.press("q")
    assert table.controls.has_quit


def test_typing_a_turn():
    table = Table()
    assert table.press("tq m  ") == []
    assert (table.controls.typed, table.controls.has_quit, table.controls.is_muted) == ("q m  ", False, False)
    assert table.press("\x7f\x7f\x08é") == []
    assert table.controls.typed == "q é"
    assert table.press("\x1b[A\x1b[3~") == [], "an arrow does not end it"
    assert table.press("\r") == [events.Typed(3.0, "q é")]
    assert table.controls.typed is None
    table.press("tab\x1b[Dc")
    assert table.controls.typed == "abc"
    table.press("\x1b")
    assert table.controls.typed is None
    assert table.press("t \r") == [], "nothing was typed"


@pytest.fixture
def stdin(monkeypatch):
    """stdin is a terminal; its other end."""
    master, slave = pty.openpty()
    monkeypatch.setattr(sys, "stdin", os.fdopen(slave, "r"))
    yield master
    sys.stdin.close()
    os.close(master)


def typed(keys: Keys, n: int) -> str:
    """So many characters, which a terminal passes on when it comes to it."""
    read, until_s = "", time.monotonic() + 5
    while len(read) < n and time.monotonic() < until_s:
        read += keys.read()
        time.sleep(0.01)
    return read


def test_single_keys_and_the_terminal_as_it_was(stdin):
    before = termios.tcgetattr(sys.stdin)
    with contextlib.suppress(SystemExit), Keys() as keys:
        assert termios.tcgetattr(sys.stdin) != before
        assert keys.read() == ""
        os.write(stdin, "mé".encode())
        assert typed(keys, 2) == "mé"
        raise SystemExit(143)  # as SIGTERM does
    assert termios.tcgetattr(sys.stdin) == before


def test_a_letter_may_come_in_two_pieces(stdin):
    with Keys() as keys:
        read = ""
        for byte in "é→".encode():
            os.write(stdin, bytes([byte]))
            select.select([sys.stdin], [], [], 5)
            read += keys.read()
    assert read == "é→"


def test_no_terminal_gives_no_keys(monkeypatch):
    for stdin in (None, io.StringIO("q")):
        monkeypatch.setattr(sys, "stdin", stdin)
        with Keys() as keys:
            assert keys.read() == ""


def test_typed_lines_come_one_by_one(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("One.\n\n  Two.  \n"))
    lines = TypedLines()
    until_s = time.monotonic() + 5
    taken = []
    while not lines.has_ended and time.monotonic() < until_s:
        if (line := lines.take()) is not None:
            taken.append(line)
    assert taken == ["One.", "Two."]


def test_no_stdin_has_no_lines(monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    lines = TypedLines()
    until_s = time.monotonic() + 5
    while not lines.has_ended and time.monotonic() < until_s:
        time.sleep(0.01)
    assert lines.has_ended
