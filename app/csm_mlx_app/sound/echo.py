"""The assistant's own voice taken out of the microphone: WebRTC's AEC3, behind an interface of ours."""

from collections import deque
from typing import Any

import numpy as np

from csm_mlx.errors import DeviceError
from csm_mlx_app.sound.device import BLOCK_S, BLOCK_SAMPLES, RATE_HZ

DELAY_S = 0.0093
"""How much later the cleaned sound is than the microphone's (measured: 223 samples)."""
_AUDIBLE_DB = -60.0
"""Played sound below this makes no echo worth measuring."""
_ABOVE_NOISE_DB = 6.0
"""An echo is measured where the microphone is this far above its own noise."""
_TAIL_BLOCKS = 10
"""How long an echo may follow what was played."""
_JUDGED_BLOCKS = 100
_WATCHED_BLOCKS, _FIRST_BLOCKS = 150, 50
"""Of those in which something was played, as many as tell whether the microphone hears it; and the fewest that may."""
_ECHO_PART = 0.4
"""Where the microphone stands out of its noise in fewer of them than this, it is not an echo but somebody who talks."""
_FLOOR_FALL, _FLOOR_RISE = 0.1, 0.005


class EchoCanceller:
    """Takes the echo of `played` out of the microphone, at 24 kHz, without a resampler of ours.

    AEC3 works in bands of 16 kHz here: what it returns is `DELAY_S` late and flat to 8.5 kHz, 7 dB down at 10 kHz. It
    finds the echo's delay itself, up to 450 ms; `played` must not come later than its echo. 10 ms of CPU per second.

    It takes an echo for granted until it has found one, and suppresses everybody who talks into what is played; so with
    headphones, where there is none, the microphone is passed on as it is, equally late.
    """

    def __init__(self) -> None:
        try:
            from pywebrtc_audio import AudioProcessor
        except ImportError:
            raise DeviceError(
                "echo cancellation needs pywebrtc-audio: pip install 'csm-mlx[talk]', or use --echo half-duplex"
            ) from None
        self._processor: Any = AudioProcessor(sample_rate=RATE_HZ, echo_cancellation=True)
        self._n_since_played = _TAIL_BLOCKS
        self._noise_db: float | None = None
        self._reductions_db: deque[float] = deque(maxlen=_JUDGED_BLOCKS)
        self._stood_out: deque[bool] = deque(maxlen=_WATCHED_BLOCKS)
        self._last = np.zeros(round(DELAY_S * RATE_HZ), np.float32)
        self.played_s = 0.0
        """How long something was played, in all."""
        self.echo_s = 0.0
        """Of that, how long the microphone stood out of its noise: with headphones, next to nothing."""

    def clean(self, pcm: np.ndarray, played: np.ndarray) -> np.ndarray:
        """The microphone (480,) without the echo of `played` (480,): (480,) float32."""
        if len(pcm) != BLOCK_SAMPLES or len(played) != BLOCK_SAMPLES:
            raise DeviceError(f"blocks have {len(pcm)} and {len(played)} samples, expected {BLOCK_SAMPLES}")
        cleaned = self._processor.process(np.ascontiguousarray(pcm), np.ascontiguousarray(played))
        self._judge(level_db(pcm), level_db(played), level_db(cleaned))
        late, self._last = np.split(np.concatenate([self._last, pcm]), [BLOCK_SAMPLES])
        return cleaned if self.is_needed else late

    @property
    def is_needed(self) -> bool:
        """The microphone hears what is played, or it is too early to tell."""
        return len(self._stood_out) < _FIRST_BLOCKS or sum(self._stood_out) >= _ECHO_PART * len(self._stood_out)

    def _judge(self, heard_db: float, played_db: float, cleaned_db: float) -> None:
        is_played = played_db > _AUDIBLE_DB
        if is_played:
            self._n_since_played = 0
            self.played_s += BLOCK_S
        else:
            self._n_since_played += 1
        if self._n_since_played >= _TAIL_BLOCKS:
            if self._noise_db is None:
                self._noise_db = heard_db
            pace = _FLOOR_FALL if heard_db < self._noise_db else _FLOOR_RISE
            self._noise_db += (heard_db - self._noise_db) * pace
            return
        stands_out = heard_db > (self._noise_db if self._noise_db is not None else _AUDIBLE_DB) + _ABOVE_NOISE_DB
        if is_played:
            self.echo_s += BLOCK_S * stands_out
            self._stood_out.append(stands_out)
        if stands_out:
            self._reductions_db.append(heard_db - cleaned_db)

    @property
    def erle_db(self) -> float | None:
        """Echo return loss enhancement: by how much the echo is quieter, in decibels; None while there was none.

        The median of the last two seconds with an echo, so that somebody who talks into it does not spoil it.
        """
        return float(np.median(self._reductions_db)) if len(self._reductions_db) >= _JUDGED_BLOCKS // 4 else None


def level_db(pcm: np.ndarray) -> float:
    """Mean power in decibels of full scale; -100 for silence."""
    return 10 * float(np.log10(np.mean(np.square(pcm, dtype=np.float64)) + 1e-10))
