"""Full duplex on devices: who listens, who computes, and what is left out when computing comes late."""

import threading
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from csm_mlx.errors import DeviceError
from csm_mlx_app.assistant.report import Report
from csm_mlx_app.sound.clock import Clock
from csm_mlx_app.sound.device import RATE_HZ, Sound
from csm_mlx_app.sound.echo import EchoCanceller, level_db

MOST_WAITING = 3
"""Frames of the microphone that may wait for their step: 240 ms."""
CUSHION_S = 0.08
"""Of silence before the first frame said, so that one that is a little late leaves no gap."""
QUEUED_S, MOST_QUEUED_S = 0.2, 0.4
"""With more than the first in the loudspeaker's queue, frames of silence are not said, with more than the second none:
after a delay that was caught up, answers would come late for good."""
SILENCE_DB = -50.0
_JOIN_S = 0.7


class Frame(NamedTuple):
    """What the microphone gave."""

    pcm: np.ndarray
    """(frame_size,)"""
    end_s: float
    """Where it ends in all of the microphone's sound, whether or not that was heard: the conversation's time."""


class Prepared(NamedTuple):
    """A model that is loaded and warm."""

    frame_size: int
    step: Callable[[Frame], np.ndarray | None]
    """Hears a frame and says one (frame_size,); None when the conversation is over."""


class Backlog:
    """Frames that wait to be heard. Where too many do, silence is left out first, then the oldest."""

    def __init__(self, most: int = MOST_WAITING):
        self._most = most
        self._frames: deque[Frame] = deque()
        self._lock = threading.Lock()
        self.n_dropped = 0

    def __len__(self) -> int:
        return len(self._frames)

    def put(self, frame: Frame) -> None:
        with self._lock:
            self._frames.append(frame)
            if len(self._frames) > self._most:
                levels = [level_db(waiting.pcm) for waiting in self._frames]
                del self._frames[next((n for n, level in enumerate(levels) if level < SILENCE_DB), 0)]
                self.n_dropped += 1

    def take(self) -> Frame | None:
        with self._lock:
            return self._frames.popleft() if self._frames else None


def make_canceller(echo: str, note: Callable[[str], None]) -> EchoCanceller | None:
    """What `--echo` asks for; `auto` does without where it is not installed, and says so."""
    if echo not in ("auto", "aec"):
        return None
    try:
        return EchoCanceller()
    except DeviceError as error:
        if echo == "aec":
            raise
        note(f"{error.args[0].partition(':')[0]}: pip install 'csm-mlx[talk]'; until then wear headphones")
        return None


class Duplex:
    """Threads: one listens, one owns MLX. The caller's own asks `is_over`, which raises what ended it.

    prepare: loads and warms up, on the thread that owns MLX.
    """

    def __init__(
        self, sound: Sound, report: Report, prepare: Callable[[], Prepared], *, canceller: EchoCanceller | None
    ):
        self._sound, self._report, self._prepare, self._canceller = sound, report, prepare, canceller
        self._frame_size = 0
        self._backlog = Backlog()
        self._has_ended = self._is_done = self._closing = False
        self._failure: BaseException | None = None
        self._ready = threading.Event()
        self._worker = threading.Thread(target=self._compute, name="worker", daemon=True)
        self._ears: threading.Thread | None = None
        self.n_skipped = 0
        """Frames said that were not played."""

    def start(self) -> None:
        """Loads everything, then opens the devices; raises what stood in the way."""
        self._worker.start()
        while not self._ready.wait(0.1):  # in pieces, so that Ctrl-C gets through
            pass
        if self._failure is not None:
            raise self._failure
        self._sound.start()
        attendance = self._sound.clock.attend()
        self._ears = threading.Thread(target=self._listen, args=(attendance,), name="ears", daemon=True)
        self._ears.start()

    @property
    def n_dropped(self) -> int:
        """Frames of the microphone that were never heard."""
        return self._backlog.n_dropped

    @property
    def is_over(self) -> bool:
        if self._failure is not None:
            raise self._failure
        return self._is_done

    def check_devices(self) -> None:
        """Tells what happened to them."""
        for fault in self._sound.faults():
            self._report.emit("fault", kind=fault.kind, message=fault.message, t_s=fault.t_s)

    def close(self) -> None:
        """Falls silent and ends the threads, within a second: one that is inside a step may end later."""
        self._closing = True
        self._sound.close()
        self._clock.notify()
        for thread in (self._worker, self._ears):
            if thread is not None and thread.ident is not None:
                thread.join(_JOIN_S / 2)

    @property
    def _clock(self) -> Clock:
        return self._sound.clock

    def _listen(self, attendance: AbstractContextManager[None]) -> None:
        """Blocks of the microphone, without the echo, to frames."""
        heard, end_s = np.zeros(0, np.float32), 0.0
        try:
            with attendance:
                while (block := self._sound.read()) is not None:
                    pcm = block.pcm if self._canceller is None else self._canceller.clean(block.pcm, block.played)
                    heard = np.concatenate([heard, pcm])
                    while len(heard) >= self._frame_size:
                        end_s += self._frame_size / RATE_HZ
                        self._put(Frame(heard[: self._frame_size], end_s))
                        heard = heard[self._frame_size :]
        except BaseException as error:
            self._failure = error
        finally:
            self._has_ended = True
            self._clock.notify()

    def _put(self, frame: Frame) -> None:
        behind = self._backlog.n_dropped
        self._backlog.put(frame)
        self._clock.notify()
        if not behind and self._backlog.n_dropped:
            self._report.note(
                "this machine is late: sound that waits for it is left out, silence first; the end tells how much"
            )

    def _compute(self) -> None:
        try:
            self._frame_size, step = self._prepare()
        except BaseException as error:
            self._failure = error
            mx.clear_streams()
            return
        finally:
            self._ready.set()
        try:
            self._sound.more = True
            with self._clock.attend():
                while not self._is_done and not self._closing:
                    self._clock.wait(lambda: self._closing or self._has_ended or len(self._backlog) > 0)
                    frame = self._backlog.take()
                    if frame is not None:
                        self._say(step(frame))
                    elif self._has_ended:
                        self._is_done = True
        except BaseException as error:  # told by the main thread, which asks for it
            self._failure = error
        finally:
            self._is_done = True
            mx.clear_streams()  # theirs are C++ threads: one that is left when the process ends aborts it

    def _say(self, pcm: np.ndarray | None) -> None:
        if pcm is None:
            self._is_done = True
            return
        if not self._sound.n_written:
            self._sound.write(np.zeros(round(CUSHION_S * RATE_HZ), np.float32))
        queued_s = self._sound.buffered_s
        if queued_s > MOST_QUEUED_S or (queued_s > QUEUED_S and level_db(pcm) < SILENCE_DB):
            self.n_skipped += 1
            return
        self._sound.write(pcm)
