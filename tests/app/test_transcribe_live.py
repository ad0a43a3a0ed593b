"""`csm transcribe --mic` through a virtual microphone, which comes and goes."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import mlx.core as mx
import pytest
from support.kyutai import write_checkpoint
from support.pulse import Pulse, needs_pulse, pulse
from support.stt import noise
from support.terminal import Terminal

pytestmark = needs_pulse

GIVE_UP_S = 90.0


class Listener:
    """A running command, and what it says."""

    def __init__(self, server: Pulse, folder: Path, *flags: str, has_stdin: bool = True):
        env = {k: v for k, v in os.environ.items() if k != "NO_COLOR"} | server.env
        self._out, self._err = folder / "out", folder / "err"
        command = [sys.executable, "-m", "csm_mlx_app", "transcribe", "--mic", *flags]
        if not has_stdin:
            command = ["sh", "-c", f"exec {shlex.join(command)} <&-"]
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self.process = subprocess.Popen(
                command, cwd=folder, env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=err, start_new_session=True
            )

    @property
    def out(self) -> str:
        return self._out.read_text()

    @property
    def err(self) -> str:
        return self._err.read_text()

    def until(self, ready: Callable[[], object], what: str) -> None:
        end_s = time.monotonic() + GIVE_UP_S
        while not ready():
            assert self.process.poll() is None, f"ended with {self.process.returncode} before {what}: {self.err}"
            assert time.monotonic() < end_s, f"no {what}: {self.err}"
            time.sleep(0.05)

    def interrupt(self) -> int:
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(timeout=30)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("stt") / "stt-1b-small", "stt", "candle", wordy=True)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Pulse]:
    with pulse(tmp_path, mic=True) as server:
        yield server


def test_words_come_until_ctrl_c_and_the_last_ones_after_it(server: Pulse, tmp_path: Path, checkpoint: Path) -> None:
    flags = ("--model", str(checkpoint), "--json", "-o", "said.vtt", "--tokens", "t.safetensors")
    server.unplug("speaker")  # none is needed
    listener = Listener(server, tmp_path, *flags)
    try:
        listener.until(lambda: "Ctrl-C ends it" in listener.err, "microphone")
        speaking = server.speak(noise(60.0))
        listener.until(lambda: listener.out.count("\n") >= 4, "words")
        assert listener.interrupt() == 0
        speaking.kill()
    finally:
        listener.process.kill()
        listener.process.wait()
    words = [json.loads(line) for line in listener.out.splitlines()]
    assert all(a["stop_s"] <= b["start_s"] for a, b in pairwise(words))
    assert "real-time factor" in listener.err
    assert "Traceback" not in listener.err
    text = (tmp_path / "said.vtt").read_text()
    assert text.startswith("WEBVTT\n")
    # Frames of the sound, the silent prefix of one, and what a flush pushes, a second at most: 80 ms each.
    heard_s = float(listener.err.split(" s of sound")[0].split()[-1])
    tensors = mx.load(str(tmp_path / "t.safetensors"))
    assert isinstance(tensors, dict)
    assert words[-1]["stop_s"] <= heard_s + 0.1
    assert tensors["text"].size >= (heard_s - 0.05) * 12.5 + 1 + 3  # it is told in tenths of a second


def test_a_microphone_that_is_lost_is_told_and_waited_for(server: Pulse, tmp_path: Path, checkpoint: Path) -> None:
    listener = Listener(server, tmp_path, "--model", str(checkpoint))
    try:
        listener.until(lambda: "Ctrl-C ends it" in listener.err, "microphone")
        server.unplug("mic")
        listener.until(lambda: "is gone" in listener.err, "note of the loss")
        server.plug_mic()
        listener.until(lambda: "works again" in listener.err, "note of the return")
        before = listener.out
        speaking = server.speak(noise(60.0))
        listener.until(lambda: len(listener.out.split()) > len(before.split()) + 2, "words")
        assert listener.interrupt() == 0
        speaking.kill()
    finally:
        listener.process.kill()
        listener.process.wait()
    assert listener.out.endswith("\n")
    assert "Traceback" not in listener.err


def test_kill_keeps_what_was_said_and_needs_no_stdin(server: Pulse, tmp_path: Path, checkpoint: Path) -> None:
    listener = Listener(server, tmp_path, "--model", str(checkpoint), "--json", "-o", "said.vtt", has_stdin=False)
    try:
        listener.until(lambda: "Ctrl-C ends it" in listener.err, "microphone")
        speaking = server.speak(noise(60.0))
        listener.until(lambda: listener.out.count("\n") >= 4, "words")
        listener.process.terminate()
        assert listener.process.wait(timeout=30) == 128 + signal.SIGTERM
        speaking.kill()
    finally:
        listener.process.kill()
        listener.process.wait()
    told = " ".join(json.loads(line)["text"] for line in listener.out.splitlines()).split()  # a word may have spaces
    text = (tmp_path / "said.vtt").read_text()
    assert text.startswith("WEBVTT\n")
    said = " ".join(line for line in text.splitlines()[1:] if line and "-->" not in line).split()
    n_both = min(len(said), len(told))
    assert said[:n_both] == told[:n_both]
    assert n_both >= 4
    assert "Traceback" not in listener.err


def columns_used(line: str) -> int:
    """The widest that the cursor got before it went back, which it cannot beyond an edge; words that stay may be longer
    than a line."""
    column = most = 0
    for character in re.sub(r"\x1b\[[0-9;]*[mK]|\r", "", line):
        if character == "\b":
            most = max(most, column)
        column += -1 if character == "\b" else 1
    return most


def test_a_terminal_of_twenty_columns_holds_the_words(server: Pulse, checkpoint: Path, environment: dict) -> None:
    env = {name: value for name, value in environment.items() if name not in ("COLUMNS", "PULSE_SERVER")} | server.env
    command = [sys.executable, "-m", "csm_mlx_app", "transcribe", "--mic", "--model", str(checkpoint)]
    with Terminal(command, env=env) as terminal:
        terminal.wait_for("Ctrl-C ends it")
        n_before = len(terminal.raw)
        terminal.resize(20)
        speaking = server.speak(noise(60.0))
        terminal.wait_for(lambda: len(terminal.raw[n_before:].split("\n")) > 4)
        shown = terminal.raw[n_before:]
        terminal.type("\x03")
        code, _ = terminal.leave()
        speaking.kill()
        assert code == 0, terminal.text
        assert terminal.settings == terminal.before
        assert "Traceback" not in terminal.text
    columns = [columns_used(line) for line in shown.split("\n")[1:]]
    assert max(columns) <= 20, shown


def test_a_microphone_that_is_not_there_is_told_first(server: Pulse, tmp_path: Path) -> None:
    listener = Listener(server, tmp_path, "--input-device", "nobody's", "--model", "nowhere")
    assert listener.process.wait(timeout=60) == 1
    assert 'the microphone "nobody\'s" is none of them' in listener.err
    assert len(listener.err.splitlines()) == 1
