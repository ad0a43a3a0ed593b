"""Measures of sound: its pitch, and how alike two are, which is what a codec or a quantization has cost.

Sounds are float32 (n_samples,). Where there are two, they have one sample rate, and the longer is cut to the shorter.
"""

from pathlib import Path

import numpy as np

from csm_mlx.errors import AudioError
from csm_mlx.plots import new_figure, save_figure

MAX_DELAY_SAMPLES = 1920
"""One frame of Mimi: how far `si_snr` looks for the estimate."""

_CEILING_DB = 100.0
_N_MELS, _FLOOR_DB = 80, -80.0
_WINDOW_S, _HOP_S = 0.04, 0.01
_PITCH_WINDOW_S, _PITCH_HOP_S = 0.08, 0.02
_LOWEST_HZ, _HIGHEST_HZ = 70.0, 350.0
_PERIODIC = 0.4
"""Autocorrelation at the period, as a part of the energy, from which on a piece is voiced."""
_QUIET = 1e-2
"""RMS below which a piece is silence."""


def si_snr(reference: np.ndarray, estimate: np.ndarray, max_delay_samples: int = MAX_DELAY_SAMPLES) -> float:
    """Scale-invariant signal-to-noise ratio in dB (Le Roux et al. 2019, https://arxiv.org/abs/1811.02508).

    At the whole delay, up to `max_delay_samples` either way, at which the two correlate best. At most 100 dB, which
    equal sounds have, and at least -100. `AudioError` for a silent or empty reference.
    """
    reference, estimate = _pair(reference, estimate)
    delay = _best_delay(reference, estimate, min(max_delay_samples, len(reference) - 1))
    n = len(reference) - abs(delay)
    a = reference[max(-delay, 0) :][:n]
    b = estimate[max(delay, 0) :][:n]
    a, b = a - a.mean(), b - b.mean()
    energy = float(a @ a)
    if energy == 0:
        raise AudioError("the reference is silent; SI-SNR has no meaning for it")
    target = (float(a @ b) / energy) * a
    noise = b - target
    signal_energy, noise_energy = float(target @ target), float(noise @ noise)
    floor = 10 ** (-_CEILING_DB / 10)
    if signal_energy <= floor * noise_energy or not signal_energy:
        return -_CEILING_DB
    return float(min(10 * np.log10(signal_energy / max(noise_energy, floor * signal_energy)), _CEILING_DB))


def mel_distance(a: np.ndarray, b: np.ndarray, sample_rate_hz: int) -> float:
    """Mean difference of two mel spectrograms in dB, 0 for equal sounds; it does not notice phase, as ears do not.

    80 bands, windows of 40 ms every 10 ms; what is 80 dB below the louder sound's peak counts as silence.
    """
    a, b = _pair(a, b)
    return float(np.abs(np.subtract(*_mel_pair(a, b, sample_rate_hz))).mean())


def pitch_hz(pcm: np.ndarray, sample_rate_hz: int) -> float | None:
    """Median fundamental frequency of the voiced pieces of 80 ms, by autocorrelation, 70 to 350 Hz; None if none is."""
    window, hop = round(_PITCH_WINDOW_S * sample_rate_hz), round(_PITCH_HOP_S * sample_rate_hz)
    if len(pcm) < window:
        return None
    pieces = np.lib.stride_tricks.sliding_window_view(pcm, window)[::hop].astype(np.float64)
    pieces = pieces - pieces.mean(axis=1, keepdims=True)
    pieces = pieces[(pieces**2).mean(axis=1) >= _QUIET**2]
    power = np.abs(np.fft.rfft(pieces * np.hanning(window), 1 << (2 * window - 1).bit_length())) ** 2
    shortest, longest = int(sample_rate_hz / _HIGHEST_HZ), int(sample_rate_hz / _LOWEST_HZ)
    correlation = np.fft.irfft(power)[:, : longest + 1]
    lags = shortest + correlation[:, shortest:].argmax(axis=1)
    voiced = correlation[np.arange(len(lags)), lags] > _PERIODIC * correlation[:, 0]
    return float(np.median(sample_rate_hz / lags[voiced])) if voiced.any() else None


