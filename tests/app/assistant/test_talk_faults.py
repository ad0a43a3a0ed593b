"""What goes wrong in a conversation, each time with a real cause: it goes on where it can, and says what to do."""

import contextlib
import json
import os
import resource
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from csm_mlx_app.assistant.records import Log
from csm_mlx_app.assistant.replies.url import Url
from csm_mlx_app.sound.device import RATE_HZ
from support.talks import DATA, Says, Talk, scene
from support.terminal import Bystander, Terminal

from csm_mlx.audio import write_audio

COMMAND = [sys.executable, "-m", "csm_mlx_app", "talk"]
FOR_EVER = 'while :; do echo "The moon is far away from us all."; sleep 0.5; done'
"""A language model that does not stop."""
LEAVES_S = 1.0
"""Promised; beside what a process that has nothing to end takes at the same moment, on a machine that is busy."""


class Server:
    """An OpenAI-compatible server that answers each question as told: a text, "hang" or "break"."""

    def __init__(self, *answers: str):
        self._answers = list(answers)
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}/v1"
        self._open: list[socket.socket] = []
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)  # wakes the thread
        self._socket.close()
        for connection in self._open:
            connection.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            self._open.append(connection)
            request = connection.recv(65536)
            if request.startswith(b"GET"):
                connection.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
                continue
            answer = self._answers.pop(0)
            if answer == "hang":
                continue
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")
            words = "It is far away from here, and then" if answer == "break" else answer
            for word in words.split():
                chunk = {"choices": [{"delta": {"content": f"{word} "}, "finish_reason": None}]}
                connection.sendall(f"data: {json.dumps(chunk)}\n\n".encode())
            if answer != "break":
                connection.sendall(b"data: [DONE]\n\n")
            connection.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server("It is four.", "hang", "break", "It is five.")
    yield server
    with contextlib.suppress(OSError):
        server.close()


def test_a_server_that_hangs_breaks_off_and_goes(tmp_path, server):
    """One conversation: each fault is told, what came before it is heard, and the next question is answered."""
    with Talk(tmp_path, scene(end_s=1), Url(server.url, "any", read_timeout_s=2.0)) as talk:
        talk.sound.hold = lambda: len(talk.turns) < 5
        for number in range(5):
            if number == 4:
                server.close()
            talk.conversation.say(f"Question {number}?")
            talk.until(lambda: len(talk.turns) > number and not talk.conversation.is_busy)  # noqa: B023
        talk.finish()
    assert [turn["heard"] for turn in talk.turns] == [
        "It is four.",
        "",
        "It is far away from here, and then",
        "It is five.",
        "",
    ]
    hanging, broken, gone = [event["message"] for event in talk.told.of("error")]
    assert "sent nothing for 2 s before its first word; look at its log" in hanging
    assert "broke off after 35 characters; look at its log, and ask again" in broken
    assert "refused; start its server" in gone
    assert [bool(turn.get("error")) for turn in talk.turns] == [False, True, True, False, True]
    # What failed altogether was never said, to either model.
    assert len(talk.engine.session.turns) <= 2 * 3 + 1


def test_a_server_that_is_not_there(run):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
    result = run("talk", "--text", "--llm-url", url, stdin=b"Hello.\n")
    assert result.code == 1
    assert result.err.splitlines()[-1] == (
        f"error: cannot reach the language model at --llm-url {url}: Connection refused; start its server, or give the "
        "URL of one that runs"
    )


