"""What stands between queued sound and the loudspeaker: lets it through, or fades it out and holds it."""

import numpy as np

from csm_mlx_app.sound.ring import Ring

FADE_S = 0.008
"""Short enough to fall silent at once, long enough not to click."""


class Gate:
    """A ring whose reader fades out when `shut` is set and in again when it is cleared.

    `take` is for the device's callback: it allocates nothing that grows, locks nothing and cannot fail.
    """

    def __init__(self, rate_hz: int, capacity_s: float):
        self.ring = Ring(round(rate_hz * capacity_s))
        n_fade = round(rate_hz * FADE_S)
        # Half a cosine, without the one and the zero at its ends.
        self._down = (0.5 + 0.5 * np.cos(np.pi * np.arange(1, n_fade + 1) / (n_fade + 1))).astype(np.float32)
        self._up = self._down[::-1].copy()
        self._n_down = 0
        """How far down the fade is: 0 is open, all of it is silence."""
        self.flowing = False
        """The last `take` was filled from the queue."""
        self.shut = False
        self.more = False
        """More is to come: running dry is an underrun."""
        self.n_underruns = 0

    @property
    def silent(self) -> bool:
        """The fade out is over."""
        return self._n_down == len(self._down)

    def take(self, out: np.ndarray) -> int:
        """Fill `out` (n_samples,); returns how many samples of the queue are in it, from its first sample on."""
        n_down = self._n_down
        if self.shut:
            n_fading = min(len(out), len(self._down) - n_down)
            n = self.ring.take(out[:n_fading])
            out[n_fading:] = 0
            np.multiply(out[:n_fading], self._down[n_down : n_down + n_fading], out=out[:n_fading])
            self._n_down = n_down + n_fading
            self.flowing = False
            return n
        n = self.ring.take(out)
        if n_down:
            n_fading = min(len(out), n_down)
            first = len(self._up) - n_down
            np.multiply(out[:n_fading], self._up[first : first + n_fading], out=out[:n_fading])
            self._n_down = n_down - n_fading
        if n == len(out):
            self.flowing = True
        elif self.flowing or n:
            self.flowing = False
            self.n_underruns += self.more
        return n

    def end(self) -> np.ndarray:
        """Forget what is queued, and return its fade, which is to be played. Where nobody else calls `take`."""
        fade = np.zeros(len(self._down) - self._n_down, np.float32)
        self.shut = True
        n = self.take(fade)
        self.clear()
        return fade[:n]

    def clear(self) -> None:
        """Forget what is queued and open the gate. Only while the gate is silent, or nobody calls `take`."""
        self.ring.clear()
        self._n_down = 0
        self.shut = False
