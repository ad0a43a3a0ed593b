"""The one thread that owns MLX. It interleaves the language model's tokens and CSM's frames, by deadline."""

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

import csm_mlx
from csm_mlx.errors import ContextError, CsmError
from csm_mlx_app.assistant import events
from csm_mlx_app.assistant.clauses import Clause
from csm_mlx_app.assistant.endings import Endings
from csm_mlx_app.assistant.engine import Engine
from csm_mlx_app.assistant.job import History, Job, SpokenClause
from csm_mlx_app.assistant.output import Output
from csm_mlx_app.assistant.records import Recording
from csm_mlx_app.assistant.report import Report
from csm_mlx_app.assistant.scribe import Desk, Heard
from csm_mlx_app.sound.clock import Clock
from csm_mlx_app.sound.device import RATE_HZ, Sound

HEARD_AT_ONCE = 2
"""Frames of the microphone's sound that are recognized before something else has its turn."""
HEARD_KEPT = 125
"""Frames that may wait for it, 10 s; what is older is given up."""
LOW_S = 0.3
"""With less sound than this waiting to be played when a token is done, frames come before tokens."""
FORGOTTEN = 0.95
"""Of how long a token may take is remembered at the next."""
AHEAD_S = 4.0
"""With more than this, speech rests: what is never heard was made for nothing."""
POLL_S = 0.02
ROOM_S = 20.0
"""After a turn, in idle time, room is made for so much more of conversation."""


@dataclass(frozen=True)
class Encode:
    """The user's turn may be over: its sound to codes, while its words are being recognized."""

    turn: int
    revision: int
    pcm: np.ndarray


@dataclass(frozen=True)
class Ready:
    """The words are known: answer them, in this generation of the output."""

    begin: events.Begin
    generation: int


@dataclass(frozen=True)
class Stopped:
    """The user interrupted; `n_played` samples of all that was written had been heard."""

    turn: int
    n_played: int
    t_s: float