FAILED = {
    "no recogniser": (
        ["--asr", "/nonexistent", "--input", "in.flac"],
        1,
        "cannot load whisper '/nonexistent'",
        "a name such as",
    ),
    "no microphone": ([], 1, "input", "or type with csm talk --text, or speak from a file with --input FILE"),
    "no sound": (["--input", "words.txt"], 1, "cannot read words.txt", ""),
    "a URL that is none": (["--llm-url", "localhost", "--text"], 1, "no http or https URL", "http://localhost:8080/v1"),
}
WRONG = {
    "no such file": (["--input", "no.wav"], "no.wav is not there"),
    "typed and heard": (["--text", "--input", "in.flac"], "--input out"),
    "a recogniser for what is typed": (["--text", "--asr", "tiny.en"], "--asr out"),
    "a file and a microphone": (["--input", "in.flac", "--input-device", "1"], "--input-device out"),
    "an output of a microphone": (["--output", "a.wav"], "--record"),
    "an answer into a pipe": (["--text", "--output", "-"], "needs a file"),
    "two language models": (["--llm-cmd", "cat", "--llm", "echo"], "--llm out"),
    "the answer over the question": (["--input", "in.flac", "--output", "./in.flac"], "name another file"),
    "a log over the question": (["--input", "in.flac", "--log", "./in.flac"], "name another file"),
    "a trace over the answer": (["--text", "--output", "a.wav", "--trace", "a.wav"], "a.wav is what --output writes"),
    "a log in no folder": (["--text", "--log", "no/log.jsonl"], "mkdir -p"),
}


@pytest.fixture
def files(tmp_path: Path) -> None:
    (tmp_path / "in.flac").write_bytes((DATA / "france.flac").read_bytes())
    (tmp_path / "words.txt").write_text("words")


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize("case", FAILED)
def test_failure_says_what_to_do(run, case):
    arguments, code, *messages = FAILED[case]
    given = arguments if "--llm-url" in arguments else [*arguments, "--llm", "echo"]
    result = run("talk", *given)
    assert result.code == code, result.err
    assert result.out == b""
    assert all(message in result.err.splitlines()[-1] for message in messages), result.err
    assert "Traceback" not in result.err


@pytest.mark.usefixtures("files")
def test_offline_fetches_nothing_that_is_asked_for(run):
    arguments = ("--offline", "--asr", "kyutai/stt-1b-en_fr", "--input", "in.flac", "--llm", "echo")
    result = run("talk", *arguments, env={"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": "http://127.0.0.1:9"})
    assert result.code == 1
    assert "HF_HUB_OFFLINE is set, and kyutai/stt-1b-en_fr is not in the cache" in result.err.splitlines()[-1]
    assert result.err.rstrip().endswith("; or leave --offline out")


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize("case", WRONG)
def test_flags_that_go_ill_together(call, case):
    arguments, message = WRONG[case]
    result = call("talk", *arguments)
    assert (result.code, result.out) == (2, b""), result.err
    assert message in result.err
    assert result.err.count("\n") == 1


class Breaks:
    """A recogniser that fails at a sound, after it has warmed up."""

    model = "broken"

    def transcribe(self, pcm: np.ndarray, sample_rate_hz: int) -> str:  # noqa: ARG002
        raise RuntimeError("out of luck")


class BreaksToo(Says):
    def reply(self, messages, notify):  # noqa: ARG002
        raise RuntimeError("out of luck")


@pytest.mark.parametrize("where", ["hearing", "worker", "ears"])
def test_an_error_in_a_thread_ends_the_conversation(tmp_path, where, monkeypatch):
    with Talk(
        tmp_path,
        scene((0.3, "moon"), end_s=30),
        BreaksToo("x") if where == "worker" else Says("Far."),
        recognizer=Breaks() if where == "hearing" else None,
    ) as talk:
        if where == "ears":
            monkeypatch.setattr(talk.sound, "_heard", None)  # whatever it may be
        with pytest.raises(TypeError if where == "ears" else RuntimeError):
            talk.until(lambda: talk.conversation.is_over)


def test_a_full_disk_costs_no_line_and_no_conversation(tmp_path):
    """A limit on the size of files, which fails as a full disk does: in the middle of a line."""
    notes: list[str] = []
    path = tmp_path / "log.jsonl"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with Talk(tmp_path, scene(end_s=1), Says("One.", "Two.", "Three."), sinks=[Log(path, notes.append)]) as talk:
            talk.sound.hold = lambda: len(talk.turns) < 3
            for number in range(3):
                if number == 1:
                    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 40, limits[1]))
                talk.conversation.say(f"Question {number}?")
                talk.until(lambda: len(talk.turns) > number and not talk.conversation.is_busy)  # noqa: B023
                resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            talk.finish()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [turn["heard"] for turn in talk.turns] == ["One.", "Two.", "Three."]
    assert [json.loads(line)["assistant"] for line in path.read_text().splitlines()] == ["One.", "Three."]
    (note,) = notes
    assert str(path) in note
    assert "until there is room" in note


