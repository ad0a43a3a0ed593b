"""Between what is written and what is heard: fades, counts, rates and times, without a device."""

from pathlib import Path

import numpy as np
import pytest
from csm_mlx_app.sound.device import CAPACITY_S, RATE_HZ
from csm_mlx_app.sound.gate import FADE_S, Gate
from csm_mlx_app.sound.reference import LEAD_S, Reference
from csm_mlx_app.sound.resampling import Resampler
from csm_mlx_app.sound.speaker import Speaker
from csm_mlx_app.sound.timing import MAX_ERROR_S, SampleClock, StreamTime

from csm_mlx.audio import read_audio
from csm_mlx.errors import DeviceError

DATA = Path(__file__).parents[2] / "data"
RATES_HZ = (16_000, 22_050, 24_000, 44_100, 48_000)


def take(gate: Gate, n: int) -> tuple[int, np.ndarray]:
    out = np.full(n, np.nan, np.float32)
    return gate.take(out), out


@pytest.mark.parametrize("n_block", [37, 240, 480])
def test_a_shut_gate_fades_holds_and_fades_in_again(n_block):
    gate = Gate(RATE_HZ, 2.0)
    sound = np.ones(20_000, np.float32)
    gate.ring.put(sound)
    out, taken = [], 0
    for block in range(40):
        gate.shut = 10 <= block < 30
        n, pcm = take(gate, n_block)
        taken += n
        out.append(pcm)
    heard, n_fade = np.concatenate(out), round(FADE_S * RATE_HZ)
    assert np.abs(np.diff(heard)).max() < 2.5 / n_fade, "no click"
    shut = heard[10 * n_block : 30 * n_block]
    n_faded = min(n_fade, len(shut))
    assert not shut[n_faded:].any(), "silent 8 ms after the call"
    assert heard[: 10 * n_block].min() == 1
    if len(shut) > n_fade:
        assert taken == 20 * n_block + n_fade, "what was held is not lost"
        assert len(gate.ring) == len(sound) - taken


def test_running_dry_is_an_underrun_only_inside_a_promise():
    gate = Gate(RATE_HZ, 1.0)
    take(gate, 100)
    gate.more = True
    take(gate, 100)
    assert gate.n_underruns == 0, "nothing has begun"
    gate.ring.put(np.ones(150, np.float32))
    take(gate, 100)
    take(gate, 100)
    take(gate, 100)
    assert gate.n_underruns == 1, "one gap, however long"
    gate.ring.put(np.ones(150, np.float32))
    gate.shut = True
    for _ in range(3):
        take(gate, 100)
    assert gate.n_underruns == 1, "a pause is none"
    gate.clear()
    gate.ring.put(np.ones(100, np.float32))
    take(gate, 100)
    gate.more = False
    take(gate, 100)
    assert gate.n_underruns == 1, "the end is none"


