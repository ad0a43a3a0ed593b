"""The loudspeaker's side of a live conversation: what was written, what was heard of it, and when."""

import threading
import time

import numpy as np

from csm_mlx.audio import resample
from csm_mlx_app.sound.device import CAPACITY_S, RATE_HZ, check_room
from csm_mlx_app.sound.gate import Gate
from csm_mlx_app.sound.resampling import Resampler
from csm_mlx_app.sound.timing import SampleClock

HISTORY_S = 4.0
"""How long what was played is remembered, as the echo's reference."""
_SPARE_S = 1.0
"""Of the ring, beyond what `write` lets in: rates do not divide evenly."""
_MARKS = 1024
"""Callbacks that are remembered: 10 s of blocks of 10 ms, more than any device's latency."""
_FADED_S = 0.25
"""Longest wait for the callback to fade out: a callback that is dead by then has been silent anyway."""


class Speaker:
    """Queues sound at 24 kHz, and hands it out at the device's rate.

    `emit` is the callback's half: it takes no lock. The other methods take one among themselves.
    """

    def __init__(self, rate_hz: int):
        self._lock = threading.RLock()
        self._more = False
        self._n_written = self._n_played = 0
        self._n_underruns = 0
        self.n_late = 0
        """Times that the device ran dry because the callback came late; the callback counts them."""
        self._tune(rate_hz)

    def _tune(self, rate_hz: int) -> None:
        self.rate_hz = rate_hz
        self.gate = Gate(rate_hz, CAPACITY_S + _SPARE_S)
        self.gate.more = self._more
        self.clock = SampleClock(rate_hz)
        self._resampler = Resampler(RATE_HZ, rate_hz)
        self._n_emitted = self._n_taken = self._n_queued = 0
        self._n_written_base, self._n_taken_base = self._n_written, 0
        """Where both counts were known to mean the same sample."""
        self._marks = np.zeros((_MARKS, 3), np.int64)
        """Of each callback: samples emitted before it, samples of the queue before it, samples of the queue in it."""
        self._n_marks = 0
        self._history = np.zeros(round(HISTORY_S * rate_hz), np.float32)

    def retune(self, rate_hz: int) -> None:
        """Go on with a device of this rate. Only while nobody calls `emit`."""
        with self._lock:
            self._flush()
            queued = np.zeros(len(self.gate.ring), np.float32)
            self.gate.ring.take(queued)
            shut, old_hz = self.gate.shut, self.rate_hz
            self._n_underruns += self.gate.n_underruns
            left = round(len(queued) * RATE_HZ / old_hz)
            written, self._n_written = self._n_written, self._n_written - left
            self._tune(rate_hz)
            self._n_played = self._n_written  # what the lost device held is taken for heard
            self.gate.shut = shut
            self._queue(resample(queued, old_hz, rate_hz))
            self._n_written = written

    def emit(self, out: np.ndarray, t_s: float, late: bool = False) -> None:
        """Fill `out` (n_samples,), whose first sample sounds at `t_s`. For the device's callback.

        late: the device had nothing left to play before this call.
        """
        self.n_late += late and self.gate.flowing
        n = self.gate.take(out)
        self.clock.stamp(self._n_emitted, t_s)
        self._marks[self._n_marks % _MARKS] = self._n_emitted, self._n_taken, n
        start = self._n_emitted % len(self._history)
        n_first = min(len(out), len(self._history) - start)
        self._history[start : start + n_first] = out[:n_first]
        self._history[: len(out) - n_first] = out[n_first:]
        self._n_taken += n
        self._n_emitted += len(out)
        self._n_marks += 1

    def emitted(self, start: int, stop: int) -> np.ndarray:
        """(stop - start,) float32: samples `start` to `stop` of what was emitted, silence where they are unknown."""
        out = np.zeros(stop - start, np.float32)
        kept = len(self._history) // 2  # of the rest some may be overwritten while we read
        first, last = max(start, self._n_emitted - kept, 0), min(stop, self._n_emitted)
        if first < last:
            out[first - start : last - start] = self._history[np.arange(first, last) % len(self._history)]
        return out

    def write(self, pcm: np.ndarray) -> None:
        with self._lock:
            check_room(self._n_written - self._n_handed_over(), len(pcm))
            self._n_written += len(pcm)
            self._queue(self._resampler.put(pcm))

    def _queue(self, pcm: np.ndarray) -> None:
        self._n_queued += self.gate.ring.put(pcm)

    def _flush(self) -> None:
        """What the resampler holds back goes out, and the counts are made to agree."""
        self._queue(self._resampler.finish())
        self._n_written_base, self._n_taken_base = self._n_written, self._n_queued

    @property
    def more(self) -> bool:
        return self._more

    @more.setter
    def more(self, more: bool) -> None:
        with self._lock:
            self._more = self.gate.more = more
            if not more:
                self._flush()

    def flush_if_dry(self) -> None:
        """A writer that pauses without saying so must not keep its last samples from being heard."""
        if self._resampler.n_pending and not len(self.gate.ring):
            with self._lock:
                if not len(self.gate.ring):
                    self._flush()

    def _count(self, n_taken: float) -> int:
        """Samples at 24 kHz that the first `n_taken` at the device's rate stand for."""
        behind = (self._n_taken_base - n_taken) * RATE_HZ / self.rate_hz
        return max(0, min(self._n_written, round(self._n_written_base - behind)))

    def _n_handed_over(self) -> int:
        return self._count(self._n_taken)

    @property
    def n_written(self) -> int:
        return self._n_written

    def n_played(self, now_s: float) -> int:
        """Samples at 24 kHz that sounded before `now_s`."""
        with self._lock:
            n_heard = self.clock.count(now_s) if self.clock.running else 0.0
            n_marks = self._n_marks
            for mark in range(n_marks - 1, max(-1, n_marks - _MARKS + 2), -1):
                n_emitted, n_taken, n = (int(value) for value in self._marks[mark % _MARKS])
                if n_emitted <= n_heard:
                    self._n_played = max(self._n_played, self._count(n_taken + min(n, n_heard - n_emitted)))
                    break
            return min(self._n_played, self._n_written)

    @property
    def buffered_s(self) -> float:
        return max(0, self._n_written - self._n_handed_over()) / RATE_HZ

    def drop(self) -> int:
        """Fade, forget, and say how much of what was written will have been heard."""
        with self._lock:
            self.gate.shut = True
            give_up_s = time.perf_counter() + _FADED_S
            while not self.gate.silent and time.perf_counter() < give_up_s:
                time.sleep(0.002)
            n = self._n_handed_over()
            self._resampler.clear()
            self.gate.clear()
            self._n_written = self._n_written_base = n
            self._n_taken_base = self._n_queued = self._n_taken
            return n

    @property
    def n_underruns(self) -> int:
        return self._n_underruns + self.gate.n_underruns + self.n_late