def two_questions(folder: Path) -> Path:
    write_audio(folder / "in.wav", scene((0.3, "france"), (16.0, "moon"), end_s=30), RATE_HZ)
    return folder / "in.wav"


def spoken_turns(log: Path) -> list[dict]:
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


@pytest.fixture
def terminal(tmp_path, environment) -> Iterator[Terminal]:
    """A conversation on a screen, whose answers do not end."""
    command = [*COMMAND, "--input", str(two_questions(tmp_path)), "--llm-cmd", FOR_EVER, "--log", "log.jsonl"]
    env = {name: value for name, value in environment.items() if name not in ("COLUMNS", "NO_COLOR")}
    with Terminal(command, env=env, cwd=tmp_path) as terminal:
        yield terminal


def assert_restored(terminal: Terminal) -> None:
    assert terminal.settings == terminal.before
    assert terminal.raw.rfind("\x1b[?25h") >= terminal.raw.rfind("\x1b[?25l"), "the cursor is hidden"


@pytest.fixture
def bystander() -> Iterator[Bystander]:
    with Bystander("csm_mlx_app.talking, mlx.core") as bystander:
        yield bystander


def assert_leaves(terminal: Terminal, bystander: Bystander, expected: int, tell: Callable[[], None]) -> None:
    """Within a second of `tell`, with nothing left behind."""
    bystander.end()
    tell()
    code, took_s = terminal.leave()
    print(f"\nleft after {took_s:.2f} s, a bystander after {bystander.took_s:.2f} s")
    assert code == expected, terminal.text
    assert took_s < LEAVES_S + bystander.took_s
    assert_restored(terminal)
    assert "Traceback" not in terminal.text


def test_ctrl_c_stops_the_answer_and_kill_ends_it_all(terminal, bystander, tmp_path):
    log = tmp_path / "log.jsonl"
    terminal.wait_for("▶ speaking")
    assert terminal.settings != terminal.before, "single keys"
    terminal.type("\x03")
    terminal.wait_for("‖")
    terminal.wait_for(lambda: len(spoken_turns(log)) == 1)
    terminal.wait_for(lambda: "▶ speaking" in terminal.text[terminal.text.rindex("‖") :])
    assert_leaves(terminal, bystander, 128 + signal.SIGTERM, lambda: os.kill(terminal.pid, signal.SIGTERM))
    assert log.read_text().endswith("}\n")
    assert [turn["user"] for turn in spoken_turns(log)] == ["What is the capital of France?"]


@pytest.mark.slow
def test_a_narrow_terminal_and_ctrl_c_twice(terminal, bystander):
    terminal.wait_for("▶ speaking")
    n_shown = len(terminal.text)
    terminal.resize(20)
    terminal.wait_for(lambda: len(terminal.text) > n_shown + 2000)
    drawn = terminal.text[n_shown + 400 :].splitlines()  # a frame later
    assert max(map(len, drawn)) <= 20
    terminal.type("\x03")
    terminal.wait_for("Ctrl-C again")
    assert_leaves(terminal, bystander, 130, lambda: terminal.type("\x03"))


def test_ctrl_c_twice_leaves_at_once(bystander, tmp_path, environment):
    """In the middle of an answer that would not end."""
    command = [*COMMAND, "--text", "--llm-cmd", FOR_EVER]
    with Terminal(command, env=environment, cwd=tmp_path) as terminal:
        terminal.wait_for("type")
        terminal.type("How far away is the moon?\n")
        terminal.wait_for("assistant: The moon")
        terminal.type("\x03")
        terminal.wait_for("Ctrl-C again to leave")
        assert_leaves(terminal, bystander, 130, lambda: terminal.type("\x03"))


def test_no_stdin_at_all(tmp_path, environment):
    """Typing is over before it has begun."""
    with Terminal(
        ["sh", "-c", f"exec {' '.join(COMMAND)} --text --llm echo <&-"], env=environment, cwd=tmp_path
    ) as terminal:
        code, _ = terminal.leave()
        assert code == 0, terminal.text
        assert "0 turns" in terminal.text
