"""The microphone's side of a live conversation: the device's samples become blocks at 24 kHz, each with its time."""

import numpy as np

from csm_mlx_app.sound.device import BLOCK_SAMPLES, RATE_HZ
from csm_mlx_app.sound.resampling import Resampler
from csm_mlx_app.sound.ring import Ring
from csm_mlx_app.sound.timing import SampleClock

CAPACITY_S = 10.0
"""How long the reader may be away before sound is lost."""


class Microphone:
    """`capture` is the callback's half, `take` the reader's; neither takes a lock."""

    def __init__(self, rate_hz: int):
        self.rate_hz = rate_hz
        self.clock = SampleClock(rate_hz)
        self.n_overruns = 0
        self.n_zeros = 0
        """How long it has given nothing but exact zeros, counted from its opening to the first other sample."""
        self.only_zeros = True
        self._ring = Ring(round(CAPACITY_S * rate_hz))
        self._n_captured = 0
        self._resampler = Resampler(rate_hz, RATE_HZ)
        self._pcm = np.zeros(0, np.float32)
        self._n_read = 0

    def capture(self, pcm: np.ndarray, t_s: float) -> None:
        """Keep `pcm` (n_samples,), whose first sample was captured at `t_s`. For the device's callback."""
        if self.only_zeros:
            self.only_zeros = not pcm.any()
            self.n_zeros += len(pcm)
        if len(self._ring) + len(pcm) > CAPACITY_S * self.rate_hz:
            self.n_overruns += 1  # the next stamp that is kept tells how much is missing
            return
        self.clock.stamp(self._n_captured, t_s)
        self._n_captured += self._ring.put(pcm)

    @property
    def ready(self) -> bool:
        """A block is likely there."""
        return len(self._pcm) + len(self._ring) * RATE_HZ / self.rate_hz >= BLOCK_SAMPLES

    def take(self) -> tuple[float, np.ndarray] | None:
        """The next block and the clock time of its last sample; None when there is none yet."""
        if n := len(self._ring):
            fresh = np.zeros(n, np.float32)
            self._ring.take(fresh)
            self._pcm = np.concatenate([self._pcm, self._resampler.put(fresh)])
        if len(self._pcm) < BLOCK_SAMPLES:
            return None
        block, self._pcm = self._pcm[:BLOCK_SAMPLES], self._pcm[BLOCK_SAMPLES:]
        self._n_read += BLOCK_SAMPLES
        return self.clock.time_s(self._n_read * self.rate_hz / RATE_HZ), block
