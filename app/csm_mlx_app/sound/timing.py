"""When a device's samples sound: its counters and time stamps against the clock of the conversation."""

MAX_ERROR_S = 0.004
"""How far a `SampleClock` may be off before it is set anew: echo cancellation wants few, small corrections."""
_SMOOTHING = 0.02
_LOST_S = 0.1
_SETTLE_S = 0.3
"""The first stamps of a stream are believed as they come: devices fill their buffers in a burst."""
_CREEP_S = 1e-7
"""How fast the two clocks may drift apart, per call: 10 ppm at 100 calls a second."""
_SANE_S = 1.0


class StreamTime:
    """PortAudio's time stamps on our clock.

    Its stamps are on a clock of its own, or zero where the driver knows nothing. The difference between the clocks is
    the least that was seen, because a callback may come late, when Python was busy, but never early.
    """

    def __init__(self, latency_s: float):
        self.latency_s = latency_s
        """Taken for the device's where its stamps make no sense."""
        self._ahead_s: float | None = None

    def ahead_s(self, now_s: float, stream_s: float, buffer_s: float) -> float:
        """How far `buffer_s`, the stamp of a buffer's first sample, lies after `now_s`; negative for a microphone.

        stream_s: the stream's time at the callback, which began at or before `now_s`.
        """
        distance_s = buffer_s - stream_s
        if not (stream_s and buffer_s and abs(distance_s) < _SANE_S):
            return self.latency_s
        seen_s = now_s - stream_s
        if self._ahead_s is None or abs(seen_s - self._ahead_s) > _LOST_S:  # the first, or somebody set the clock
            self._ahead_s = seen_s
        self._ahead_s = min(self._ahead_s + _CREEP_S, seen_s)
        return stream_s + self._ahead_s + distance_s - now_s


class SampleClock:
    """The time of every sample of a stream, from noisy stamps of some.

    Counts samples, so that neighbours stay neighbours, and is set anew only when the stamps have been off by
    `MAX_ERROR_S` for a while: after a gap, or when the device's crystal and ours have drifted apart.
    """

    def __init__(self, rate_hz: int):
        self._rate_hz = rate_hz
        self._zero_s: float | None = None
        self._error_s = 0.0

    @property
    def running(self) -> bool:
        return self._zero_s is not None

    def stamp(self, n: int, t_s: float) -> None:
        """Sample number `n` sounds at `t_s`."""
        if self._zero_s is None or n < _SETTLE_S * self._rate_hz:
            self._zero_s = t_s - n / self._rate_hz
            return
        off_s = t_s - n / self._rate_hz - self._zero_s
        self._error_s += (off_s - self._error_s) * (1.0 if abs(off_s) > _LOST_S else _SMOOTHING)
        if abs(self._error_s) > MAX_ERROR_S:
            self._zero_s += off_s  # all of it at once: one correction disturbs less than many
            self._error_s = 0.0

    def time_s(self, n: float) -> float:
        return (self._zero_s or 0.0) + n / self._rate_hz

    def count(self, t_s: float) -> float:
        """The sample that sounds at `t_s`."""
        return (t_s - (self._zero_s or 0.0)) * self._rate_hz
