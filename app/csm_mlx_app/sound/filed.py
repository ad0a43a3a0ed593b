"""A microphone that is a sound file and a loudspeaker that is another, on any clock."""

import contextlib
import math
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path

import numpy as np

from csm_mlx.audio import AudioWriter, read_audio
from csm_mlx.errors import AudioError
from csm_mlx_app.sound.clock import Clock
from csm_mlx_app.sound.device import BLOCK_S, BLOCK_SAMPLES, CAPACITY_S, RATE_HZ, Block, Fault, check_room
from csm_mlx_app.sound.gate import Gate

ECHO_DELAY_BLOCKS = 3
"""60 ms from the loudspeaker to the microphone."""
TAIL_S = 1.0
_REMEMBERED = 3000
"""Steps: a minute, for a reader that comes late."""
_SAVED_AT_ONCE = 50
_EARLY_S = 1e-6
"""Clocks are floating-point: a step that is due in less than this is due."""


class FileSound:
    """`Sound` on files: both pass 20 ms of sound per 20 ms of `clock`, in step.

    input: read whole (None is silence), and followed by silence for as long as something is played or `hold()` is
        true, and `tail_s` longer; then `read` returns None. A microphone read late loses nothing.
    output: everything that would have been heard, silence too, from the start on; None for nowhere. What is written
        during a step of 20 ms is heard from the next step on. A full disk is a fault, told once.
    echo_db: how loud the loudspeaker is in the microphone, 60 ms later; None is silent.
    """

    def __init__(
        self,
        input: Path | None,
        output: Path | None,
        clock: Clock,
        *,
        echo_db: float | None = None,
        tail_s: float = TAIL_S,
    ):
        self.clock = clock
        self.input_name: str | None = str(input) if input is not None else None
        self.output_name: str | None = str(output) if output is not None else None
        self.hold: Callable[[], bool] = lambda: False
        """Whether the conversation still has something to do; it must not wait."""
        self.n_overruns = 0
        self.start_s = math.inf
        """When the first sample of both files is; known from `start` on."""
        self._input_path, self._output_path = input, output
        self._echo_gain = 0.0 if echo_db is None else 10 ** (echo_db / 20)
        self._tail_s = tail_s
        self._lock = threading.RLock()
        self._gate = Gate(RATE_HZ, CAPACITY_S)
        self._fade = np.zeros(0, np.float32)
        """Of what was dropped: still to be heard."""
        self._n_written = self._n_taken = self._n_in_step = 0
        """Samples written, of those handed to steps, of those in the step that is being heard."""
        self._n_steps = self._n_read = 0
        self._steps: deque[np.ndarray] = deque(maxlen=_REMEMBERED)
        """What the last steps sounded, for the echo and its reference."""
        self._unsaved: list[np.ndarray] = []
        self._writer: AudioWriter | None = None
        self._faults: list[Fault] = []
        self._closed = False

    def start(self) -> None:
        """As `Sound.start`; `AudioError` where a file cannot be read or written."""
        path = self._input_path
        self._input = np.zeros(0, np.float32) if path is None else read_audio(path, RATE_HZ)
        if self._output_path is not None:
            self._writer = AudioWriter(self._output_path, RATE_HZ)
        self.start_s = self.clock.now_s()
        self._busy_s = self.start_s + len(self._input) / RATE_HZ

    def close(self) -> None:
        with self._lock:
            if self._closed:
                return
            self._advance()
            self._closed = True
            self._save()
            if self._writer is not None:
                self._attempt(self._writer.close)
        self.clock.notify()

    # The microphone.

    def read(self) -> Block | None:
        t_s = self.start_s + (self._n_read + 1) * BLOCK_S
        if self.clock.wait(lambda: self._closed, t_s):
            return None
        busy = self.hold()
        with self._lock:
            self._advance()
            if busy or len(self._gate.ring) or len(self._fade) or self._n_in_step:
                self._busy_s = max(self._busy_s, t_s)
            if t_s > self._busy_s + self._tail_s:
                return None
            block = Block(t_s, self._heard(self._n_read), self._sounded(self._n_read))
            self._n_read += 1
        self.clock.notify()
        return block

    def _heard(self, step: int) -> np.ndarray:
        pcm = self._input[step * BLOCK_SAMPLES : (step + 1) * BLOCK_SAMPLES]
        pcm = np.pad(pcm, (0, BLOCK_SAMPLES - len(pcm)))
        return pcm + np.float32(self._echo_gain) * self._sounded(step - ECHO_DELAY_BLOCKS)

    def _sounded(self, step: int) -> np.ndarray:
        place = step - (self._n_steps - len(self._steps))
        return self._steps[place] if 0 <= place < len(self._steps) else np.zeros(BLOCK_SAMPLES, np.float32)

    # The loudspeaker.

    def _advance(self) -> None:
        """Take every step that has begun by now."""
        while not self._closed and self.start_s + self._n_steps * BLOCK_S <= self.clock.now_s() + _EARLY_S:
            step = np.zeros(BLOCK_SAMPLES, np.float32)
            fade, self._fade = self._fade[:BLOCK_SAMPLES], self._fade[BLOCK_SAMPLES:]
            step[: len(fade)] = fade
            self._n_in_step = len(fade) + self._gate.take(step[len(fade) :])
            self._n_taken += self._n_in_step
            self._n_steps += 1
            self._steps.append(step)
            if self._writer is not None:
                self._unsaved.append(step)
                if len(self._unsaved) >= _SAVED_AT_ONCE:
                    self._save()

    def _save(self) -> None:
        if self._writer is not None and self._unsaved:
            pcm, self._unsaved = np.concatenate(self._unsaved), []
            self._attempt(lambda writer=self._writer: writer.write(pcm))

    def _attempt(self, work: Callable[[], None]) -> None:
        try:
            work()
        except AudioError as error:
            writer, self._writer = self._writer, None
            if writer is not None:
                with contextlib.suppress(AudioError):
                    writer.close()  # what was written stays
            self._faults.append(Fault(self.clock.now_s(), "output-file", f"{error}; it ends here, the talk goes on"))

    def write(self, pcm: np.ndarray) -> None:
        with self._lock:
            self._advance()
            check_room(len(self._gate.ring), len(pcm))
            self._n_written += self._gate.ring.put(pcm)

    @property
    def n_written(self) -> int:
        return self._n_written

    @property
    def n_played(self) -> int:
        with self._lock:
            self._advance()
            return self._n_taken - self._n_in_step

    @property
    def buffered_s(self) -> float:
        with self._lock:
            self._advance()
            return len(self._gate.ring) / RATE_HZ

    def pause(self) -> None:
        with self._lock:
            self._advance()
            self._gate.shut = True

    def resume(self) -> None:
        with self._lock:
            self._advance()
            self._gate.shut = False

    def drop(self) -> int:
        with self._lock:
            self._advance()
            self._fade = np.concatenate([self._fade, self._gate.end()])
            self._n_written = self._n_taken + len(self._fade)
            return self._n_written

    @property
    def more(self) -> bool:
        return self._gate.more

    @more.setter
    def more(self, more: bool) -> None:
        with self._lock:
            self._advance()  # what ran dry until now did so under the old promise
            self._gate.more = more

    @property
    def n_underruns(self) -> int:
        with self._lock:
            self._advance()
            return self._gate.n_underruns

    def faults(self) -> list[Fault]:
        with self._lock:
            told, self._faults = self._faults, []
            return told
