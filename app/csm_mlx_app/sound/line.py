"""One open stream of PortAudio, and the signs that it lives."""

import gc
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from csm_mlx.errors import DeviceError
from csm_mlx_app.sound.clock import RealClock
from csm_mlx_app.sound.devices import Device, load_sounddevice, output_channels, quiet_alsa, refused
from csm_mlx_app.sound.microphone import Microphone
from csm_mlx_app.sound.speaker import Speaker
from csm_mlx_app.sound.timing import StreamTime

BLOCK_S = 0.01
"""Of a callback."""
OUTPUT_LATENCY_S = 0.05
"""Asked of the loudspeaker: five callbacks, so that one may be late because Python or the machine is busy. With three,
a conversation of a minute on two shared cores had one gap or two of ten milliseconds."""
SILENT_S = 2.0
"""A callback that does not come for so long, while this process runs, does not come any more."""
STOPPED, HANGS = "it stopped", "it hangs"
START_S = 3.0
"""Before the first one: sound servers and Bluetooth take their time."""
RATE_WINDOW_S = 5.0
RATES_HZ = (8000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000, 88_200, 96_000, 176_400, 192_000)
"""To which a device may be set while it runs: sound that a busy machine lost makes any other rate."""
MAX_RATE_ERROR = 0.02
"""Of the samples counted over `RATE_WINDOW_S`: more than clocks differ, less than rates do."""
_SWITCH_S = 0.001
"""After which a thread hands Python's lock on to one that waits; its own 5 ms are half of a callback's time."""
_AWAKE_S = 0.1
"""Between two looks at a line; where it is longer, this process did not run, and no callback could come."""


@contextmanager
def prompt_callbacks() -> Iterator[None]:
    """Python as it should be while callbacks run in it: they need its lock within their 10 ms.

    What is loaded by now is no garbage: to look through it would hold the lock for 70 ms. One at a time.
    """
    before_s = sys.getswitchinterval()
    try:
        sys.setswitchinterval(_SWITCH_S)
        gc.collect()
        gc.freeze()
        yield
    finally:
        gc.unfreeze()
        sys.setswitchinterval(before_s)