class Worker:
    """Other threads `tell` it what to do; what became stale it finds out by the output's generation."""

    def __init__(
        self,
        load: Callable[[], Engine],
        post: Callable[[events.Event], None],
        sound: Sound,
        output: Output,
        clock: Clock,
        report: Report,
        system: str,
        recording: Recording | None = None,
    ):
        self._load, self._post = load, post
        self._sound, self._output, self._clock, self._report = sound, output, clock, report
        self._mail: deque[object] = deque()
        self._sound_mail: deque[Heard | events.Transcribe] = deque()
        """What is to be recognized here, in its order: it may wait, and what ends or begins something may not."""
        self._nudged = False
        self._closing = False
        self._history, self._recording = History(system), recording
        self._job: Job | None = None
        self._encoded: tuple[int, int, np.ndarray] | None = None
        self._real_time_factor = 0.5
        """Of the last utterances: how much sound must wait before the first is let out."""
        self._token_s = 0.0
        """How long a token may take, by the longest of late."""
        self._tidy = True
        self._desk: Desk | None = None
        self._ready = threading.Event()
        self.failure: BaseException | None = None
        self.thread = threading.Thread(target=self._run, name="worker", daemon=True)

    # What other threads call.

    def start(self) -> Engine:
        """Loads, warms up, and returns when it can work; raises what loading raised."""
        self.thread.start()
        while not self._ready.wait(0.1):  # in pieces, so that Ctrl-C gets through
            pass
        if self.failure is not None:
            raise self.failure
        return self._engine

    def tell(self, message: object) -> None:
        if isinstance(message, Heard | events.Transcribe):
            self._sound_mail.append(message)
        else:
            self._mail.append(message)
        self._clock.notify()

    def nudge(self) -> None:
        """The language model that works elsewhere has written something."""
        self._nudged = True
        self._clock.notify()

    @property
    def is_busy(self) -> bool:
        return self._job is not None or bool(self._mail or self._sound_mail)

    @property
    def speaking_text(self) -> str:
        """What is being said now, which the microphone may hear."""
        job = self._job
        return "" if job is None or job.base is None else job.written

    @property
    def heard(self) -> str:
        """Of the reply that is being spoken, what was heard by now."""
        job = self._job
        return "" if job is None else job.heard(self._sound.n_played).text

    def close(self) -> None:
        """Ends at the next token or frame."""
        self._closing = True
        self._clock.notify()
        job = self._job
        if job is not None and not self._engine.replier.computes:
            job.reply.cancel()  # here too: the thread may be inside MLX for longer than anybody waits

    # The thread.

    def _run(self) -> None:
        try:
            self._engine = self._load()
            if (scribe := self._engine.scribe) is not None:
                self._desk = Desk(scribe, self._post, self._clock, self._report, lambda: self.speaking_text)
            self._endings = Endings(self._engine, self._history, self._sound, self._report, self._recording)
        except BaseException as error:
            self.failure = error
            mx.clear_streams()
            self._ready.set()
            return
        try:
            with self._clock.attend():
                self._ready.set()  # only now: the clock is not to run on without this thread
                while not self._closing:
                    self._step()
                if self._job is not None:
                    self._job.close()
        except BaseException as error:  # told by the main thread, which asks for it
            self.failure = error
            self._clock.notify()
        finally:
            mx.clear_streams()  # theirs are C++ threads: one that is left when the process ends aborts it

    def _step(self) -> None:
        while self._mail:
            self._handle(self._mail[0])
            self._mail.popleft()  # only now: until then somebody has something to do
        while len(self._sound_mail) > HEARD_KEPT and isinstance(self._sound_mail[0], Heard):
            self._sound_mail.popleft()  # `Desk` has told that it is late
        for _ in range(min(HEARD_AT_ONCE, len(self._sound_mail))):
            self._handle(self._sound_mail[0])
            self._sound_mail.popleft()
        unit = self._next_unit()
        if unit is not None:
            unit()
        if unit is not None or self._sound_mail:
            return
        # With a job at hand, time passes in sound that is played: look again soon.
        until_s = None if self._job is None else self._clock.now_s() + POLL_S
        self._clock.wait(lambda: self._closing or self._nudged or bool(self._mail or self._sound_mail), until_s)

    def _next_unit(self) -> Callable[[], None] | None:
        job = self._job
        if job is None or job.finished:
            self._nudged = False  # by a reply that is over: nothing to wake up for
        if job is None:
            return self._make_tidy if self._tidy else None
        if job.generation != self._output.generation:
            return None  # stale: what ended it is about to come by mail
        self._watch_playback(job)
        if self._job is None:
            return self._make_tidy
        ahead_s = self._ahead_s(job)
        if job.speaks and ahead_s < min(LOW_S + self._token_s, AHEAD_S):
            return self._speak
        if not job.finished and (self._engine.replier.computes or self._nudged):
            return self._think
        if job.speaks and ahead_s < AHEAD_S:
            return self._speak
        return None

    def _handle(self, message: object) -> None:
        job = self._job
        match message:
            case Heard() | events.Transcribe():
                assert self._desk is not None
                if isinstance(message, events.Transcribe) and message.final:
                    codes = self._desk.scribe.codes(message.start_s, message.end_s)
                    self._encoded = None if codes is None else (message.turn, message.revision, codes)
                self._desk.handle(message)
            case Encode(turn, revision, pcm):
                if len(pcm):
                    if self._desk is None or not self._desk.scribe.shares_codec:
                        with self._span("encode", turn):
                            self._encoded = (turn, revision, self._engine.csm.encode(pcm))
                    if self._recording is not None:
                        self._recording.keep(turn, "user", pcm)
            case Ready(begin, generation):
                if job is not None:  # its end was not noticed yet
                    self._finish(job)
                if generation == self._output.generation:
                    self._begin(begin, generation)
            case events.Open(turn=turn, revision=revision):
                if job is not None and (job.turn, job.revision) == (turn, revision):
                    job.is_open = True
                    self._report.emit("transcript", turn=turn, text=job.text)
                    self._tell_clauses(job)
                    self._let_out(job)
            case events.Drop(turn=turn):
                if job is not None and job.turn == turn:
                    self._forget(job)
                    self._endings.dropped(job)
            case Stopped(turn, n_played, t_s):
                if job is not None and job.turn == turn:
                    self._forget(job)
                    self._endings.interrupted(job, n_played, t_s)
            case _:
                raise TypeError(f"the worker cannot read {message!r}")

    # Units of work, each no longer than a token, a frame, or a prefill of what is new.

    def _begin(self, begin: events.Begin, generation: int) -> None:
        session, replier = self._engine.session, self._engine.replier
        before = session.snapshot()
        reply = replier.reply(self._history.with_user(begin.text), self.nudge)
        job = Job(begin.turn, begin.revision, begin.text, generation, before, reply, self._clock.now_s())
        if not replier.computes:
            job.away = self._clock.attend()
        self._job = job
        codes = None
        if self._encoded is not None and self._encoded[:2] == (begin.turn, begin.revision):
            codes = self._encoded[2]
        with self._span("user's turn", begin.turn):
            try:
                session.add(csm_mlx.Turn(speaker=self._engine.user, text=begin.text, codes=codes))
            except ContextError as error:
                self._report.note(
                    f"what you said is too long for the speech model's context, which goes without: {error}"
                )

    def _think(self) -> None:
        job = self._job
        assert job is not None
        self._nudged = False
        started_s = self._clock.now_s()
        try:
            piece = job.reply.step()
        except CsmError as error:
            self._report.emit("error", message=str(error), turn=job.turn)
            job.error, piece = str(error), None
        now_s = self._clock.now_s()
        times = self._report.turn(job.turn)
        if self._engine.replier.computes:
            self._token_s = max(now_s - started_s, FORGOTTEN * self._token_s)
            self._report.span("worker", "language_model", started_s, now_s, job.turn)
        if piece:
            if times.mark("first_token", now_s) and not self._engine.replier.computes:
                self._report.span("language model", "language_model", job.asked_s, now_s, job.turn)
            job.written += piece
            self._queue(job, job.clauses.feed(piece))
            self._nudged = not self._engine.replier.computes  # there may be more
        elif piece is None:
            job.finished = True
            job.come_back()
            self._queue(job, job.clauses.finish())
            if job.error is not None and not job.speaks and not job.spoken:
                self._fail(job)

    def _speak(self) -> None:
        job, session = self._job, self._engine.session
        assert job is not None
        if job.speech is None:
            clause = job.waiting.popleft()
            job.forget_before(self._sound.n_played)
            job.spoken.append(SpokenClause(clause, session.snapshot()))
            job.ledger.add(clause)
            if not clause.spoken:  # markup, an emoji: seen, not heard
                job.ledger.close()
                self._let_out(job)
                return
            job.speech = session.speak(clause.spoken, self._engine.speaker)
            job.untold.append(clause.text.strip())
            self._tell_clauses(job)
        started_s = self._clock.now_s()
        try:
            pcm = next(job.speech, None)
        except CsmError as error:  # one clause lost, not the conversation
            self._report.note(f"could not say {job.spoken[-1].clause.spoken!r:.60}: {error}")
            pcm = None
        now_s = self._clock.now_s()
        self._report.span("worker", "synthesis", started_s, now_s, job.turn)
        if pcm is None:
            self._end_clause(job)
        else:
            times = self._report.turn(job.turn)
            times.mark("first_frame", now_s)
            times.sound_s += len(pcm) / RATE_HZ
            job.ledger.grow(len(pcm))
            job.held.append(pcm)
            if self._recording is not None:
                job.sound.append(pcm)
        self._let_out(job)

    def _tell_clauses(self, job: Job) -> None:
        while job.is_open and job.untold:
            self._report.emit("clause", turn=job.turn, text=job.untold.pop(0))

    def _end_clause(self, job: Job) -> None:
        assert job.speech is not None
        factor = job.speech.stats.real_time_factor
        if factor is not None:
            self._real_time_factor = 0.5 * (self._real_time_factor + factor)
        job.spoken[-1].codes = job.speech.codes
        job.speech = None
        job.ledger.close()

    def _queue(self, job: Job, clauses: list[Clause]) -> None:
        if clauses:
            self._report.turn(job.turn).mark("first_clause", self._clock.now_s())
        job.waiting.extend(clauses)

    def _make_tidy(self) -> None:
        """Between turns: what must be forgotten soon is forgotten now, and MLX gives back what it hoards."""
        started_s = self._clock.now_s()
        frame_rate_hz = RATE_HZ / self._engine.csm.frame_size
        self._engine.session.make_room(round(ROOM_S * frame_rate_hz))
        mx.clear_cache()
        self._tidy = False
        self._report.span("worker", "make room", started_s, self._clock.now_s())

    # Sound on its way out.

    def _ahead_s(self, job: Job) -> float:
        return job.n_held / RATE_HZ + (0.0 if job.base is None else self._sound.buffered_s)

    def _let_out(self, job: Job) -> None:
        """Hands the held sound to the loudspeaker, once there is enough of it to go on without a gap."""
        enough = job.base is not None or job.n_held >= self._start_samples() or job.is_made
        if not (job.is_open and job.held and enough):
            self._sound.more = job.base is not None and job.speaks
            return
        pcm = np.concatenate(job.held)
        base = self._sound.n_written if job.base is None else job.base
        if self._output.write(job.generation, pcm):
            job.base, job.held = base, []
            self._sound.more = job.speaks

    def _start_samples(self) -> int:
        """One frame where making is fast; more where it is near real time, so that a sentence has no gap."""
        frames = 1 if self._real_time_factor < 0.6 else 2 if self._real_time_factor < 0.8 else 4
        return frames * self._engine.csm.frame_size

    def _watch_playback(self, job: Job) -> None:
        if job.base is None:
            if job.is_made and job.is_open and not job.held:  # nothing in it could be spoken
                self._finish(job)
            return
        n_heard = self._sound.n_played - job.base
        if n_heard > 0 and not job.began:
            job.began = True
            first_s = self._clock.now_s() - n_heard / RATE_HZ
            self._report.turn(job.turn).mark("first_sample", first_s)
            self._post(events.ReplyStarted(first_s, job.turn))
        if job.is_made and not job.held and self._sound.buffered_s <= 0:
            self._finish(job)

    # Ends.

    def _finish(self, job: Job) -> None:
        """All of it was heard."""
        self._forget(job)
        self._endings.finished(job)
        self._post(events.ReplyEnded(self._clock.now_s(), job.turn))

    def _fail(self, job: Job) -> None:
        """The language model gave nothing at all."""
        self._forget(job)
        self._endings.failed(job)
        self._post(events.ReplyFailed(self._clock.now_s(), job.turn))

    def _forget(self, job: Job) -> None:
        job.close()
        self._job, self._tidy, self._sound.more = None, True, False

    @contextmanager
    def _span(self, name: str, turn: int) -> Iterator[None]:
        """Work on the sound of a turn, which its reply waits for."""
        started_s = self._clock.now_s()
        yield
        self._report.span("worker", name, started_s, self._clock.now_s(), turn)
