"""The end of an utterance: silence trimmed, the last milliseconds faded, without delaying what is heard."""

import numpy as np

SILENCE_RMS = 0.003
"""About -50 dB of full scale: below it a frame counts as silent."""
KEPT_SILENCE_S = 0.15
FADE_S = 0.01


def is_silent(pcm: np.ndarray) -> bool:
    """Whether a frame of sound (n_samples,) is silence."""
    return float(np.sqrt(np.mean(np.square(pcm, dtype=np.float64)))) < SILENCE_RMS


class Tail:
    """Passes sound through, holding back silent frames and the last `FADE_S` until it knows what follows.

    What comes out, put together, is what went in, except that the end is faded and its silence cut to
    `KEPT_SILENCE_S`.
    """

    def __init__(self, sample_rate_hz: int):
        self._fade_samples = round(FADE_S * sample_rate_hz)
        self._kept_samples = round(KEPT_SILENCE_S * sample_rate_hz)
        self._held: list[np.ndarray] = []
        self._silent_samples = 0

    def push(self, pcm: np.ndarray) -> np.ndarray:
        """A frame (n_samples,) in; what may be heard now out, nothing (0,) as long as there is silence."""
        self._held.append(pcm)
        if is_silent(pcm):
            self._silent_samples += len(pcm)
            return pcm[:0]
        self._silent_samples = 0
        ready = np.concatenate(self._held)
        n_held = min(self._fade_samples, len(ready))
        self._held = [ready[len(ready) - n_held :]]
        return ready[: len(ready) - n_held]

    def finish(self) -> np.ndarray:
        """The rest, (n_samples,): trimmed and faded."""
        if not self._held:
            return np.zeros(0, np.float32)
        rest = np.concatenate(self._held)
        rest = rest[: len(rest) - max(0, self._silent_samples - self._kept_samples)].copy()
        n_fade = min(self._fade_samples, len(rest))
        rest[len(rest) - n_fade :] *= np.linspace(1, 0, n_fade, dtype=np.float32)
        self._held, self._silent_samples = [], 0
        return rest