class Line:
    """A stream from its opening to its end; its callbacks serve it only while it is `open`."""

    def __init__(self, device: Device, clock: RealClock):
        self.device = device
        self.open = True
        self.failure: Exception | None = None
        """What a callback raised: a defect of ours, kept for whoever may talk."""
        self._clock = clock
        self._last_s: float | None = None
        self._opened_s = clock.now_s()
        self._n_samples = self._n_xruns = 0
        self._window = (self._opened_s, 0, 0)
        self._odd_rate_hz: int | None = None
        self._looked_s, self._absent_s, self._known_s = self._opened_s, 0.0, self._last_s
        self._stream: Any = None

    def start(self, kind: str, latency: str | float, serve: Callable[..., None], channels: int, sign: int) -> "Line":
        """Open and start it; `serve(data (n, channels), time of its first sample, xrun)` runs in the callback.

        sign: 1 for an output, whose samples sound after the callback, -1 for an input. `DeviceError` if it refuses.
        """
        sounddevice, stamps = load_sounddevice(), StreamTime(0.0)

        def callback(data: Any, n_samples: int, times: Any, status: Any) -> None:
            try:
                if not self.open:
                    silence(data)
                    return
                xrun = bool(status.output_underflow if sign > 0 else status.input_overflow)
                now_s = self.count(n_samples, xrun)
                stamp_s = times.outputBufferDacTime if sign > 0 else times.inputBufferAdcTime
                serve(data, now_s + stamps.ahead_s(now_s, times.currentTime, stamp_s), xrun)
            except Exception as error:
                self.failure = error
                silence(data)

        def silence(data: Any) -> None:
            if sign > 0:
                data.fill(0)

        make = sounddevice.OutputStream if kind == "output" else sounddevice.InputStream
        try:
            with quiet_alsa():
                self._stream = make(
                    self.device.rate_hz,
                    blocksize=round(self.device.rate_hz * BLOCK_S),
                    device=self.device.index,
                    channels=channels,
                    dtype="float32",
                    latency=latency,
                    callback=callback,
                )
                stamps.latency_s = sign * self._stream.latency
                self._stream.start()
        except sounddevice.PortAudioError as error:
            self.close()
            raise refused(self.device, error.args[0]) from None
        return self

    def count(self, n_samples: int, xrun: bool) -> float:
        """A callback came; when."""
        self._last_s = now_s = self._clock.now_s()
        self._n_samples += n_samples
        self._n_xruns += xrun
        return now_s

    @property
    def heard(self) -> bool:
        """Its callback has been called."""
        return self._last_s is not None

    @property
    def age_s(self) -> float:
        return self._clock.now_s() - self._opened_s

    def lost(self) -> str | None:
        """Why it is of no use any more, or None; to be asked several times a second."""
        if self.failure is not None:
            return f"{type(self.failure).__name__}: {self.failure}"
        try:
            if not self._stream.active:
                return STOPPED
        except Exception as error:  # PortAudio's, which is not to be imported here
            return str(error)
        return HANGS if self._absent() > (START_S if self._last_s is None else SILENT_S) else None

    def _absent(self) -> float:
        """Seconds without a callback, of those in which this process ran: a look that is late shows that it did not."""
        now_s, last_s = self._clock.now_s(), self._last_s
        step_s, self._looked_s = min(now_s - self._looked_s, _AWAKE_S), now_s
        self._absent_s = self._absent_s + step_s if last_s == self._known_s else 0.0
        self._known_s = last_s
        return self._absent_s

    def measured_rate_hz(self) -> int | None:
        """The rate at which samples really come, where it is another than was agreed for two windows in a row."""
        if self._last_s is None:
            return None
        start_s, n_samples, n_xruns = self._window
        now_s, n_now = self._last_s, self._n_samples
        if not n_samples:
            self._window = (now_s, n_now, self._n_xruns)
            return None
        if now_s - start_s < RATE_WINDOW_S:
            return None
        counted_hz = (n_now - n_samples) / (now_s - start_s)
        rate_hz = min(RATES_HZ, key=lambda rate_hz: abs(rate_hz - counted_hz))
        known = n_xruns == self._n_xruns and abs(counted_hz / rate_hz - 1) < MAX_RATE_ERROR
        before_hz, self._odd_rate_hz = self._odd_rate_hz, rate_hz if known and rate_hz != self.device.rate_hz else None
        self._window = (now_s, n_now, self._n_xruns)
        return rate_hz if rate_hz == before_hz == self._odd_rate_hz else None

    def close(self) -> None:
        """Let go of the device, whatever state it is in."""
        self.open = False
        if self._stream is not None:
            with quiet_alsa():
                self._stream.abort(ignore_errors=True)
                self._stream.close(ignore_errors=True)


def open_microphone(device: Device, clock: RealClock) -> tuple[Line, Microphone]:
    """The device's stream, and what it fills."""
    microphone = Microphone(device.rate_hz)

    def serve(data: Any, t_s: float, xrun: bool) -> None:
        microphone.n_overruns += xrun
        microphone.capture(data[:, 0], t_s)

    return Line(device, clock).start("input", "low", serve, 1, -1), microphone


def open_speaker(device: Device, clock: RealClock, speaker: Speaker) -> Line:
    """The device's stream, which `speaker`, at the device's rate, feeds."""
    if speaker.rate_hz != device.rate_hz:
        raise DeviceError(f"the loudspeaker runs at {device.rate_hz} Hz, its queue at {speaker.rate_hz} Hz")

    def serve(data: Any, t_s: float, xrun: bool) -> None:
        speaker.emit(data[:, 0], t_s, xrun)
        data[:, 1:] = data[:, :1]

    return Line(device, clock).start("output", OUTPUT_LATENCY_S, serve, output_channels(device), 1)
