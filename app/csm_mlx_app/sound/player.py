"""The loudspeaker. `sounddevice` and PortAudio are imported here only, and only when sound is to be played."""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType, TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from csm_mlx.errors import DeviceError
from csm_mlx_app.sound.ring import Ring

if TYPE_CHECKING:
    from typing_extensions import Self

BUFFER_S = 60.0
"""How far making may run ahead of playing before `write` waits."""
LATENCY_S = 0.1
"""Asked of the system: enough that a busy Python thread causes no clicks, too little to notice."""
_AFTER_S = 0.1
"""What sound servers hold beyond the latency that PortAudio knows of."""
_POLL_S = 0.02


def load_sounddevice() -> ModuleType:
    """The module `sounddevice`; `DeviceError` tells how to get it or its PortAudio."""
    try:
        with _quiet_alsa():
            import sounddevice
    except ImportError:
        raise DeviceError("the package sounddevice is missing: pip install sounddevice") from None
    except OSError as error:
        cure = "brew install portaudio" if sys.platform == "darwin" else "apt-get install libportaudio2"
        raise DeviceError(f"PortAudio is missing ({error}): {cure}, or write a file with -o out.wav") from None
    return sounddevice


def output_device() -> dict[str, Any]:
    """PortAudio's description of the default loudspeaker; `DeviceError` where there is none."""
    return _default_device(
        "output", "no loudspeaker found: connect one or choose an output in the system's sound settings"
    )


def input_device() -> dict[str, Any]:
    """PortAudio's description of the default microphone; `DeviceError` where there is none."""
    return _default_device("input", "no microphone found: connect one and allow the terminal to use it")


def _default_device(kind: str, missing: str) -> dict[str, Any]:
    sounddevice = load_sounddevice()
    try:
        with _quiet_alsa():
            return dict(sounddevice.query_devices(kind=kind))
    except (sounddevice.PortAudioError, ValueError):
        raise DeviceError(missing) from None


class Player:
    """Plays PCM as it comes, from the first samples on.

    `write` only fills a ring; PortAudio's own thread empties it. Leaving the `with` block waits until all was heard,
    or, on an exception or Ctrl-C, falls silent at once.
    """

    def __init__(self, sample_rate_hz: int):
        sounddevice = load_sounddevice()
        device = output_device()
        self._resampler = None
        try:
            with _quiet_alsa():
                rate_hz = _playable_rate(sounddevice, device, sample_rate_hz)
                self._ring = ring = Ring(round(BUFFER_S * rate_hz))
                self._stream = sounddevice.OutputStream(
                    rate_hz,
                    channels=1,
                    dtype="float32",
                    latency=LATENCY_S,
                    callback=lambda out, *_: ring.take(out[:, 0]),
                )
                self._stream.start()
        except sounddevice.PortAudioError as error:
            raise DeviceError(f"the loudspeaker {device['name']!r} refuses: {error.args[0]}; is it in use?") from None
        self._rate_hz = rate_hz
        self.name: str = device["name"]
        if rate_hz != sample_rate_hz:
            import soxr

            self._resampler = soxr.ResampleStream(sample_rate_hz, rate_hz, 1, dtype="float32")

    @property
    def gap_s(self) -> float:
        """Silence heard inside what was said, because making was slower than playing."""
        return self._ring.n_missing / self._rate_hz

    def write(self, pcm: np.ndarray) -> None:
        """Queue `pcm` (n_samples,); waits while more than `BUFFER_S` are queued."""
        self._put(pcm if self._resampler is None else self._resampler.resample_chunk(pcm))

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
        if self._resampler is not None:
            self._put(self._resampler.resample_chunk(np.zeros(0, np.float32), last=True))
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


def _playable_rate(sounddevice: ModuleType, device: dict[str, Any], sample_rate_hz: int) -> int:
    """`sample_rate_hz`, or the device's own rate where the driver does not convert."""
    try:
        sounddevice.check_output_settings(channels=1, dtype="float32", samplerate=sample_rate_hz)
    except sounddevice.PortAudioError:
        return round(device["default_samplerate"])
    return sample_rate_hz


@contextmanager
def _quiet_alsa() -> Iterator[None]:
    """Linux's ALSA writes pages of configuration noise to file descriptor 2 while PortAudio looks at devices."""
    if not sys.platform.startswith("linux"):
        yield
        return
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
