"""Frame-synchronous synthetic speech: hibari's network, with durations, pitch, noise and vocal tract of our choosing.

hibari's ONNX graph predicts one duration per phone (units of 25 ms) and, from the stretched phones, a spectrum in five
parts per 12.5 ms and a fundamental frequency. Here the durations become an input, the spectra are overlap-added with a
hop of 320 samples in place of 300 (a unit becomes 640 samples, three units one codec frame of 1920), the pulse train
has a whole number of cycles in every codec frame, the noise repeats with the codec frame, and of the spectra only the
magnitudes are used. What a frame sounds like then depends on its phone, the phones around it, its number of cycles and
its vocal tract.
"""

from functools import cache
from pathlib import Path

import numpy as np

SAMPLE_RATE_HZ = 24000
FRAME_SAMPLES = 1920
FFT_SAMPLES, BINS = 1200, 601
HOPS_PER_FRAME = 6
FULL_HOP_SAMPLES = FRAME_SAMPLES // HOPS_PER_FRAME
"""The hop of a voice with hibari's own vocal tract; a longer tract has a shorter hop and is then resampled."""
UNITS_PER_FRAME = 3
"""hibari counts durations in units of two hops."""
VOICED_ABOVE_HZ = 40.0
TOP_HARMONIC_HZ = 11000.0
WINDOW = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(FFT_SAMPLES) / FFT_SAMPLES)).astype(np.float32)
SOURCE_WINDOW = WINDOW / (FFT_SAMPLES / 4)


VECTORS, LOG_PITCH, LEVEL, PITCH = "/Gather_32_output_0", "/Div_41_output_0", "/Div_42_output_0", "f0"
"""Tensors of hibari's graph: stretched phone vectors, what its decoder is told of pitch and loudness, pitch in Hz."""
PARTS = ("lh", "theta", "ln", "lr", "phi")
PITCH_HZ = 185.0
"""What hibari's decoder is told of voiced sound: its own median. The pitch that is heard is that of `pulses`."""


@cache
def network(given: tuple[str, ...], wanted: tuple[str, ...]):
    """hibari's network as an onnxruntime session that takes the tensors `given` and gives those `wanted`.

    Durations (T,), in units, are always an input.
    """
    import onnx
    import onnxruntime
    from hibari.tts import ASSETS

    model = onnx.load(str(Path(ASSETS) / "hibari.onnx"))
    inputs = {"/Clip_output_0": "durations"} | {tensor: f"given{i}" for i, tensor in enumerate(given)}
    for node in model.graph.node:
        for i, name in enumerate(node.input):
            node.input[i] = inputs.get(name, name)
    for name in inputs.values():
        model.graph.input.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    known = {output.name for output in model.graph.output}
    for name in set(wanted) - known:
        model.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def run(ids, units, given: dict[str, np.ndarray], wanted: tuple[str, ...]) -> list[np.ndarray]:
    """The tensors `wanted`, without their batch axis, for token ids with durations and any tensors to put in place."""
    feed = {"ids": np.asarray([ids], np.int64), "durations": np.asarray(units, np.float32)}
    feed |= {"speed": np.ones(1, np.float32)}
    feed |= {f"given{i}": np.asarray(x, np.float32)[None] for i, x in enumerate(given.values())}
    return [x[0] for x in network(tuple(given), wanted).run(list(wanted), feed)]


