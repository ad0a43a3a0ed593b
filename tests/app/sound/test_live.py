"""Microphone and loudspeaker through PortAudio, on a PulseAudio of the test's own."""

import json
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from csm_mlx_app.sound import devices
from csm_mlx_app.sound.clock import RealClock
from csm_mlx_app.sound.device import BLOCK_S, RATE_HZ, Block
from csm_mlx_app.sound.line import HANGS, OUTPUT_LATENCY_S, SILENT_S, Line, open_microphone
from csm_mlx_app.sound.live import LiveSound
from support.pulse import Pulse, needs_pulse, pulse

from csm_mlx.audio import read_audio
from csm_mlx.errors import DeviceError

pytestmark = needs_pulse
SPEECH = Path(__file__).parents[2] / "data" / "harbour.flac"


class Hand(RealClock):
    """A clock that is set by hand."""

    t_s = 100.0

    def now_s(self) -> float:
        return self.t_s


class Ears:
    """Reads in a thread of its own, as a conversation does."""

    def __init__(self, sound: LiveSound):
        self.sound = sound
        self.blocks: list[Block] = []
        self.lateness_s: list[float] = []
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        while (block := self.sound.read()) is not None:
            self.lateness_s.append(self.sound.clock.now_s() - block.t_s)
            self.blocks.append(block)

    def join(self) -> bool:
        self._thread.join(timeout=2)
        return not self._thread.is_alive()

    def between(self, start_s: float, stop_s: float, name: str = "pcm") -> np.ndarray:
        return np.concatenate([getattr(block, name) for block in self.blocks if start_s < block.t_s <= stop_s])


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Pulse]:
    with pulse(tmp_path_factory.mktemp("live"), mic=True) as server, pytest.MonkeyPatch.context() as patch:
        for name, value in server.env.items():
            patch.setenv(name, value)
        devices.look_again()
        yield server


@pytest.fixture
def live(server) -> Iterator[tuple[Pulse, LiveSound, Ears]]:
    assert server
    sound = LiveSound(None, None, RealClock())
    sound.start()
    ears = Ears(sound)
    time.sleep(0.4)
    yield server, sound, ears
    sound.close()
    assert ears.join()


def found(speech: np.ndarray, sound: np.ndarray) -> float:
    """How much of `speech` is in `sound`: a busy machine tears gaps into both, so piece by piece of 0.2 s."""
    pieces = [piece for piece in np.array_split(speech, round(len(speech) / RATE_HZ * 5)) if piece.std() > 0.01]
    n, there = len(sound) + len(pieces[0]), 0
    spectrum, energy = np.fft.rfft(sound, n), np.cumsum(np.square(sound, dtype=float))
    for piece in pieces:
        match = np.fft.irfft(spectrum * np.conj(np.fft.rfft(piece, n)), n)[: len(sound) - len(piece)]
        start = int(match.argmax())
        there += (
            match[start] > 0.9 * piece.std() * len(piece) ** 0.5 * (energy[start + len(piece)] - energy[start]) ** 0.5
        )
    return there / len(pieces)


def sounding_s(pcm: np.ndarray) -> float:
    """How much of it is no silence, wherever it is: a busy machine may tear gaps into it."""
    return np.count_nonzero(np.abs(pcm) > 0.003) / RATE_HZ


def fault(sound: LiveSound, within_s: float) -> tuple[str, str]:
    until_s = sound.clock.now_s() + within_s
    while sound.clock.now_s() < until_s:
        if told := sound.faults():
            assert len(told) == 1
            return told[0].kind, told[0].message
        time.sleep(0.01)
    return "nothing", f"no fault in {within_s} s"


