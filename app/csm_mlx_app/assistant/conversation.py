"""A conversation put together: its threads, what they share, how it begins and ends."""

import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

from csm_mlx.recognize import Recognizer
from csm_mlx_app.assistant import events
from csm_mlx_app.assistant.conductor import Conductor
from csm_mlx_app.assistant.ears import Ears, Echo
from csm_mlx_app.assistant.engine import Engine
from csm_mlx_app.assistant.hearing import Hearing
from csm_mlx_app.assistant.latency import percentile
from csm_mlx_app.assistant.output import Output
from csm_mlx_app.assistant.records import Recording
from csm_mlx_app.assistant.report import Report
from csm_mlx_app.assistant.scribe import StreamHearing
from csm_mlx_app.assistant.smart_turn import SmartTurn
from csm_mlx_app.assistant.turns import TurnConfig, TurnMachine
from csm_mlx_app.assistant.worker import Worker
from csm_mlx_app.sound.device import Sound

JOIN_S = 0.7
"""How long all threads together may take to end; they are daemons, so that none can hold the program."""


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What a conversation is made of; nothing in it has started."""

    sound: Sound
    report: Report
    load: Callable[[], Engine]
    recognizer: Recognizer | None
    """What has a thread of its own; None where the user types, or where `streams`."""
    streams: bool = False
    """Whether what `load` gives recognizes the user."""
    turns: TurnConfig
    echo: Echo
    smart_turn: SmartTurn | None
    recording: Recording | None
    system: str


class Conversation:
    """Threads: ears, hearing, worker. The caller's own shows the screen, reads the keys, and asks `is_over`."""

    def __init__(self, parts: Parts):
        self._parts, self._sound, self._report = parts, parts.sound, parts.report
        output = Output(parts.sound)
        self._conductor = Conductor(TurnMachine(parts.turns), parts.sound, output, parts.report)
        self._worker = Worker(
            parts.load, self.post, parts.sound, output, parts.sound.clock, parts.report, parts.system, parts.recording
        )
        self._ears: Ears | None = None
        self._hearing: Hearing | StreamHearing | None = None
        self._threads: list[threading.Thread] = []
        self._failure: BaseException | None = None
        self._has_input_ended = False

    def start(self) -> Engine:
        """Loads everything, then opens the devices; raises what stood in the way."""
        engine = self._worker.start()
        parts = self._parts
        if parts.recognizer is not None or parts.streams:
            self._ears = Ears(self._sound, self.post, echo=parts.echo, note=self._report.note)
        if self._ears is not None and parts.recognizer is None:
            assert engine.scribe is not None
            self._hearing = StreamHearing(self._ears, self._worker.tell, engine.scribe.frame_size)
        elif self._ears is not None and parts.recognizer is not None:
            self._hearing = Hearing(
                parts.recognizer,
                self._ears,
                self._sound.clock,
                self.post,
                speaking_text=lambda: self._worker.speaking_text,
                smart_turn=parts.smart_turn,
                span=self._report.span,
            )
        self._conductor.attach(self._worker, self._hearing)
        self._sound.start()
        if self._ears is not None and self._hearing is not None:
            self._begin("ears", self._listen)
            if isinstance(self._hearing, Hearing):
                self._begin("hearing", self._hearing.run)
        return engine

    def post(self, event: events.Event) -> None:
        if self._ears is not None and isinstance(event, events.Muted | events.Talking):
            self._ears.follow(event)
        self._conductor.post(event)

    def interrupt(self) -> None:
        """By hand: the assistant falls silent and listens."""
        self.post(events.Interrupt(self.now_s()))

    def now_s(self) -> float:
        return self._sound.clock.now_s()

    @property
    def heard(self) -> str:
        """Of the reply that is being spoken, what was heard by now."""
        return self._worker.heard

    @property
    def state(self) -> events.State:
        return self._conductor.state

    @property
    def is_busy(self) -> bool:
        """Somebody still has something to do or to say."""
        return (
            self._worker.is_busy or self.state != "listening" or (self._hearing is not None and self._hearing.is_busy)
        )

    @property
    def is_over(self) -> bool:
        """The input has ended and everything was answered; raises what ended it otherwise."""
        failure = self._failure or self._worker.failure
        if failure is not None:
            raise failure
        return self._has_input_ended and not self.is_busy

    def end_input(self) -> None:
        """The user has nothing more to say."""
        self._has_input_ended = True

    def say(self, text: str) -> None:
        """A turn of the user's, typed."""
        self.post(events.Typed(self.now_s(), text))

    @property
    def level_db(self) -> float:
        """Of the microphone, for a meter."""
        return -100.0 if self._ears is None else self._ears.level_db

    def check_devices(self) -> None:
        """Tells what happened to them; an answer whose loudspeaker goes ends with what was heard of it."""
        for fault in self._sound.faults():
            self._report.emit("fault", kind=fault.kind, message=fault.message, t_s=fault.t_s)
            if fault.kind == "output-gone" and self.state == "speaking":
                self.interrupt()

    def summary(self) -> dict[str, object]:
        """Of all turns: how many, and how long the user waited."""
        waits = self._report.waits_s
        told: dict[str, object] = {"turns": self._report.n_turns, "underruns": self._sound.n_underruns}
        if waits:
            told |= {f"voice_to_voice_p{p}_ms": round(1000 * percentile(waits, p / 100)) for p in (50, 95)}
        return told

    def close(self) -> None:
        """Falls silent and ends all threads, within a second: one that is inside a model may end later."""
        self._sound.close()
        self._worker.close()
        if self._hearing is not None:
            self._hearing.close()
        until_s = time.monotonic() + JOIN_S
        for thread in (self._worker.thread, *self._threads):
            if thread.ident is not None:
                thread.join(max(0.0, until_s - time.monotonic()))

    def _listen(self, attendance: AbstractContextManager[None]) -> None:
        assert self._ears is not None
        self._ears.run(attendance)
        self.end_input()

    def _begin(self, name: str, body: Callable[[AbstractContextManager[None]], None]) -> None:
        attendance = self._sound.clock.attend()

        def run() -> None:
            try:
                body(attendance)
            except BaseException as error:
                self._failure = error

        thread = threading.Thread(target=run, name=name, daemon=True)
        self._threads.append(thread)
        thread.start()
