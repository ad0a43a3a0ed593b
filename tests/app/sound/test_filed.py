"""Files as microphone and loudspeaker, on a clock that jumps: exact to the sample."""

import os
import resource
import threading
import time

import numpy as np
import pytest
from csm_mlx_app.sound.clock import RealClock, SimulatedClock
from csm_mlx_app.sound.device import BLOCK_S, BLOCK_SAMPLES, RATE_HZ
from csm_mlx_app.sound.filed import ECHO_DELAY_BLOCKS, FileSound
from csm_mlx_app.sound.gate import FADE_S
from support.memory import arrays_of_others, resident_bytes

from csm_mlx.audio import AudioWriter, read_audio, write_audio
from csm_mlx.errors import AudioError, DeviceError

N_FADE = round(FADE_S * RATE_HZ)


@pytest.fixture
def noise(tmp_path):
    """A second and 100 samples of noise."""
    pcm = np.random.default_rng(0).uniform(-0.5, 0.5, RATE_HZ + 100).astype(np.float32)
    write_audio(tmp_path / "in.wav", pcm, RATE_HZ)
    return tmp_path / "in.wav", read_audio(tmp_path / "in.wav", RATE_HZ)


def read_all(sound):
    blocks = []
    while (block := sound.read()) is not None:
        blocks.append(block)
    return blocks


def test_the_file_is_read_on_time_and_ends_in_silence(noise):
    path, pcm = noise
    clock = SimulatedClock()
    sound = FileSound(path, None, clock, tail_s=0.5)
    started = time.process_time()
    sound.start()
    start_s = clock.now_s()
    blocks = []
    while (block := sound.read()) is not None:
        assert clock.now_s() >= block.t_s
        blocks.append(block)
    assert time.process_time() - started < 1
    heard = np.concatenate([block.pcm for block in blocks])
    assert np.array_equal(heard[: len(pcm)], pcm)
    assert not heard[len(pcm) :].any()
    assert len(heard) / RATE_HZ == pytest.approx(len(pcm) / RATE_HZ + 0.5, abs=BLOCK_S)
    assert [block.t_s for block in blocks] == pytest.approx(start_s + BLOCK_S * np.arange(1, len(blocks) + 1), abs=1e-3)
    assert sound.read() is None
    sound.close()


def test_it_goes_on_while_there_is_work_or_sound(noise, tmp_path):
    path, _ = noise
    clock = SimulatedClock()
    sound = FileSound(path, tmp_path / "out.wav", clock, tail_s=0.2)
    sound.start()
    start_s, written = clock.now_s(), []
    sound.hold = lambda: clock.now_s() < start_s + 3

    def writes() -> None:
        with attendance:
            clock.wait(lambda: False, start_s + 2.5)
            sound.write(np.full(2 * RATE_HZ, 0.25, np.float32))
            written.append(clock.now_s() - start_s)

    attendance = clock.attend()
    writer = threading.Thread(target=writes)
    writer.start()
    blocks = read_all(sound)
    writer.join()
    assert blocks[-1].t_s - start_s == pytest.approx(written[0] + 2 + 0.2, abs=3 * BLOCK_S)
    assert sound.n_played == sound.n_written == 2 * RATE_HZ
    sound.close()
    heard = read_audio(tmp_path / "out.wav", RATE_HZ)
    voiced = np.flatnonzero(heard)
    assert voiced[0] / RATE_HZ == pytest.approx(written[0], abs=BLOCK_S + 1e-3)
    assert len(voiced) == voiced[-1] - voiced[0] + 1 == 2 * RATE_HZ
    played = np.concatenate([block.played for block in blocks])
    assert np.array_equal(played, heard[: len(played)])


class Steps:
    """A sound and a way through its time."""

    def __init__(self, path, out=None, **options):
        self.clock = SimulatedClock()
        self.sound = FileSound(path, out, self.clock, **options)
        self.sound.start()
        self.start_s = self.clock.now_s()

    def to(self, t_s: float) -> None:
        self.clock.wait(lambda: False, self.start_s + t_s)


def test_played_follows_the_clock_in_steps(noise):
    steps = Steps(noise[0])
    sound = steps.sound
    steps.to(0.1005)
    sound.write(np.ones(RATE_HZ, np.float32))
    for block in range(10):  # written during the step from 0.10 to 0.12, heard from 0.12 on
        steps.to(0.121 + block * BLOCK_S)
        assert sound.n_played == block * BLOCK_SAMPLES
        assert sound.buffered_s == pytest.approx(1 - (block + 1) * BLOCK_S)
    steps.to(5)
    assert (sound.n_played, sound.n_written, sound.buffered_s) == (RATE_HZ, RATE_HZ, 0)
    assert sound.n_underruns == 0
    with pytest.raises(DeviceError, match="60 s"):
        sound.write(np.zeros(61 * RATE_HZ, np.float32))