def spectrogram_png(
    path: str | Path,
    a: np.ndarray,
    b: np.ndarray,
    sample_rate_hz: int,
    labels: tuple[str, str] = ("A", "B"),
) -> None:
    """Draw the mel spectrograms of two sounds and their difference, one above the other.

    `CsmError` where matplotlib is not installed (`pip install 'csm-mlx[plots]'`), or when `path` cannot be written or
    does not end in .png.
    """
    a, b = _pair(a, b)
    mel_a, mel_b = _mel_pair(a, b, sample_rate_hz)
    seconds = len(a) / sample_rate_hz
    figure = new_figure(min(max(6.0, seconds * 1.5), 40.0), 7.5)
    axes = figure.subplots(3, 1, sharex=True)
    peak = max(mel_a.max(), mel_b.max())
    panels = [
        (mel_a, labels[0], "magma", peak + _FLOOR_DB, peak),
        (mel_b, labels[1], "magma", peak + _FLOOR_DB, peak),
        (mel_b - mel_a, f"{labels[1]} minus {labels[0]}", "RdBu_r", -30.0, 30.0),
    ]
    for axis, (mel, title, colors, low, high) in zip(axes, panels, strict=True):
        image = axis.imshow(
            mel.T, origin="lower", aspect="auto", cmap=colors, vmin=low, vmax=high, extent=(0, seconds, 0, _N_MELS)
        )
        axis.set_title(title, loc="left", fontsize="medium")
        axis.set_ylabel("mel band")
        figure.colorbar(image, ax=axis, label="dB", pad=0.01)
    axes[-1].set_xlabel("seconds")
    save_figure(figure, path)


def _pair(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if a.ndim != 1 or b.ndim != 1 or not len(a) or not len(b):
        raise AudioError(
            f"sounds have the shapes {a.shape} and {b.shape}, expected (n_samples,) with some samples each"
        )
    n = min(len(a), len(b))
    return a[:n], b[:n]


def _best_delay(a: np.ndarray, b: np.ndarray, limit: int) -> int:
    """By how many samples `b` comes after `a`."""
    size = 1 << (2 * len(a) - 1).bit_length()
    correlation = np.fft.irfft(np.conj(np.fft.rfft(a - a.mean(), size)) * np.fft.rfft(b - b.mean(), size), size)
    delays = np.arange(-limit, limit + 1)
    delays = delays[np.argsort(np.abs(delays), kind="stable")]  # of equals the least
    return int(delays[np.argmax(np.abs(correlation[delays]))])


def _mel_pair(a: np.ndarray, b: np.ndarray, sample_rate_hz: int) -> tuple[np.ndarray, np.ndarray]:
    powers = [_mel_power(x, sample_rate_hz) for x in (a, b)]
    floor = max(powers[0].max(), powers[1].max(), 1e-20) * 10 ** (_FLOOR_DB / 10)
    mel_a, mel_b = (10 * np.log10(np.maximum(p, floor)) for p in powers)
    return mel_a, mel_b


def _mel_power(pcm: np.ndarray, sample_rate_hz: int) -> np.ndarray:
    """(n_windows, n_mels)"""
    window, hop = int(_WINDOW_S * sample_rate_hz), int(_HOP_S * sample_rate_hz)
    pcm = np.pad(pcm, (window // 2, window))
    frames = np.lib.stride_tricks.sliding_window_view(pcm, window)[::hop]
    size = 1 << (window - 1).bit_length()
    power = np.abs(np.fft.rfft(frames * np.hanning(window), size)) ** 2
    return power @ _mel_filters(size, sample_rate_hz)


def _mel_filters(size: int, sample_rate_hz: int) -> np.ndarray:
    """Triangles of equal area on the HTK mel scale, (size // 2 + 1, n_mels)."""
    top_mel = 2595 * np.log10(1 + sample_rate_hz / 2 / 700)
    edges_hz = 700 * (10 ** (np.linspace(0, top_mel, _N_MELS + 2) / 2595) - 1)
    bins_hz = np.fft.rfftfreq(size, 1 / sample_rate_hz)[:, None]
    low, center, high = edges_hz[:-2], edges_hz[1:-1], edges_hz[2:]
    rising, falling = (bins_hz - low) / (center - low), (high - bins_hz) / (high - center)
    return np.clip(np.minimum(rising, falling), 0, None) * 2 / (high - low)
