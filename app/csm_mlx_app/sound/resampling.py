"""Sample rates changed while the sound comes."""

import numpy as np


class Resampler:
    """float32 mono from one rate to another, in pieces of any length.

    soxr's variable-rate engine, at a constant ratio: 5 ms late when it halves a rate and 10 ms when it doubles one,
    steadily, with aliases below -115 dB. Its default engine works in blocks that come up to 39 ms late. Output sample
    i is the sound at the time i / to_hz of the input. Equal rates pass through.
    """

    def __init__(self, from_hz: int, to_hz: int):
        self._rates_hz = (from_hz, to_hz)
        self._n_in = self._n_out = 0
        self._stream = None
        if from_hz != to_hz:
            import soxr

            self._stream = soxr.ResampleStream(from_hz, to_hz, 1, dtype="float32", quality="HQ", vr=True)

    def put(self, pcm: np.ndarray) -> np.ndarray:
        """`pcm` (n_samples,) at the one rate; what is done of it at the other."""
        if self._stream is None:
            return pcm
        done = self._stream.resample_chunk(np.ascontiguousarray(pcm, np.float32))
        self._n_in += len(pcm)
        self._n_out += len(done)
        return done

    @property
    def n_pending(self) -> int:
        """Samples at the output's rate that were put and did not come out yet."""
        from_hz, to_hz = self._rates_hz
        return round(self._n_in * to_hz / from_hz) - self._n_out

    def finish(self) -> np.ndarray:
        """The rest, to the exact length; the next `put` begins a new sound."""
        n_pending = self.n_pending
        if self._stream is None or not self._n_in:
            return np.zeros(0, np.float32)
        rest = self._stream.resample_chunk(np.zeros(0, np.float32), last=True)[: max(0, n_pending)]
        self.clear()
        return np.pad(rest, (0, max(0, n_pending) - len(rest)))

    def clear(self) -> None:
        """Forget what did not come out yet."""
        self._n_in = self._n_out = 0
        if self._stream is not None:
            self._stream.clear()