@pytest.mark.parametrize("to_hz", RATES_HZ)
@pytest.mark.parametrize("from_hz", RATES_HZ)
def test_streamed_resampling_keeps_the_sound_and_its_length(from_hz, to_hz):
    t = np.arange(from_hz // 2) / from_hz
    sound = np.sin(2 * np.pi * 1000 * t).astype(np.float32)
    resampler, out, rng, rest, latest_s = Resampler(from_hz, to_hz), [], np.random.default_rng(0), sound, 0.0
    for _ in range(2):  # a second sound of the same resampler begins anew
        out, rest, n_in = [], sound, 0
        while len(rest):
            n = int(rng.integers(1, from_hz // 50))
            out.append(resampler.put(rest[:n]))
            rest, n_in = rest[n:], n_in + len(rest[:n])
            latest_s = max(latest_s, n_in / from_hz - sum(map(len, out)) / to_hz)
        out.append(resampler.finish())
    pcm = np.concatenate(out)
    assert len(pcm) == round(len(sound) * to_hz / from_hz)
    assert latest_s < 0.016, "steadily late by a few milliseconds, not by blocks"
    inner = np.arange(len(pcm) // 4, len(pcm) * 3 // 4)
    waves = np.stack([f(2 * np.pi * 1000 * inner / to_hz) for f in (np.sin, np.cos)], axis=1)
    fit, residue, *_ = np.linalg.lstsq(waves, pcm[inner], rcond=None)
    assert np.hypot(*fit) == pytest.approx(1, abs=1e-3)
    assert abs(np.arctan2(fit[1], fit[0])) / (2 * np.pi * 1000) < 2e-4, "in its place in time"
    assert residue[0] / len(inner) < 1e-9


def test_stamps_become_times_whatever_the_driver_says():
    known = StreamTime(0.02)
    rng, ahead = np.random.default_rng(0), []
    for i in range(300):  # its clock is 1000 s ahead of ours, and Python is late by 0 to 5 ms
        t_s = i * 0.01
        ahead.append(
            t_s + (late := rng.uniform(0, 0.005)) + known.ahead_s(t_s + late, 1000 + t_s, 1000.025 + t_s) - t_s
        )
    assert ahead[-100:] == pytest.approx([0.025] * 100, abs=0.002)
    assert StreamTime(-0.03).ahead_s(5.0, 0.0, 0.0) == -0.03, "no stamps: the stream's latency"
    assert StreamTime(0.03).ahead_s(5.0, 1e9, 12.0) == 0.03, "nonsense"


def test_samples_keep_their_distance_until_the_clock_is_off():
    clock, rng = SampleClock(48_000), np.random.default_rng(0)
    for i in range(1000):
        clock.stamp(480 * i, 3.0 + i * 0.01 + rng.uniform(-0.003, 0.003))
    assert clock.time_s(480_000) == pytest.approx(13.0, abs=MAX_ERROR_S)
    assert clock.count(clock.time_s(1234.5)) == pytest.approx(1234.5)
    for i in range(1000, 2000):  # half a second was lost
        clock.stamp(480 * i, 3.5 + i * 0.01)
    assert clock.time_s(960_000) == pytest.approx(23.5, abs=MAX_ERROR_S)


class Room:
    """A loudspeaker of 30 ms latency on a clock of its own, in blocks of 10 ms."""

    def __init__(self, rate_hz: int):
        self.speaker = Speaker(rate_hz)
        self.now_s = 0.0
        self.heard: list[np.ndarray] = []

    def run(self, seconds: float) -> None:
        for _ in range(round(seconds * 100)):
            out = np.zeros(round(self.speaker.rate_hz / 100), np.float32)
            self.speaker.emit(out, self.now_s + 0.03)
            self.heard.append(out)
            self.now_s += 0.01

    def n_played(self) -> int:
        return self.speaker.n_played(self.now_s)


@pytest.mark.parametrize("rate_hz", [r for r in RATES_HZ if r % 100 == 0])
def test_played_is_what_was_heard(rate_hz):
    room = Room(rate_hz)
    room.run(0.2)
    assert room.n_played() == 0
    room.speaker.more = True
    room.speaker.write(np.full(12_000, 0.5, np.float32))
    room.run(0.03)
    assert room.n_played() == 0, "on its way"
    room.run(0.2)
    # The resampler holds some back until more comes; what is heard, is counted on time.
    assert room.n_played() == pytest.approx(0.2 * RATE_HZ, abs=0.012 * RATE_HZ)
    room.speaker.write(np.full(12_000, 0.5, np.float32))
    room.speaker.more = False
    room.run(1.0)
    assert room.n_played() == room.speaker.n_written == 24_000
    assert room.speaker.buffered_s == 0
    assert room.speaker.n_underruns == 0
    played = np.concatenate(room.heard)
    assert np.count_nonzero(np.abs(played) > 0.25) == pytest.approx(rate_hz, abs=0.002 * rate_hz)


def test_dropping_counts_what_still_sounds():
    room = Room(48_000)
    room.speaker.write(np.ones(48_000, np.float32))
    room.run(0.5)
    room.speaker.gate.shut = True
    room.run(0.02)
    n = room.speaker.drop()
    assert room.speaker.n_written == n
    assert n == pytest.approx((0.5 + FADE_S) * RATE_HZ, abs=2)
    assert room.n_played() < n, "30 ms are on their way"
    room.run(0.05)
    assert room.n_played() == n
    room.speaker.write(np.ones(2400, np.float32))
    room.speaker.more = False
    room.run(0.2)
    assert room.n_played() == room.speaker.n_written == n + 2400, "the next is heard without a resume"


def test_another_rate_in_the_middle_loses_nothing():
    room = Room(48_000)
    room.speaker.write(np.ones(24_000, np.float32))
    room.run(0.3)
    room.speaker.retune(44_100)
    room.heard.clear()
    room.run(1.0)
    assert room.n_played() == room.speaker.n_written == 24_000
    rest = np.concatenate(room.heard)
    assert np.count_nonzero(rest > 0.5) == pytest.approx(0.7 * 44_100, abs=0.02 * 44_100)


def test_a_queue_is_bounded_and_says_so():
    speaker = Speaker(RATE_HZ)
    for _ in range(int(CAPACITY_S)):
        speaker.write(np.zeros(RATE_HZ, np.float32))
    with pytest.raises(DeviceError, match="queues 60 s"):
        speaker.write(np.zeros(RATE_HZ, np.float32))
    assert speaker.n_written == CAPACITY_S * RATE_HZ


@pytest.mark.parametrize("rate_hz", [16_000, 24_000, 44_100, 48_000])
def test_the_reference_is_early_by_a_constant(rate_hz):
    room = Room(rate_hz)
    reference, got, times = Reference(room.speaker), [], []
    sound = read_audio(DATA / "harbour.flac", RATE_HZ)
    room.run(0.5)
    room.speaker.write(sound)
    room.speaker.more = False
    for _ in range(150):
        room.run(0.02)
        times.append(room.now_s - 0.02)  # the microphone is 20 ms late
        got.append(reference.ending_at(times[-1]))
    pcm = np.concatenate(got)
    # The sound's first sample is heard 0.03 s after it was written at 0.5 s.
    first = (0.53 - LEAD_S - (times[0] - 0.02)) * RATE_HZ
    n = 2 * RATE_HZ
    likeness = np.correlate(pcm[: n + 4000], sound[:n], "valid")
    assert likeness.argmax() == pytest.approx(first, abs=0.007 * RATE_HZ)
    assert likeness.max() / (sound[:n] @ sound[:n]) > 0.95