def test_it_hears_and_is_heard_and_knows_what_it_played(live):
    server, sound, ears = live
    speech = read_audio(SPEECH, RATE_HZ)
    tap, n_heard, start_s = server.tap("speaker"), len(server.heard()), sound.clock.now_s()
    server.speak(speech)
    sound.more = True
    first_s = sound.clock.now_s()
    for pcm in np.array_split(speech, 35):  # as frames come
        sound.write(pcm)
    sound.more = False
    assert sound.n_written == len(speech)
    heard_s = len(speech) / RATE_HZ - sound.buffered_s
    assert 0 <= heard_s <= sound.clock.now_s() - first_s + OUTPUT_LATENCY_S + 0.05  # a buffer is filled at once
    time.sleep(1.5)
    n_played = sound.n_played
    assert 0 < n_played <= (sound.clock.now_s() - first_s + 0.1) * RATE_HZ
    assert sound.clock.wait(lambda: sound.n_played == sound.n_written, sound.clock.now_s() + 3)
    # However late a busy machine began, and whatever gaps it made: no sooner than its end sounds, and not much later.
    time.sleep(0.5)
    end_s, (pcm, since_s) = time.monotonic() - 0.5, tap.between(0.0)
    last_s = since_s + np.flatnonzero(np.abs(pcm) > 0.003)[-1] / RATE_HZ
    assert last_s - 0.15 <= end_s <= last_s + 1
    time.sleep(0.3)
    stop_s = ears.blocks[-1].t_s
    assert found(speech, server.heard()[n_heard:]) > 0.5
    assert found(speech, ears.between(start_s, stop_s)) > 0.5
    assert found(speech, ears.between(start_s, stop_s, "played")) > 0.5
    assert np.allclose(np.diff([block.t_s for block in ears.blocks]), BLOCK_S, atol=0.011)
    assert np.median(ears.lateness_s[10:]) < 0.1
    assert sound.faults() == []


def test_pausing_and_dropping_are_silent_at_once(live):
    server, sound, _ = live
    tap = server.tap("speaker")
    sound.more = True
    sound.write(np.full(5 * RATE_HZ, 0.3, np.float32))
    time.sleep(0.5)
    sound.pause()
    paused_s = time.monotonic()
    time.sleep(0.05)
    n_underruns = sound.n_underruns
    time.sleep(0.3)
    assert sounding_s(tap.between(paused_s)[0]) < 0.12  # what its buffer held, and the fade
    assert sounding_s(tap.between(0.0, paused_s)[0]) > 0.2
    assert sound.buffered_s > 3
    assert sound.n_underruns == n_underruns, "a pause is no gap"
    held, resumed_s = sound.n_played, sound.clock.now_s()
    sound.resume()
    assert sound.clock.wait(lambda: sound.n_played > held + 0.1 * RATE_HZ, sound.clock.now_s() + 3)
    assert sound.n_played - held <= (sound.clock.now_s() - resumed_s + 0.1) * RATE_HZ
    n = sound.drop()
    dropped_s = time.monotonic()
    assert n == sound.n_written
    assert sound.buffered_s == 0
    time.sleep(0.35)
    assert sound.n_played == n
    assert sounding_s(tap.between(dropped_s)[0]) < 0.12


@pytest.mark.slow
def test_what_is_unplugged_is_missed_and_found_again(live):
    server, sound, ears = live
    speech = read_audio(SPEECH, RATE_HZ)
    server.unplug("mic")
    kind, message = fault(sound, 2.5)
    assert kind == "input-gone", message
    assert "microphone" in message
    time.sleep(0.3)
    n_blocks, start_s = len(ears.blocks), sound.clock.now_s()
    time.sleep(0.6)
    assert len(ears.blocks) - n_blocks == pytest.approx(30, abs=12), "silence goes on at its pace"
    server.plug_mic()
    kind, message = fault(sound, 4)
    assert kind == "recovered", message
    server.speak(speech)
    sound.write(speech)
    sound.more = False
    server.unplug("speaker")
    kind, message = fault(sound, 2.5)
    assert kind == "output-gone", message
    assert sound.clock.wait(lambda: sound.n_played == sound.n_written, sound.clock.now_s() + 4), "time passes"
    server.plug_speaker()
    kind, message = fault(sound, 4)
    assert kind == "recovered", message
    n_heard = len(server.heard())
    sound.write(speech[:RATE_HZ])
    sound.more = False
    time.sleep(1.3)
    assert found(speech[:RATE_HZ], server.heard()[n_heard:]) > 0.5
    assert found(speech, ears.between(start_s, ears.blocks[-1].t_s)) > 0.5, "it hears through what the other loses"
    assert np.allclose(np.diff([block.t_s for block in ears.blocks]), BLOCK_S, atol=0.011)


@contextmanager
def stopped(pid: int, for_s: float) -> Iterator[None]:
    """A process that does not run for so long, from outside, because it may be this one."""
    command = f"kill -STOP {pid}; sleep {for_s}; kill -CONT {pid}"
    with subprocess.Popen(["sh", "-c", command], start_new_session=True):
        yield


