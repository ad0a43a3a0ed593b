import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from csm_mlx.errors import AudioError, CsmError
from csm_mlx.measure import mel_distance, pitch_hz, si_snr, spectrogram_png

RATE_HZ = 24_000


def noise(seconds: float = 0.5, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(scale=0.1, size=int(seconds * RATE_HZ)).astype(np.float32)


def tone(hz: float, seconds: float = 0.5) -> np.ndarray:
    return (0.3 * np.sin(2 * np.pi * hz * np.arange(int(seconds * RATE_HZ)) / RATE_HZ)).astype(np.float32)


@pytest.mark.parametrize("ratio_db", [-5.0, 0.0, 20.0, 40.0])
def test_si_snr_of_a_known_noise(ratio_db: float):
    signal, other = noise(2, 0), noise(2, 1)
    signal, other = signal - signal.mean(), other - other.mean()
    other -= (other @ signal) / (signal @ signal) * signal
    other *= np.sqrt((signal @ signal) / (other @ other)) * 10 ** (-ratio_db / 20)
    assert si_snr(signal, signal + other, max_delay_samples=0) == pytest.approx(ratio_db, abs=0.01)


@pytest.mark.parametrize("scale", [0.01, 1.0, 7.0, -1.0])
@pytest.mark.parametrize("offset", [0.0, 0.5])
def test_si_snr_does_not_hear_scale_and_offset(scale: float, offset: float):
    assert si_snr(noise(), scale * noise() + offset) > 90


@pytest.mark.parametrize("delay", [-1920, -7, 0, 1, 1920])
def test_si_snr_finds_a_delay_of_up_to_a_frame(delay: int):
    whole = noise(1)
    a, b = whole[2000:-2000], whole[2000 - delay : len(whole) - 2000 - delay]
    assert si_snr(a, b) > 90
    if delay:
        assert si_snr(a, b, max_delay_samples=abs(delay) - 1) < 0


def test_si_snr_of_unlike_sounds_is_low_and_the_longer_one_is_cut():
    assert si_snr(noise(seed=0), noise(seed=1)) < -10
    assert si_snr(noise(1), noise(1)[:6000]) > 90
    assert si_snr(noise(), np.zeros(RATE_HZ)) == -100
    assert si_snr(np.ones(3) * [0, 1, 2], np.array([0, 1, 2.0])) == 100


def test_sounds_that_cannot_be_compared_are_refused():
    with pytest.raises(AudioError, match="reference is silent"):
        si_snr(np.zeros(100), noise())
    with pytest.raises(AudioError, match=r"shapes \(0,\) and \(12000,\)"):
        si_snr(np.zeros(0), noise())
    with pytest.raises(AudioError, match=r"shapes \(2, 6000\)"):
        mel_distance(noise().reshape(2, -1), noise(), RATE_HZ)


def test_mel_distance_is_zero_for_equals_and_grows_with_the_difference():
    a = tone(440)
    assert mel_distance(a, a, RATE_HZ) == 0
    near = mel_distance(a, a + noise() * 0.001, RATE_HZ)
    far = mel_distance(a, a + noise() * 0.1, RATE_HZ)
    assert 0 < near < far
    assert mel_distance(a, tone(1000), RATE_HZ) == mel_distance(tone(1000), a, RATE_HZ) > 3


def test_mel_distance_hears_level_but_not_polarity():
    assert mel_distance(noise(), -noise(), RATE_HZ) == 0
    assert mel_distance(noise(), noise() / 10, RATE_HZ) == pytest.approx(20, abs=0.5)
    assert mel_distance(np.zeros(9000), np.zeros(9000), RATE_HZ) == 0


def test_spectrogram_is_a_png_of_three_panels(tmp_path: Path):
    from matplotlib.image import imread

    spectrogram_png(tmp_path / "a.png", tone(440), tone(1000, 0.4), RATE_HZ, labels=("before", "after"))
    assert os.listdir(tmp_path) == ["a.png"]
    image = imread(tmp_path / "a.png")
    assert image.shape[:2] == (750, 600)
    dark_rows = (image[:, :, :3].sum(-1) < 0.3).mean(axis=1) > 0.5  # magma's silence, in the two upper panels only
    assert dark_rows[:250].sum() > 100
    assert dark_rows[250:500].sum() > 100
    assert dark_rows[510:].sum() < 10  # frames and ticks


def test_spectrogram_refuses_other_endings_and_missing_folders(tmp_path: Path):
    with pytest.raises(CsmError, match=r"a\.jpg does not end in \.png"):
        spectrogram_png(tmp_path / "a.jpg", noise(), noise(), RATE_HZ)
    with pytest.raises(CsmError, match=r"the folder .* is not there; make it"):
        spectrogram_png(tmp_path / "no" / "a.png", noise(), noise(), RATE_HZ)


def test_without_matplotlib_the_cure_is_named():
    code = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "import numpy as np\nfrom csm_mlx.errors import CsmError\nfrom csm_mlx.measure import spectrogram_png\n"
        "try: spectrogram_png('a.png', np.ones(9), np.ones(9), 24_000)\nexcept CsmError as e: sys.exit(str(e))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "pip install 'csm-mlx[plots]'" in done.stderr
    assert done.returncode == 1


@pytest.mark.parametrize("hz", [80, 137.5, 212.5, 340])
def test_pitch_of_a_buzz_within_noise(hz: float):
    phase = np.cumsum(np.full(RATE_HZ, hz / RATE_HZ)) % 1
    buzz = (0.2 * (0.5 - phase) + 0.01 * np.random.default_rng(0).standard_normal(RATE_HZ)).astype(np.float32)
    buzz[: RATE_HZ // 3] = 0
    assert pitch_hz(buzz, RATE_HZ) == pytest.approx(hz, rel=0.02)


def test_no_pitch_without_voice():
    assert pitch_hz(noise(), RATE_HZ) is None
    assert pitch_hz(np.zeros(RATE_HZ, np.float32), RATE_HZ) is None
    assert pitch_hz(np.zeros(9, np.float32), RATE_HZ) is None
