"""Events in, actions out, in one order: between the turn machine and the threads that do what it says."""

import threading
from typing import Protocol

import numpy as np

from csm_mlx_app.assistant import events
from csm_mlx_app.assistant.output import Output
from csm_mlx_app.assistant.report import Report
from csm_mlx_app.assistant.turns import TurnMachine
from csm_mlx_app.assistant.worker import Encode, Ready, Stopped
from csm_mlx_app.sound.device import Sound


class Listener(Protocol):
    """Who hears the user: `ears` and `hearing`, or nobody where the user types."""

    def submit(self, action: events.Transcribe) -> None:
        """Recognize this; the answer is posted."""
        ...

    def audio(self, start_s: float, end_s: float) -> np.ndarray:
        """What the microphone heard between two times, (n_samples,) at 24 kHz."""
        ...


class Mailbox(Protocol):
    """The worker."""

    def tell(self, message: object) -> None: ...


class Conductor:
    """Any thread posts events. What must happen at once (silence) happens in the thread that posts."""

    def __init__(self, machine: TurnMachine, sound: Sound, output: Output, report: Report):
        self._machine, self._sound, self._output, self._report = machine, sound, output, report
        self._lock = threading.RLock()
        self.state: events.State = "listening"

    def attach(self, worker: Mailbox, listener: Listener | None) -> None:
        """Before the first event."""
        self._worker, self._listener = worker, listener

    def post(self, event: events.Event) -> None:
        with self._lock:
            if isinstance(event, events.Transcribed) and event.text and not event.final:
                self._report.emit("partial", turn=event.turn, text=event.text)
            for action in self._machine.step(event):
                self._do(action, event.t_s)

    def _do(self, action: events.Action, t_s: float) -> None:
        times = self._report.turn
        match action:
            case events.Transcribe(turn=turn, revision=revision, start_s=start_s, end_s=end_s, final=final):
                assert self._listener is not None
                self._listener.submit(action)
                if final:
                    self._worker.tell(Encode(turn, revision, self._listener.audio(start_s, end_s)))
            case events.Begin():
                self._worker.tell(Ready(action, self._output.generation))
            case events.Open(turn=turn):
                done = self._machine.times(turn)
                times(turn).mark("decided", done.decided_s)
                times(turn).mark("transcript", done.transcript_s)
                self._worker.tell(action)
            case events.Drop():
                self._output.cancel()
                self._worker.tell(action)
            case events.Pause():
                self._sound.pause()
            case events.Resume():
                self._sound.resume()
            case events.Stop(turn=turn):
                self._worker.tell(Stopped(turn, self._output.cancel(), t_s))
            case events.SpeechStarted(turn=turn, t_s=since_s):
                self._report.emit("speech_start", turn=turn, t_s=since_s)
            case events.SpeechEnded(turn=turn, t_s=until_s):
                times(turn).speech_end_s = until_s
                self._report.emit("speech_end", turn=turn, t_s=until_s)
            case events.Show(state=state):
                self.state = state
                # `interrupted` is the event of a reply that was; now it may go on.
                self._report.emit("paused" if state == "interrupted" else state)
