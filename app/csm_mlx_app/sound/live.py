"""The microphone and the loudspeaker of this machine, kept alive through whatever happens to them."""

import contextlib
import sys
import threading
import time
from collections import deque

import numpy as np

from csm_mlx.errors import DeviceError
from csm_mlx_app.sound.clock import RealClock
from csm_mlx_app.sound.device import BLOCK_S, BLOCK_SAMPLES, RATE_HZ, Block, Fault
from csm_mlx_app.sound.devices import NAMES, Device, Kind, find_device, look_again, quiet_alsa
from csm_mlx_app.sound.line import STOPPED, Line, open_microphone, open_speaker, prompt_callbacks
from csm_mlx_app.sound.microphone import Microphone
from csm_mlx_app.sound.reference import Reference
from csm_mlx_app.sound.speaker import Speaker

ZEROS_S = 1.0
"""Exact zeros for so long are a microphone that macOS denies: its own noise would show in the lowest bits."""
RETRY_S = 1.0
LOOK_AGAIN_S = 3.0
"""How often the devices are listed anew at the cost of a gap in the direction that still works."""
_POLL_S = 0.004
_WATCH_S = 0.05
SETTLED_S = 5.0
"""A stream that has lived for so long may end once without a word, where its device opens again at once."""
_STALL_S = 0.25
"""A microphone that is later than this is read as silence."""
_FALL_SILENT_S = 0.03


