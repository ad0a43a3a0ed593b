"""What the loudspeaker sounded while the microphone heard: the reference that echo cancellation subtracts."""

import numpy as np

from csm_mlx_app.sound.device import BLOCK_SAMPLES, RATE_HZ
from csm_mlx_app.sound.resampling import Resampler
from csm_mlx_app.sound.speaker import Speaker
from csm_mlx_app.sound.timing import MAX_ERROR_S

MAX_OFF_S = 0.006
"""How far it may be from its place before it is set anew: each time the canceller has to learn the delay again."""
LEAD_S = 2 * MAX_ERROR_S + MAX_OFF_S + 0.001
"""It is early by this, so that it never comes later than its echo, whatever the errors of both devices' clocks."""


class Reference:
    """The loudspeaker's history cut into the microphone's blocks, sample after sample, at 24 kHz."""

    def __init__(self, speaker: Speaker):
        self._speaker = speaker
        self._clock = None

    def ending_at(self, t_s: float) -> np.ndarray:
        """(480,) float32: the 20 ms that the loudspeaker sounds until `LEAD_S` after `t_s`; silence where unknown."""
        speaker = self._speaker
        if not speaker.clock.running:
            return np.zeros(BLOCK_SAMPLES, np.float32)
        step = speaker.rate_hz / RATE_HZ
        wanted = speaker.clock.count(t_s + LEAD_S)
        if (
            self._clock is not speaker.clock
            or abs(self._stop + BLOCK_SAMPLES * step - wanted) > MAX_OFF_S * speaker.rate_hz
        ):
            self._clock = speaker.clock
            self._resampler = Resampler(speaker.rate_hz, RATE_HZ)
            self._n_fed = round(wanted - BLOCK_SAMPLES * step)
            self._stop = float(self._n_fed)
            self._pcm = np.zeros(0, np.float32)
        while (lacking := BLOCK_SAMPLES - len(self._pcm)) > 0:
            n_next = self._n_fed + max(1, round(lacking * step))
            self._pcm = np.concatenate([self._pcm, self._resampler.put(speaker.emitted(self._n_fed, n_next))])
            self._n_fed = n_next
        block, self._pcm = self._pcm[:BLOCK_SAMPLES], self._pcm[BLOCK_SAMPLES:]
        self._stop += BLOCK_SAMPLES * step
        return block