def features(ids: list[int], units: list[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What hibari's decoder works from: phone vectors (units, width), level (hops,) and pitch (hops,) in Hz."""
    vectors, level, f0_hz = run(ids, units, {}, (VECTORS, LEVEL, PITCH))
    return vectors.T, level[0], f0_hz


@cache
def frame_noise() -> np.ndarray:
    """The noise spectrum of every hop of a codec frame (BINS, HOPS_PER_FRAME), the same in all frames."""
    rng = np.random.default_rng(0)
    return rng.standard_normal((BINS, 2 * HOPS_PER_FRAME), dtype=np.float32).view(np.complex64)


def pulses(cycles: np.ndarray, voiced: np.ndarray, offset: int, frame_samples: int) -> np.ndarray:
    """A band-limited pulse train with `cycles[t]` whole periods in frame t.

    cycles: (n_frames,) of a grid of `frame_samples`, which begins `offset` samples into the sound.
    voiced: (n_samples,) gate in 0..1; its length is the result's.
    """
    position = np.arange(len(voiced)) - offset
    frame = np.clip(position // frame_samples, 0, len(cycles) - 1)
    k = cycles[frame].astype(np.float64)
    phase = 2 * np.pi * np.mod(k * np.mod(position, frame_samples) / frame_samples, 1.0)
    n_harmonics = np.floor(TOP_HARMONIC_HZ * frame_samples / (k * SAMPLE_RATE_HZ)) + 0.5
    half = 2 * np.sin(phase / 2)
    at_pulse = np.abs(half) <= 2e-3
    train = np.where(at_pulse, n_harmonics, np.sin(n_harmonics * phase) / np.where(at_pulse, 1.0, half)) - 0.5
    return (train * voiced).astype(np.float32)


def voicing(f0_hz: np.ndarray, hop: int) -> np.ndarray:
    """hibari's pitch (one value per hop) to a gate per sample, opening and closing over one hop."""
    gate = (f0_hz > VOICED_ABOVE_HZ).astype(np.float32)
    at = (np.arange(len(gate) * hop) + 0.5) / hop - 0.5
    return np.interp(at, np.arange(len(gate)), gate).astype(np.float32)


def overlap_add(spectrum: np.ndarray, hop: int) -> np.ndarray:
    """Inverse STFT of (BINS, hops), centred, divided by the summed squared windows."""
    from scipy.fft import irfft

    hops = spectrum.shape[1]
    frames = irfft(spectrum.T, n=FFT_SAMPLES, axis=1) * WINDOW
    sound = np.zeros(FFT_SAMPLES + (hops - 1) * hop, np.float32)
    weight = np.zeros_like(sound)
    for i, frame in enumerate(frames):
        at = slice(i * hop, i * hop + FFT_SAMPLES)
        sound[at] += frame
        weight[at] += WINDOW**2
    sound /= np.maximum(weight, 1e-2)
    return sound[FFT_SAMPLES // 2 :][: hops * hop]


def stft(x: np.ndarray, hops: int, hop: int) -> np.ndarray:
    from scipy.fft import rfft

    padded = np.pad(x, FFT_SAMPLES // 2, mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(padded, FFT_SAMPLES)[::hop][:hops]
    return np.ascontiguousarray(rfft((frames * SOURCE_WINDOW).astype(np.float32), axis=1).T)


def spectra(vectors: np.ndarray, level: np.ndarray, voiced: np.ndarray) -> tuple[np.ndarray, ...]:
    """hibari's five spectra (BINS, hops) and pitch (hops,) for `features`, voicing in place of pitch."""
    f0_hz = np.where(voiced, PITCH_HZ, 0.0).astype(np.float32)
    given = {VECTORS: vectors.T, LOG_PITCH: np.log(f0_hz + 1)[None] / 5, LEVEL: level[None]}
    n_frames = len(vectors) // UNITS_PER_FRAME
    return (*run([0] * n_frames, [UNITS_PER_FRAME] * n_frames, given, PARTS), f0_hz)


def render(parts: tuple[np.ndarray, ...], cycles: np.ndarray, tract: float, lead: float) -> np.ndarray:
    """Spectra to sound (n_frames * FRAME_SAMPLES,) float32, one codec frame per entry of `cycles`.

    cycles: (n_frames,) periods per codec frame.
    tract: factor on all formants, below 1 for a longer vocal tract, to the nearest whole hop.
    lead: of hibari's silent first frame, the part that is kept: codec frame t is the last `lead` of the phone before
        phone t and the first `1 - lead` of phone t.
    """
    from scipy.signal import resample_poly

    harmonic, _, noise, rest, _, f0_hz = parts
    hops, hop = harmonic.shape[1], round(tract * FULL_HOP_SAMPLES)
    frame_samples = HOPS_PER_FRAME * hop
    skipped = round(frame_samples * (1 - lead))
    source = stft(pulses(cycles, voicing(f0_hz, hop), skipped, frame_samples), hops, hop)
    spectrum = source * np.exp(np.minimum(harmonic, 7))
    aperiodic = np.logaddexp(noise, rest)
    spectrum += frame_noise()[:, np.arange(hops) % HOPS_PER_FRAME] * np.exp(np.minimum(aperiodic, 7))
    sound = overlap_add(spectrum.astype(np.complex64), hop)[skipped:][: len(cycles) * frame_samples]
    divisor = np.gcd(FULL_HOP_SAMPLES, hop)
    return resample_poly(sound, FULL_HOP_SAMPLES // divisor, hop // divisor).astype(np.float32)