class LiveSound:
    """`Sound` on PortAudio, each direction at its device's own rate.

    pause and drop are silent within the 8 ms of the fade and one callback of 10 ms, after which the device still
    sounds what it holds: PortAudio's latency (asked for: 50 ms), and what a sound server or Bluetooth adds to it.

    A direction that is lost is told in `faults` and looked for every second: by the name it had, else the default.
    Until then the microphone is silence, and what is written counts as played as time passes, so that a conversation
    goes on. platform: `sys.platform`, whose microphones give exact zeros when the user denies them, if it is "darwin".
    listen, speak: whether there is to be a microphone and a loudspeaker at all.
    """

    def __init__(
        self,
        input_device: str | int | None,
        output_device: str | int | None,
        clock: RealClock,
        platform: str = sys.platform,
        *,
        listen: bool = True,
        speak: bool = True,
    ):
        self._kinds: tuple[Kind, ...] = tuple(kind for kind in NAMES if (listen if kind == "input" else speak))
        self.clock = clock
        self.input_name: str | None = None
        self.output_name: str | None = None
        self._wanted: dict[Kind, str | int | None] = {"input": input_device, "output": output_device}
        self._denies = platform == "darwin"
        self._lines: dict[Kind, Line | None] = {"input": None, "output": None}
        self._gone: dict[Kind, bool] = {"input": False, "output": False}
        self._tried_s = self._looked_s = self._virtual_s = 0.0
        self._closed = threading.Event()
        self._quiet = contextlib.ExitStack()
        self._faults: deque[Fault] = deque()
        self._n_overruns = 0
        self._microphone = Microphone(RATE_HZ)
        self._speaker = Speaker(RATE_HZ)
        self._reference = Reference(self._speaker)
        self._watcher: threading.Thread | None = None
        self._pending: tuple[float, np.ndarray] | None = None

    def start(self) -> None:
        try:
            self._quiet.enter_context(quiet_alsa())  # until `close`: lines of ALSA's threads tear a screen
            self._quiet.enter_context(prompt_callbacks())
            self._open_both()
        except BaseException:
            self._close_lines()
            self._quiet.close()
            raise
        self._last_s = self.clock.now_s()
        self._watcher = threading.Thread(target=self._watch, name="csm-sound", daemon=True)
        self._watcher.start()

    def _open_both(self) -> None:
        devices = {kind: find_device(kind, self._wanted[kind]) for kind in self._kinds}
        if "output" in devices:
            self._speaker.retune(devices["output"].rate_hz)
        for device in devices.values():
            self._open(device)

    def _open(self, device: Device) -> None:
        if device.kind == "input":
            n_overruns = self.n_overruns
            self._lines["input"], self._microphone = open_microphone(device, self.clock)
            self._n_overruns, self.input_name = n_overruns, device.name
        else:
            self._lines["output"] = open_speaker(device, self.clock, self._speaker)
            self.output_name = device.name

    def close(self) -> None:
        if self._closed.is_set():
            return
        self._closed.set()
        self.clock.notify()
        if self._watcher is None:
            return
        if self._speaker.gate.flowing:
            self._speaker.gate.shut = True
            time.sleep(_FALL_SILENT_S)
        self._watcher.join()
        self._close_lines()
        self._quiet.close()

    def _close_lines(self) -> None:
        for kind in self._kinds:
            self._close_line(kind)

    def _close_line(self, kind: Kind) -> None:
        line, self._lines[kind] = self._lines[kind], None
        if line is not None:
            line.close()
            if kind == "output":
                self._virtual_s = self.clock.now_s()

    # The microphone.

    def read(self) -> Block | None:
        while not self._closed.is_set():
            now_s = self.clock.now_s()
            if (heard := self._next(now_s)) is not None:
                t_s, pcm = heard
                self._last_s = t_s
                self.clock.notify()  # 50 times a second: whoever waits for something to be played asks again
                return Block(t_s, pcm, self._reference.ending_at(t_s))
            self.clock.wait(self._readable, now_s + _POLL_S)
        return None

    def _readable(self) -> bool:
        return self._closed.is_set() or self._microphone.ready

    def _next(self, now_s: float) -> tuple[float, np.ndarray] | None:
        """The block after the last, or silence in the place of one that is missing, or None while it is not due."""
        due_s = self._last_s + BLOCK_S
        while self._pending is None or self._pending[0] < due_s - BLOCK_S / 2:  # its place was filled with silence
            self._pending = self._microphone.take()
            if self._pending is None:
                return self._silence(due_s) if now_s - due_s > _STALL_S else None
        if self._pending[0] > due_s + BLOCK_S / 2:
            return self._silence(due_s)
        heard, self._pending = self._pending, None
        return heard

    @staticmethod
    def _silence(t_s: float) -> tuple[float, np.ndarray]:
        return t_s, np.zeros(BLOCK_SAMPLES, np.float32)

    @property
    def n_overruns(self) -> int:
        return self._n_overruns + self._microphone.n_overruns

    # The loudspeaker.

    def write(self, pcm: np.ndarray) -> None:
        self._speaker.write(pcm)

    @property
    def n_written(self) -> int:
        return self._speaker.n_written

    @property
    def n_played(self) -> int:
        return self._speaker.n_played(self.clock.now_s())

    @property
    def buffered_s(self) -> float:
        return self._speaker.buffered_s

    def pause(self) -> None:
        self._speaker.gate.shut = True

    def resume(self) -> None:
        self._speaker.gate.shut = False

    def drop(self) -> int:
        return self._speaker.drop()

    @property
    def more(self) -> bool:
        return self._speaker.more

    @more.setter
    def more(self, more: bool) -> None:
        self._speaker.more = more

    @property
    def n_underruns(self) -> int:
        return self._speaker.n_underruns

    # What happens to the devices.

    def faults(self) -> list[Fault]:
        return [self._faults.popleft() for _ in range(len(self._faults))]

    def _tell(self, kind: str, message: str) -> None:
        self._faults.append(Fault(self.clock.now_s(), kind, message))
        self.clock.notify()

    def _watch(self) -> None:
        told_zeros: Microphone | None = None
        while not self._closed.wait(_WATCH_S):
            for kind in self._kinds:
                self._check(kind)
            if told_zeros is not self._microphone and self._denied():
                told_zeros = self._microphone
                self._tell(
                    "input-zeros",
                    f"the microphone {self.input_name!r} gives exact silence: allow this terminal in System Settings > "
                    "Privacy & Security > Microphone, then open it anew",
                )
            if any(self._lines[kind] is None for kind in self._kinds) and self.clock.now_s() - self._tried_s > RETRY_S:
                self._reopen()
            self._play_to_nobody()
            self._speaker.flush_if_dry()

    def _denied(self) -> bool:
        microphone = self._microphone
        return self._denies and microphone.only_zeros and microphone.n_zeros >= ZEROS_S * microphone.rate_hz

    def _check(self, kind: Kind) -> None:
        line = self._lines[kind]
        if line is None:
            return
        if (why := line.lost()) is not None:
            what = f"the {NAMES[kind]} {line.device.name!r} is gone ({why})"
            if why == STOPPED and line.age_s > SETTLED_S:
                self._close_line(kind)
                if self._reopen_quietly(kind, line.device.name):
                    return
            self._lose(kind, "defect" if line.failure else f"{kind}-gone", what)
            self._close_line(kind)  # last: it waits for the sound server, which may be what hangs
        elif (rate_hz := line.measured_rate_hz()) is not None:
            self._close_line(kind)
            agreed = f"{line.device.rate_hz} Hz were agreed"
            self._lose(kind, "rate-changed", f"the {NAMES[kind]} {line.device.name!r} runs at {rate_hz} Hz, {agreed}")
        elif self._gone[kind] and line.heard:
            self._gone[kind] = False
            self._tell("recovered", f"the {NAMES[kind]} works again: {line.device.name!r}")

    def _reopen_quietly(self, kind: Kind, name: str) -> bool:
        """Sound servers end the streams of a process that was late for too long, whose devices are there all the time:
        nobody needs to do anything, and the gap is counted."""
        flowing = self._speaker.gate.flowing
        try:
            self._open_named(kind, name)
        except DeviceError:
            return False
        if kind == "input":
            self._n_overruns += 1
        else:
            self._speaker.n_late += flowing
        return True

    def _lose(self, kind: Kind, fault: str, what: str) -> None:
        if not self._gone[kind]:
            self._gone[kind] = True
            self._tell(fault, f"{what}; connect it or another, it is looked for every second")

    def _reopen(self) -> None:
        """One attempt at what is lost: as it was, and if that fails, after PortAudio has looked for devices anew."""
        self._tried_s = now_s = self.clock.now_s()
        if self._reopen_lost():
            return
        works = [kind for kind in self._kinds if self._lines[kind] is not None]
        if works and (now_s - self._looked_s < LOOK_AGAIN_S or self._speaker.gate.flowing):
            return  # looking costs the other direction a gap
        self._looked_s = now_s
        self._close_lines()
        with contextlib.suppress(DeviceError):
            look_again()
            self._reopen_lost()

    def _reopen_lost(self) -> bool:
        opened = [self._try_open(kind) for kind in self._kinds if self._lines[kind] is None]  # each gets its chance
        return all(opened)

    def _try_open(self, kind: Kind) -> bool:
        name = self.input_name if kind == "input" else self.output_name
        for wanted in (name, None):
            try:
                self._open_named(kind, wanted)
            except DeviceError:
                continue
            return True
        self._lose(kind, f"{kind}-gone", f"the {NAMES[kind]} {name!r} does not open")
        return False

    def _open_named(self, kind: Kind, wanted: str | None) -> None:
        device = find_device(kind, wanted)
        self._fit(device)
        self._open(device)

    def _fit(self, device: Device) -> None:
        """Make what is on our side of a device fit a new rate, and tell."""
        old_hz = self._microphone.rate_hz if device.kind == "input" else self._speaker.rate_hz
        if old_hz == device.rate_hz:
            return
        if device.kind == "output":
            self._play_to_nobody()
            self._speaker.retune(device.rate_hz)
        self._tell("rate-changed", f"the {NAMES[device.kind]} now runs at {device.rate_hz} Hz instead of {old_hz} Hz")

    def _play_to_nobody(self) -> None:
        """While there is no loudspeaker, what is queued passes as if it were heard."""
        if self._lines["output"] is not None or "output" not in self._kinds:
            return
        rate_hz, step_s = self._speaker.rate_hz, BLOCK_S
        out = np.zeros(round(rate_hz * step_s), np.float32)
        while self._virtual_s + step_s <= self.clock.now_s():
            self._speaker.emit(out, self._virtual_s)
            self._virtual_s += step_s