def test_pausing_holds_and_dropping_forgets(noise, tmp_path):
    steps = Steps(noise[0], tmp_path / "out.wav")
    sound = steps.sound
    steps.to(0.101)
    sound.more = True
    sound.write(np.full(RATE_HZ, 0.5, np.float32))
    steps.to(0.301)
    sound.pause()
    steps.to(0.501)
    held = sound.n_played
    assert held == 10 * BLOCK_SAMPLES + N_FADE
    assert sound.n_underruns == 0
    sound.resume()
    steps.to(0.601)
    assert held < sound.n_played == held + 4 * BLOCK_SAMPLES
    n = sound.drop()
    assert n == sound.n_written == held + 5 * BLOCK_SAMPLES + N_FADE
    steps.to(0.801)
    assert sound.n_played == n
    assert sound.buffered_s == 0
    sound.write(np.full(480, 0.5, np.float32))
    sound.more = False
    steps.to(1.001)
    assert sound.n_played == sound.n_written == n + 480
    sound.close()
    heard = read_audio(tmp_path / "out.wav", RATE_HZ)
    assert np.abs(np.diff(heard[round(0.13 * RATE_HZ) : round(0.75 * RATE_HZ)])).max() < 0.5 * 2.5 / N_FADE, "no click"
    at = [round(t_s * RATE_HZ) for t_s in (0.329, 0.52, 0.629, 0.82, 0.84)]
    assert not heard[at[0] : at[1]].any()
    assert not heard[at[2] : at[3]].any()
    assert heard[at[3] : at[4]].all()
    assert np.count_nonzero(heard) == n + 480


def test_running_dry_is_counted_on_its_own_clock(noise):
    steps = Steps(noise[0])
    sound = steps.sound
    for gap_s in (0.0, 0.1, 0.5):
        sound.more = True
        sound.write(np.ones(2 * BLOCK_SAMPLES, np.float32))
        steps.to(steps.clock.now_s() - steps.start_s + 0.041 + gap_s)
    assert sound.n_underruns == 2
    sound.more = False
    steps.to(9)
    assert sound.n_underruns == 2


def test_the_echo_comes_back_late_and_quiet(noise):
    path, pcm = noise
    steps = Steps(path, echo_db=-20.0)
    sound = steps.sound
    sound.write(np.random.default_rng(1).uniform(-0.9, 0.9, RATE_HZ // 2).astype(np.float32))
    blocks = read_all(sound)
    heard, played = (np.concatenate([getattr(block, name) for block in blocks]) for name in ("pcm", "played"))
    echo = heard - np.pad(pcm, (0, len(heard) - len(pcm)))
    n_late = ECHO_DELAY_BLOCKS * BLOCK_SAMPLES
    assert n_late / RATE_HZ == 0.06
    assert played.any()
    assert echo[n_late:] == pytest.approx(0.1 * played[:-n_late], abs=1e-6)


def test_minutes_take_seconds_and_no_memory(noise, tmp_path):
    arrays_of_others()  # not to be freed in the middle
    steps = Steps(noise[0], tmp_path / "out.wav")
    sound = steps.sound
    sound.hold = lambda: True
    words = np.full(10 * RATE_HZ, 0.1, np.float32)
    sizes, started = [], time.process_time()
    for minute in range(6):
        sound.write(words)
        for _ in range(3000):
            sound.read()
        sizes.append(resident_bytes())
        assert sound.n_played == sound.n_written == len(words) * (minute + 1)
    assert time.process_time() - started < 5
    assert max(sizes[2:]) - min(sizes[2:]) < 4e6, "a minute of sound is 6 MB"
    sound.close()


def test_files_that_fail(noise, tmp_path):
    with pytest.raises(AudioError, match="missing"):
        FileSound(tmp_path / "none.wav", None, RealClock()).start()
    with pytest.raises(AudioError, match="folder is missing"):
        FileSound(noise[0], tmp_path / "no" / "out.wav", RealClock()).start()


def test_a_full_disk_is_told_and_the_talk_goes_on(noise):
    if not os.path.exists("/dev/full"):
        pytest.skip("needs /dev/full")
    steps = Steps(noise[0])
    sound = steps.sound
    with open("/dev/full", "wb") as full:
        sound._writer = AudioWriter(full, RATE_HZ)
        sound.write(np.ones(RATE_HZ, np.float32))
        steps.to(3)
        assert sound.n_played == RATE_HZ
        told = sound.faults()
        assert [fault.kind for fault in told] == ["output-file"]
        assert "No space left" in told[0].message
        assert sound.faults() == []
        sound.close()


def test_what_was_written_before_the_disk_was_full_is_kept(tmp_path):
    clock = SimulatedClock()
    sound = FileSound(None, tmp_path / "out.wav", clock, tail_s=4)
    sound.start()
    sound.write(np.full(3 * RATE_HZ, 0.25, np.float32))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (3 * RATE_HZ, limits[1]))  # a second and a half
        read_all(sound)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [fault.kind for fault in sound.faults()] == ["output-file"]
    assert len(read_audio(tmp_path / "out.wav", RATE_HZ)) / RATE_HZ == pytest.approx(1.5, abs=0.01)
    assert [path.name for path in tmp_path.iterdir()] == ["out.wav"]
    sound.close()


def test_closing_before_the_start_does_nothing(tmp_path):
    FileSound(tmp_path / "missing.wav", tmp_path / "out.wav", SimulatedClock()).close()
    assert not list(tmp_path.iterdir())


def test_closing_wakes_the_reader(noise):
    clock = RealClock()
    sound = FileSound(noise[0], None, clock)
    sound.hold = lambda: True
    sound.start()
    ended = threading.Thread(target=lambda: read_all(sound))
    ended.start()
    time.sleep(0.1)
    sound.close()
    ended.join(timeout=1)
    assert not ended.is_alive()