def test_time_in_which_this_process_does_not_run_makes_no_device_hang(server):
    """A real stream whose server is stopped, and a clock by hand: so the only difference is how often is looked."""
    clock = Hand()
    line, _ = open_microphone(devices.find_device("input"), clock)
    until_s = time.monotonic() + 3
    while not line.heard and time.monotonic() < until_s:
        time.sleep(0.01)
    with stopped(server.pid, 0.8):
        time.sleep(0.4)  # what it had sent is taken
        assert line.lost() is None
        for _ in range(5):
            clock.t_s += 2 * SILENT_S  # nobody looked in between
            assert line.lost() is None
        n_looks = 0
        while line.lost() is None and n_looks < 1000:
            clock.t_s += 0.05
            n_looks += 1
        assert line.lost() == HANGS
        assert SILENT_S - 1 < n_looks * 0.05 < SILENT_S + 0.1
    line.close()


@pytest.mark.slow
def test_a_process_that_was_starved_takes_no_device_for_gone(live):
    _, sound, ears = live
    with stopped(os.getpid(), 2.0 * SILENT_S):
        pass
    time.sleep(1.0)
    assert sound.faults() == []
    n_blocks = len(ears.blocks)
    time.sleep(0.5)
    assert len(ears.blocks) - n_blocks > 15, "it hears again"


@pytest.mark.slow
def test_a_sound_server_that_hangs_is_told_only_when_it_hangs_for_long(live):
    server, sound, _ = live
    with stopped(server.pid, 0.5 * SILENT_S):
        pass
    time.sleep(1.0)
    assert sound.faults() == []
    with stopped(server.pid, 2.0 * SILENT_S):
        kind, message = fault(sound, 2.0 * SILENT_S)
        assert kind.endswith("-gone"), message
        assert "it hangs" in message
    time.sleep(5)
    told = [told.kind for told in sound.faults()]
    assert told.count("recovered") == 1 + told.count("input-gone") + told.count("output-gone"), told


def test_lost_samples_are_no_other_rate(server):
    """A line whose device gives less than was agreed: a rate that devices have is another rate, any other is loss."""
    assert server
    device = devices.find_device("input")
    for given_hz, expected_hz in ((device.rate_hz, None), (0.85 * device.rate_hz, None), (32_000, 32_000)):
        clock = Hand()
        line = Line(device, clock)
        measured = [line.measured_rate_hz()]
        for _ in range(1300):
            clock.t_s += 0.01
            line.count(round(given_hz * 0.01), xrun=False)
            measured.append(line.measured_rate_hz())
        assert next((rate_hz for rate_hz in measured if rate_hz), None) == expected_hz


def test_a_denied_microphone_is_named(server):
    assert server
    sound = LiveSound(None, None, RealClock(), platform="darwin")
    sound.start()
    kind, message = fault(sound, 2.5)
    assert (kind, "System Settings > Privacy & Security > Microphone" in message) == ("input-zeros", True)
    time.sleep(0.2)
    assert sound.faults() == [], "told once"
    sound.close()


def test_devices_are_listed_and_found(run, server):
    found = devices.list_devices()
    default = devices.find_device("input")
    assert default.default
    assert default in found
    assert devices.find_device("input", default.name.upper()) == default
    assert devices.find_device("input", str(default.index)) == devices.find_device("input", default.index) == default
    with pytest.raises(DeviceError, match="the microphone 'nonesuch' is none of them; choose with --input-device from"):
        LiveSound("nonesuch", None, RealClock()).start()
    with pytest.raises(DeviceError, match="the loudspeaker 99 is none of them; choose with --output-device from"):
        LiveSound(None, 99, RealClock()).start()
    listed = run("devices", env=server.env)
    assert (listed.code, listed.err) == (0, "")
    assert listed.text.splitlines()[0].split() == ["index", "name", "channels", "rate", "default"]
    row = next(line for line in listed.text.splitlines() if line.startswith("input") and line.endswith("*"))
    assert row.split()[1:3] == [str(default.index), default.name]
    assert [device.to_dict() for device in found] == json.loads(run("devices", "--json", env=server.env).out)


def test_a_machine_without_devices_says_so(run):
    result = run("devices")
    assert (result.code, result.text) == (0, "")
    assert "no microphones and no loudspeakers" in result.err
    assert json.loads(run("devices", "--json").out) == []
