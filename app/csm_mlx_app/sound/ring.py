"""Samples on their way from the thread that makes them to the callback that plays them."""

import numpy as np


class Ring:
    """A bounded queue of float32 samples for one writer and one reader, without a lock.

    Each side moves only its own counter, and only after the samples are in place, so neither ever waits for the other.
    """

    def __init__(self, capacity_samples: int):
        self._data = np.zeros(capacity_samples, np.float32)
        self._n_put = 0
        self._n_taken = 0
        self.paused = True
        """Set by the writer when nothing follows for now: running dry is then no gap. The next `put` ends the pause."""
        self.n_missing = 0
        """Samples of silence that the reader heard outside pauses, because none were there."""

    def __len__(self) -> int:
        return self._n_put - self._n_taken

    def put(self, pcm: np.ndarray) -> int:
        """Append what fits of `pcm` (n_samples,); returns how many samples that was."""
        n = min(len(pcm), len(self._data) - len(self))
        start = self._n_put % len(self._data)
        n_first = min(n, len(self._data) - start)
        self._data[start : start + n_first] = pcm[:n_first]
        self._data[: n - n_first] = pcm[n_first:n]
        self._n_put += n
        if n:
            self.paused = False
        return n

    def take(self, out: np.ndarray) -> int:
        """Fill `out` (n_samples,), with silence where nothing is left; returns how many samples were there."""
        n = min(len(out), len(self))
        start = self._n_taken % len(self._data)
        n_first = min(n, len(self._data) - start)
        out[:n_first] = self._data[start : start + n_first]
        out[n_first:n] = self._data[: n - n_first]
        out[n:] = 0
        self._n_taken += n
        if not self.paused:
            self.n_missing += len(out) - n
        return n

    def clear(self) -> None:
        """Forget what is queued; for the reader's side."""
        self._n_taken = self._n_put
