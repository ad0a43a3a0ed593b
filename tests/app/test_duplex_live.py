"""`csm duplex` with sound that is really played and really heard, through PulseAudio, and what goes wrong with it."""

import json
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from csm_mlx_app.assistant.duplex import MOST_QUEUED_S, QUEUED_S, Backlog, Duplex, Frame, Prepared
from csm_mlx_app.assistant.report import Report
from csm_mlx_app.sound.clock import SimulatedClock
from csm_mlx_app.sound.filed import FileSound
from support.kyutai import write_checkpoint
from support.live import AUDIBLE, unless_overloaded
from support.pulse import Pulse, needs_pulse, pulse
from support.talks import Told
from support.terminal import Bystander, Terminal

from csm_mlx.audio import write_audio
from csm_mlx.errors import AudioError

COMMAND = [sys.executable, "-m", "csm_mlx_app", "duplex", "--echo", "off"]
GIVE_UP_S = 60.0
LEAVES_S = 1.0
"""Promised; beside what a process that has nothing to end takes at the same moment, on a machine that is busy."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("duplex") / "moshi", "moshi")


@pytest.fixture
def server(tmp_path) -> Iterator[Pulse]:
    with pulse(tmp_path, mic=True) as server:
        yield server


class Running:
    """A `csm duplex --json`, and its events so far."""

    def __init__(self, server: Pulse, folder: Path, env: dict[str, str], *flags: str):
        self.events: list[dict[str, Any]] = []
        command = [*COMMAND, "--model", str(folder), "--json", *flags]
        self.process = subprocess.Popen(
            ["sh", "-c", f"exec {shlex.join(command)} <&-"],  # nobody needs a stdin
            env=env | server.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.events.append(json.loads(line))

    def of(self, event: str) -> list[dict[str, Any]]:
        return [e for e in self.events if e["event"] == event]

    def until(self, ready: Callable[[], Any], what: str) -> Any:
        end_s = time.monotonic() + GIVE_UP_S
        while not (answer := ready()):
            assert self.process.poll() is None or ready(), f"ended before {what}: {self.events[-10:]}"
            assert time.monotonic() < end_s, f"no {what}: {self.events[-10:]}"
            time.sleep(0.02)
        return answer

    def leave(self, by: signal.Signals = signal.SIGINT) -> tuple[int, float, str]:
        """Exit code, how long it took, and stderr."""
        began_s = time.monotonic()
        self.process.send_signal(by)
        code = self.process.wait(GIVE_UP_S)
        took_s = time.monotonic() - began_s
        self._reader.join(timeout=5)
        assert self.process.stderr is not None
        return code, took_s, self.process.stderr.read().decode()

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def bystander() -> Iterator[Bystander]:
    with Bystander("csm_mlx_app.duplexing, mlx.core") as bystander:
        yield bystander


@pytest.fixture
def duplex(server, folder, environment) -> Iterator[Callable[..., Running]]:
    running = []
    env = {name: value for name, value in environment.items() if name != "PULSE_SERVER"}

    def duplex(*flags: str) -> Running:
        running.append(Running(server, folder, env, *flags))
        return running[-1]

    yield duplex
    for one in running:
        one.close()


def loudness(server_tap: Any, since_s: float, until_s: float | None = None) -> float:
    """The share of samples that are audible."""
    pcm, _ = server_tap.between(since_s, until_s)
    return float(np.mean(np.abs(pcm) > AUDIBLE)) if len(pcm) else 0.0


@needs_pulse
def test_it_speaks_while_it_listens_through_faults_until_ctrl_c(server, duplex, bystander):
    """Moshi of random weights never stops: what is played is sound all along, but while there is no loudspeaker."""
    with unless_overloaded():
        heard = server.tap("speaker")
        talk = duplex()
        talk.until(lambda: talk.of("ready"), "ready")
        speed = talk.of("speed")[0]
        assert speed["budget_ms"] == 80
        assert speed["fast_enough"] == (speed["step_ms"] <= 72)
        began_s = time.monotonic()
        talk.until(lambda: len(talk.of("text")) > 8, "text")
        time.sleep(1.5)
        assert loudness(heard, began_s + 0.5) > 0.3
        server.unplug("speaker")
        fault = talk.until(lambda: talk.of("fault"), "fault")[0]
        assert fault["kind"] == "output-gone"
        assert "it is looked for every second" in fault["message"]
        n_text = len(talk.of("text"))
        talk.until(lambda: len(talk.of("text")) > n_text + 8, "text without a loudspeaker")
        server.plug_speaker()
        talk.until(lambda: [f for f in talk.of("fault") if f["kind"] == "recovered"], "recovery")
        heard, again_s = server.tap("speaker"), time.monotonic()
        time.sleep(1.5)
        assert loudness(heard, again_s + 0.5) > 0.3
        bystander.end()
        code, took_s, err = talk.leave()
        assert (code, err) == (130, "")
        assert took_s < LEAVES_S + bystander.took_s
        summary = talk.events[-1]
        assert summary["event"] == "summary"
        assert summary["seconds"] > 3


@needs_pulse
def test_it_goes_on_without_a_microphone_and_keeps_what_was_said_when_killed(server, duplex, bystander, tmp_path):
    """Its time goes on too: what it hears meanwhile is silence."""
    with unless_overloaded():
        talk = duplex("--log", str(tmp_path / "log"), "--tokens", str(tmp_path / "t.safetensors"))
        talk.until(lambda: talk.of("text"), "text")
        server.unplug("mic")
        fault = talk.until(lambda: talk.of("fault"), "fault")[0]
        assert fault["kind"] == "input-gone"
        n_text = len(talk.of("text"))
        talk.until(lambda: len(talk.of("text")) > n_text + 8, "text without a microphone")
        server.plug_mic()
        talk.until(lambda: [f for f in talk.of("fault") if f["kind"] == "recovered"], "recovery")
        n_text = len(talk.of("text"))
        talk.until(lambda: len(talk.of("text")) > n_text + 8, "text after it")
        bystander.end()
        code, took_s, err = talk.leave(signal.SIGTERM)
        assert (code, err) == (128 + signal.SIGTERM, "")
        assert took_s < LEAVES_S + bystander.took_s
        assert_kept(talk, tmp_path)


def assert_kept(talk: Running, tmp_path: Path) -> None:
    """Tokens of each frame that was heard, of those that the summary counts; the last may be on its way."""
    said = "".join(event["text"] for event in talk.of("text"))
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert "".join(line["assistant"] for line in lines).split() == said.split()
    tensors = mx.load(str(tmp_path / "t.safetensors"))
    assert isinstance(tensors, dict)
    summary = talk.events[-1]
    n_left_out, n_frames = summary["frames_left_out"], round(summary["seconds"] * 12.5)
    assert -1 <= len(tensors["text"]) - (n_frames - n_left_out) <= n_left_out + 1


@needs_pulse
def test_the_time_is_up_and_tokens_are_kept(duplex, tmp_path):
    with unless_overloaded():
        talk = duplex("--seconds", "1.6", "--tokens", str(tmp_path / "t.safetensors"), "--log", str(tmp_path / "log"))
        assert talk.process.wait(GIVE_UP_S) == 0
        talk.until(lambda: talk.of("summary"), "summary")
        summary = talk.of("summary")[0]
        n_left_out = summary["frames_left_out"]
        assert 1.6 <= summary["seconds"] + 1e-6 <= 1.6 + 0.08 * (n_left_out + 0.1)
        tensors = mx.load(str(tmp_path / "t.safetensors"))
        assert isinstance(tensors, dict)
        n_frames = len(tensors["text"])
        assert 20 - n_left_out <= n_frames <= 20
        assert tensors["audio"].shape == (n_frames, 4)
        assert json.loads((tmp_path / "log").read_text().splitlines()[0])["assistant"]


@needs_pulse
def test_on_a_terminal_its_words_appear_and_ctrl_c_leaves_it_as_it_was(server, folder, environment, bystander):
    env = {name: value for name, value in environment.items() if name != "PULSE_SERVER"} | server.env
    with unless_overloaded(), Terminal([*COMMAND, "--model", str(folder)], env=env) as terminal:
        terminal.wait_for("moshi hears")
        assert "real-time factor" in terminal.text
        terminal.resize(20)
        said_after = len(terminal.text)
        terminal.wait_for(lambda: len(terminal.text) > said_after + 20)
        bystander.end()
        terminal.type("\x03")
        code, took_s = terminal.leave()
        assert code == 130
        assert took_s < LEAVES_S + bystander.took_s
        assert "s of conversation" in terminal.text.splitlines()[-1]
        assert terminal.settings == terminal.before
        assert "Traceback" not in terminal.text


def frame(level: float) -> Frame:
    return Frame(np.full(1920, level, np.float32), 0.08)


def test_what_waits_too_long_is_left_out_silence_first():
    backlog = Backlog(most=3)
    for level in (0.1, 0.0, 0.2, 0.3):
        backlog.put(frame(level))
    assert (len(backlog), backlog.n_dropped) == (3, 1)
    backlog.put(frame(0.4))
    assert backlog.n_dropped == 2
    taken = [backlog.take() for _ in range(4)]
    assert [None if f is None else round(float(f.pcm[0]), 1) for f in taken] == [0.2, 0.3, 0.4, None]


def conversation(tmp_path: Path, prepare: Callable[[], Prepared], seconds: float) -> tuple[Duplex, Told, FileSound]:
    """On a file, on a clock that passes only while somebody works."""
    write_audio(tmp_path / "in.wav", 0.1 * np.sin(np.arange(round(seconds * 24_000))).astype(np.float32), 24_000)
    sound, told = FileSound(tmp_path / "in.wav", None, SimulatedClock(), tail_s=0.0), Told()
    return Duplex(sound, Report(sound.clock.now_s, [told]), prepare, canceller=None), told, sound


def finish(duplex: Duplex) -> None:
    duplex.start()
    try:
        end_s = time.monotonic() + GIVE_UP_S
        while not duplex.is_over:
            assert time.monotonic() < end_s
            time.sleep(0.01)
    finally:
        duplex.close()


def test_a_machine_that_is_too_slow_leaves_sound_out_and_says_so_once(tmp_path):
    heard = []

    def step(frame: Frame) -> np.ndarray:
        heard.append(frame.end_s)
        time.sleep(0.2)
        return frame.pcm

    duplex, told, _ = conversation(tmp_path, lambda: Prepared(1920, step), 3.2)
    finish(duplex)
    n_frames = len(heard) + duplex.n_dropped
    # What was left out has passed all the same; the last of it may be silence that was left out too.
    assert 3.2 - 1e-6 <= max(heard) <= 0.08 * n_frames + 1e-6
    assert heard == sorted(heard)
    assert 35 <= n_frames <= 60  # the file, and what it waits for at its end
    assert duplex.n_dropped >= 15
    assert [note["message"] for note in told.of("note")] == [
        "this machine is late: sound that waits for it is left out, silence first; the end tells how much"
    ]


def test_what_goes_wrong_in_a_step_ends_it(tmp_path):
    def step(frame: Frame) -> np.ndarray:
        raise AudioError(f"{len(frame.pcm)} samples")

    duplex, _, _ = conversation(tmp_path, lambda: Prepared(1920, step), 1.0)
    with pytest.raises(AudioError, match="1920 samples"):
        finish(duplex)

    def broken() -> Prepared:
        raise AudioError("no model")

    duplex, _, _ = conversation(tmp_path, broken, 1.0)
    with pytest.raises(AudioError, match="no model"):
        finish(duplex)


@pytest.mark.parametrize(("level", "most_s"), [(0.0, QUEUED_S), (0.3, MOST_QUEUED_S)])
def test_what_is_said_does_not_fall_behind_for_good(tmp_path, level, most_s):
    """Frames made in a burst, after a delay: answers come at most so much later than they could."""
    duplex, _, sound = conversation(tmp_path, lambda: Prepared(1920, lambda frame: frame.pcm), 1.0)
    sound.start()
    with sound.clock.attend():
        for _ in range(10):
            duplex._say(frame(level).pcm)
        assert most_s - 0.05 < sound.buffered_s < most_s + 0.081
    assert duplex.n_skipped > 2
    sound.close()
