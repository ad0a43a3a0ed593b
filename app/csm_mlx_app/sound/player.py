"""The loudspeaker of `csm say`: plays what it is given, and waits until all was heard."""

import time
from types import ModuleType, TracebackType
from typing import TYPE_CHECKING

import numpy as np

from csm_mlx.errors import DeviceError
from csm_mlx_app.sound.device import CAPACITY_S
from csm_mlx_app.sound.devices import Device, find_device, load_sounddevice, output_channels, quiet_alsa, refused
from csm_mlx_app.sound.resampling import Resampler
from csm_mlx_app.sound.ring import Ring

if TYPE_CHECKING:
    from typing_extensions import Self

LATENCY_S = 0.1
"""Asked of the system: enough that a busy Python thread causes no clicks, too little to notice."""
_AFTER_S = 0.1
"""What sound servers hold beyond the latency that PortAudio knows of."""
_POLL_S = 0.02


class Player:
    """Plays PCM as it comes, from the first samples on.

    `write` only fills a ring; PortAudio's own thread empties it. Leaving the `with` block waits until all was heard,
    or, on an exception or Ctrl-C, falls silent at once. device: name, index, or None for the default.
    """

    def __init__(self, sample_rate_hz: int, device: str | int | None = None):
        sounddevice = load_sounddevice()
        found = find_device("output", device)
        try:
            with quiet_alsa():
                rate_hz = _playable_rate(sounddevice, found, sample_rate_hz)
                self._ring = ring = Ring(round(CAPACITY_S * rate_hz))
                self._stream = sounddevice.OutputStream(
                    rate_hz,
                    device=found.index,
                    channels=output_channels(found),
                    dtype="float32",
                    latency=LATENCY_S,
                    callback=lambda out, *_: _fill(ring, out),
                )
                self._stream.start()
        except sounddevice.PortAudioError as error:
            raise refused(found, error.args[0]) from None
        self._rate_hz = rate_hz
        self.name = found.name
        self._resampler = Resampler(sample_rate_hz, rate_hz)

    @property
    def gap_s(self) -> float:
        """Silence heard inside what was said, because making was slower than playing."""
        return self._ring.n_missing / self._rate_hz

    def write(self, pcm: np.ndarray) -> None:
        """Queue `pcm` (n_samples,); waits while more than `CAPACITY_S` are queued."""
        self._put(self._resampler.put(pcm))

    def _put(self, pcm: np.ndarray) -> None:
        while len(pcm := pcm[self._ring.put(pcm) :]):
            self._wait()

    def _wait(self) -> None:
        if not self._stream.active:
            raise DeviceError(
                f"the loudspeaker {self.name!r} went away while it played; the file of -o is not affected"
            )
        time.sleep(_POLL_S)

    def pause(self) -> None:
        """Nothing follows for now, as at the end of a sentence: silence is then no gap."""
        self._ring.paused = True

    def drain(self) -> None:
        """Return when all that was written has been heard."""
        self._put(self._resampler.finish())
        self.pause()
        while len(self._ring):
            self._wait()
        # Some drivers drop what they hold when they are stopped: silence pushes the last words out first.
        time.sleep(self._stream.latency + _AFTER_S)

    def __enter__(self) -> "Self":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        try:
            if kind is None:
                self.drain()
        finally:
            self._stream.abort()
            self._stream.close()


def _fill(ring: Ring, out: np.ndarray) -> None:
    ring.take(out[:, 0])
    out[:, 1:] = out[:, :1]


def _playable_rate(sounddevice: ModuleType, device: Device, sample_rate_hz: int) -> int:
    """`sample_rate_hz`, or the device's own rate where the driver does not convert."""
    try:
        sounddevice.check_output_settings(
            device=device.index, channels=output_channels(device), dtype="float32", samplerate=sample_rate_hz
        )
    except sounddevice.PortAudioError:
        return device.rate_hz
    return sample_rate_hz
