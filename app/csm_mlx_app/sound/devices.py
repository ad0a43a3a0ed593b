"""The microphones and loudspeakers of this machine. `sounddevice` and PortAudio are imported here only, when needed."""

import contextlib
import os
import sys
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from types import ModuleType
from typing import Any, Literal

from csm_mlx.errors import DeviceError

Kind = Literal["input", "output"]
NAMES: dict[Kind, str] = {"input": "microphone", "output": "loudspeaker"}
_MISSING: dict[Kind, str] = {
    "input": "no microphone found: connect one and allow the terminal to use it",
    "output": "no loudspeaker found: connect one or choose an output in the system's sound settings",
}


@dataclass(frozen=True)
class Device:
    """One direction of a device; `index` is PortAudio's, and changes when devices come and go."""

    kind: Kind
    index: int
    name: str
    channels: int
    rate_hz: int
    default: bool

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def load_sounddevice() -> ModuleType:
    """The module `sounddevice`; `DeviceError` tells how to get it or its PortAudio."""
    try:
        with quiet_alsa():
            import sounddevice
    except ImportError:
        raise DeviceError("the package sounddevice is missing: pip install sounddevice") from None
    except OSError as error:
        cure = "brew install portaudio" if sys.platform == "darwin" else "apt-get install libportaudio2"
        raise DeviceError(f"PortAudio is missing ({error}): {cure}, or write a file with -o out.wav") from None
    return sounddevice


def list_devices() -> list[Device]:
    """Every input and output, inputs first. PortAudio looks once: see `look_again`."""
    sounddevice = load_sounddevice()
    try:
        with quiet_alsa():
            found = list(sounddevice.query_devices())
            defaults = {kind: _default_index(sounddevice, kind) for kind in NAMES}
    except sounddevice.PortAudioError as error:
        raise DeviceError(f"the devices cannot be listed ({error.args[0]}); is the sound service running?") from None
    return [
        Device(
            kind, i, d["name"], d[f"max_{kind}_channels"], round(d["default_samplerate"]), default=i == defaults[kind]
        )
        for kind in NAMES
        for i, d in enumerate(found)
        if d[f"max_{kind}_channels"] > 0
    ]


def _default_index(sounddevice: ModuleType, kind: Kind) -> int | None:
    try:
        return sounddevice.query_devices(kind=kind)["index"]
    except (sounddevice.PortAudioError, ValueError):
        return None


def find_device(kind: Kind, wanted: str | int | None = None) -> Device:
    """The device of an index, or of a name or part of one in any case, or the default.

    `DeviceError` lists those that there are, where `wanted` fits none of them, or several by different names.
    """
    there = [device for device in list_devices() if device.kind == kind]
    if wanted is None:
        for device in there:
            if device.default:
                return device
        raise DeviceError(_MISSING[kind])
    if isinstance(wanted, int) or wanted.isdecimal():
        fitting = [device for device in there if device.index == int(wanted)]
    else:
        fitting = [d for d in there if d.name.casefold() == wanted.casefold()] or [
            d for d in there if wanted.casefold() in d.name.casefold()
        ]
    if len({device.name for device in fitting}) == 1:
        return fitting[0]
    why = f"fits {len(fitting)} devices" if fitting else "is none of them"
    raise DeviceError(f"the {NAMES[kind]} {wanted!r} {why}; {choices(kind, fitting or there)}")


def choices(kind: Kind, there: list[Device] | None = None) -> str:
    """For the end of an error message: what there is, and the flag that chooses."""
    if there is None:
        there = [device for device in list_devices() if device.kind == kind]
    if not there:
        return _MISSING[kind]
    names = ", ".join(f"{device.index} {device.name!r}" for device in there)
    return f"choose with --{kind}-device from: {names}"


def refused(device: Device, reason: str) -> DeviceError:
    """What to say when a device does not open."""
    return DeviceError(
        f"the {NAMES[device.kind]} {device.name!r} refuses: {reason}; is it in use? {choices(device.kind)}"
    )


def look_again() -> None:
    """Let PortAudio look for devices anew. Every open stream is lost: close them first."""
    sounddevice = load_sounddevice()
    with quiet_alsa():
        with contextlib.suppress(sounddevice.PortAudioError):  # where the last look failed half-way
            sounddevice._terminate()
        try:
            sounddevice._initialize()
        except sounddevice.PortAudioError as error:
            raise DeviceError(f"PortAudio does not start ({error.args[0]}); is the sound service running?") from None


def output_channels(device: Device) -> int:
    """Both ears where there are two: some drivers play a single channel on the left only."""
    return min(2, device.channels)


_quiet_lock = threading.Lock()
_quiet: list[contextlib.ExitStack] = []
"""What undoes the quiet, and one more for each block that is in it."""


@contextlib.contextmanager
def quiet_alsa() -> Iterator[None]:
    """Linux's ALSA writes pages of configuration noise to file descriptor 2 while PortAudio looks at devices, and lines
    between those of a screen whenever one is late or lost. Inside the block only Python's own `sys.stderr` is seen.
    """
    if not sys.platform.startswith("linux") or os.environ.get("CSM_DEBUG", "") not in ("", "0"):
        yield
        return
    with _quiet_lock:
        _quiet.append(_stderr_for_python_only() if not _quiet else contextlib.ExitStack())
    try:
        yield
    finally:
        with _quiet_lock:
            # The first that came holds the key, and the last that goes turns it.
            _quiet.pop().close() if len(_quiet) == 1 else _quiet.pop()


def _stderr_for_python_only() -> contextlib.ExitStack:
    undo, python = contextlib.ExitStack(), sys.stderr
    python.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    os.close(nowhere)
    undo.callback(os.close, kept)
    undo.callback(os.dup2, kept, 2)
    if python is sys.__stderr__:
        mine = open(kept, "w", buffering=1, encoding=python.encoding, errors=python.errors, closefd=False)  # noqa: SIM115
        sys.stderr = mine
        undo.callback(mine.close)
        undo.callback(setattr, sys, "stderr", python)
    return undo
