"""Whose turn it is: a pure machine over timed events. No clock, no thread, no device: it is tested as a table."""

from collections.abc import Callable
from dataclasses import dataclass, field

from csm_mlx_app.assistant import events
from csm_mlx_app.assistant.transcripts import interrupts, is_empty, is_invented
from csm_mlx_app.assistant.turn import Reply, Turn, TurnTimes
from csm_mlx_app.assistant.turn_config import TurnConfig
from csm_mlx_app.assistant.voice import WINDOW_S, Utterance, Voice

_ROUNDING_S = 1e-6
_TIMES_KEPT = 16


@dataclass
class TurnMachine:
    """`step(event)` for each event in order of arrival; its actions are to be done in order.

    Numbers of turns rise by one; a number that came to nothing is used again with a higher revision, so that a late
    answer to the one is never taken for the other.
    """

    config: TurnConfig
    state: events.State = "listening"
    _voice: Voice = field(default_factory=Voice)
    _actions: list[events.Action] = field(default_factory=list)
    _times: dict[int, TurnTimes] = field(default_factory=dict)
    _number: int = 0
    _revision: int = 0
    _user: Turn | None = None
    """Who speaks, or has spoken and is not answered: over a reply, perhaps only a cough."""
    _reply: Reply | None = None
    _is_paused: bool = False
    _resumed: tuple[Turn, float] | None = None
    """What the reply was last paused for in vain, and until when it may still count."""
    _is_muted: bool = False
    _deaf_until_s: float | None = None
    """After a turn of the greatest length: so long must there be silence before the next."""
    _first_sound_s: float | None = None
    _answered_s: float = 0.0
    """The end of the last turn that was answered: no later one reaches back before it."""

    def step(self, event: events.Event) -> list[events.Action]:
        self._actions = []
        handlers: dict[type, Callable] = {
            events.Window: self._on_window,
            events.Transcribed: self._on_transcribed,
            events.Complete: self._on_complete,
            events.Finished: self._on_finished,
            events.ReplyStarted: self._on_reply_started,
            events.ReplyEnded: self._on_reply_over,
            events.ReplyFailed: self._on_reply_over,
            events.Interrupt: self._on_interrupt,
            events.Muted: self._on_muted,
            events.Talking: self._on_talking,
            events.Typed: self._on_typed,
            events.InputEnded: self._hear_no_more,
        }
        handlers[type(event)](event)
        if (state := self._present_state()) != self.state:
            self.state = state
            self._do(events.Show(state))
        return self._actions

    def times(self, turn: int) -> TurnTimes:
        """Of one of the last turns that were opened; `KeyError` for others."""
        return self._times[turn]

    def _do(self, *actions: events.Action) -> None:
        self._actions.extend(actions)

    def _present_state(self) -> events.State:
        if self._is_paused:
            return "interrupted"
        if self._reply is not None:
            return "speaking" if self._reply.is_heard else "thinking"
        return "thinking" if self._user is not None and self._user.decided_s is not None else "listening"

    # Windows of the microphone.

    def _on_window(self, window: events.Window) -> None:
        user = self._user
        if self._is_muted and not (user is not None and user.by_key):
            return
        voiced = self._voice.hear(window)
        if self._deaf_until_s is not None:
            if voiced:
                self._deaf_until_s = window.t_s + self.config.resume_s
            elif window.t_s >= self._deaf_until_s:
                self._deaf_until_s = None
            return
        if self._reply is not None and self._reply.is_heard and not self._is_paused:
            voiced = voiced and self._voice.is_loud(window.level_db, self.config)
        if user is None:
            if not voiced:
                return
            user = self._user = self._new_turn(window.t_s - WINDOW_S)
        user.speech.hear(window, voiced, self._voice.background_db)
        if self._reply is None:
            self._listen(user, window.t_s, voiced)
        elif self._reply.is_heard:
            self._overhear(user, self._reply, window.t_s, voiced)
        else:
            self._await(user, self._reply, window.t_s, voiced)

    def _new_turn(self, start_s: float) -> Turn:
        audio_start_s = max(start_s - self.config.preroll_s, self._answered_s, 0.0)
        return Turn(self._number, self._revision, Utterance(start_s, start_s), audio_start_s, partial_s=start_s)

    def _listen(self, user: Turn, t_s: float, voiced: bool) -> None:
        """Nothing is being answered: the user speaks, or pauses, or has finished and is being recognized."""
        if self._is_full(user, t_s):
            user.by_key = False
            self._finish(user, t_s)
            self._deaf_until_s = t_s + self.config.resume_s
            return
        if not voiced:
            if user.by_key or user.decided_s is not None:
                return
            if _less(user.speech.voiced_s, self.config.start_s):
                self._user = None
            else:
                self._fall_silent(user, t_s)
            return
        if user.is_asked and not _less(user.speech.run_s, self.config.start_s):
            self._go_on(user)
        elif not user.is_asked:
            user.silence_s = None
        self._announce(user)
        if not user.is_asked and not _less(t_s - user.partial_s, self.config.partial_s):
            self._ask(user, t_s, final=False)

    def _is_full(self, turn: Turn, t_s: float) -> bool:
        return not _less(t_s - turn.audio_start_s, self.config.longest_s)

    def _announce(self, user: Turn) -> None:
        if not user.is_announced and (user.by_key or not _less(user.speech.voiced_s, self.config.minimum_s)):
            user.is_announced = True
            self._do(events.SpeechStarted(user.number, user.speech.start_s))

    def _fall_silent(self, user: Turn, t_s: float) -> None:
        silence_s = t_s - user.speech.end_s
        is_over = not _less(silence_s, user.silence_s or self.config.commit_s)
        if _less(user.speech.voiced_s, self.config.minimum_s):
            if is_over:
                self._dissolve(user)
            return
        if not user.is_asked and not _less(silence_s, self.config.speculate_s):
            self._ask(user, t_s, final=True)
        if is_over:
            self._decide(user, t_s)

    def _ask(self, user: Turn, t_s: float, *, final: bool) -> None:
        user.is_asked, user.partial_s = final, t_s
        self._do(events.Transcribe(user.number, user.revision, user.audio_start_s, t_s, final))

    def _decide(self, user: Turn, t_s: float) -> None:
        """The turn is over; it is answered as soon as its words are known."""
        user.decided_s = t_s
        self._do(events.SpeechEnded(user.number, user.speech.end_s))
        self._settle(user, t_s)

    def _settle(self, user: Turn, t_s: float) -> None:
        if user.text is not None and not user.is_refused and not user.is_begun:
            user.is_begun = True
            self._do(events.Begin(user.number, user.revision, user.text))
        if user.text is None or user.decided_s is None:
            return
        if user.is_refused:
            self._dissolve(user)
            return
        self._do(events.Open(user.number, user.revision))
        speech = user.speech
        if speech.voiced_s:
            self._voice.learn_user(speech.level_db)
        self._times[user.number] = TurnTimes(
            user.revision, speech.start_s, speech.end_s, user.decided_s, user.transcript_s
        )
        self._times.pop(user.number - _TIMES_KEPT, None)
        self._answered_s = speech.end_s
        self._reply, self._user = Reply(user, t_s), None
        self._number, self._revision = user.number + 1, 0

    def _finish(self, user: Turn, t_s: float) -> None:
        """The user's turn ends now, however short the silence was."""
        length_s = t_s - user.audio_start_s if user.by_key else user.speech.voiced_s
        if _less(length_s, self.config.minimum_s):
            self._dissolve(user)
            return
        if not user.is_asked:
            self._ask(user, t_s, final=True)
        if user.decided_s is None:
            self._decide(user, t_s)

    def _go_on(self, user: Turn) -> None:
        """What was taken for the end was a pause."""
        if user.is_begun:
            self._do(events.Drop(user.number, user.revision))
        if user.decided_s is not None:
            user.is_announced = False
        user.go_on()

    def _dissolve(self, user: Turn) -> None:
        """There was nothing, or it is not to be answered."""
        if user.is_begun:
            self._do(events.Drop(user.number, user.revision))
        self._revision = max(self._revision, user.revision + 1)
        self._user = None

    # The user over a reply.

    def _await(self, user: Turn, reply: Reply, t_s: float, voiced: bool) -> None:
        """The reply is not heard yet: whoever speaks now goes on with the turn."""
        if not voiced and not _less(user.speech.pause_s, self.config.start_s):
            self._user = None
        elif voiced and not _less(user.speech.voiced_s, self.config.minimum_s):
            self._claim(reply, t_s)
            self._announce(self._user or user)

    def _claim(self, reply: Reply, t_s: float) -> None:
        """The floor is the user's: with the same turn where nothing of the reply was heard, and else a new one."""
        turn, more = reply.turn, self._user
        is_late = t_s - reply.opened_s > self.config.reopen_s
        if reply.is_heard or turn.is_typed or is_late or self._is_full(turn, t_s):
            self._stop(reply)
            return
        self._reply = None
        self._go_on(turn)
        if more is not None:
            turn.speech.absorb(more.speech)
        turn.partial_s = t_s
        self._user, self._number, self._revision = turn, turn.number, turn.revision

    def _overhear(self, user: Turn, reply: Reply, t_s: float, voiced: bool) -> None:
        """The reply is heard: a voice over it pauses it, and then either stops it or was a cough."""
        config, speech = self.config, user.speech
        if not self._is_paused:
            is_new = self._first_sound_s is not None and t_s - self._first_sound_s < config.warm_up_s
            if not voiced:
                if not _less(speech.pause_s, config.start_s):
                    self._user = None
                return
            if _less(speech.voiced_s, config.certain_s if config.echo_rules and is_new else config.sustained_s):
                return
            self._is_paused = True
            self._do(events.Pause())
            self._ask(user, t_s, final=False)
        silence_s = t_s - speech.end_s
        if voiced:
            certain_s = config.certain_s
            if config.echo_rules and _less(speech.fresh_s, config.fresh_s):
                certain_s = config.patience_s
            if not _less(speech.voiced_s, certain_s):
                self._stop(reply)
                self._announce(user)
        elif not _less(silence_s, config.resume_s):
            self._resume(user, t_s)
        elif user.partial_s < speech.end_s and not _less(silence_s, config.speculate_s):
            self._ask(user, t_s, final=False)

    def _stop(self, reply: Reply) -> None:
        self._do(events.Stop(reply.turn.number))
        self._reply, self._resumed, self._is_paused = None, None, False

    def _resume(self, user: Turn, t_s: float) -> None:
        self._do(events.Resume())
        self._is_paused = False
        self._dissolve(user)
        self._resumed = (user, t_s + self.config.late_s)

    def _on_words_over_reply(self, event: events.Transcribed, reply: Reply) -> None:
        """What somebody said over the reply tells whether it is to stop; perhaps only after it has gone on."""
        user = self._user if self._is_paused else None
        if user is None and self._resumed is not None and self._user is None and event.t_s <= self._resumed[1]:
            user = self._resumed[0]
        if user is None or not _answers(event, user):
            return
        if event.echo and self.config.echo_rules:
            self._voice.learn_echo(user.speech.level_db)
            if self._is_paused:
                self._resume(user, event.t_s)
            self._resumed = None
        elif interrupts(event.text):
            self._stop(reply)
            user.revision = self._revision
            self._user = user
            self._announce(user)

    # Everything else.

    def _on_transcribed(self, event: events.Transcribed) -> None:
        if self._reply is not None:
            self._on_words_over_reply(event, self._reply)
            return
        user = self._user
        if user is None or not event.final or not user.is_asked or user.text is not None or not _answers(event, user):
            return
        is_noise = is_invented(event.text) and _less(user.speech.voiced_s, self.config.invented_s)
        is_echo = event.echo and self.config.echo_rules
        user.text, user.transcript_s = event.text.strip(), event.t_s
        user.is_refused = is_empty(event.text) or is_noise or is_echo
        self._settle(user, event.t_s)

    def _on_complete(self, event: events.Complete) -> None:
        user = self._user
        if user is None or self._reply is not None or not _answers(event, user) or user.decided_s is not None:
            return
        if event.probability >= 0.5:
            self._expect_end(user, event.t_s)
        else:
            user.silence_s = self.config.incomplete_s

    def _on_finished(self, event: events.Finished) -> None:
        user = self._user
        if user is None or self._reply is not None or user.decided_s is not None or user.by_key:
            return
        if user.speech.pause_s:  # else it comes late, or in the middle of a word
            self._expect_end(user, event.t_s)

    def _expect_end(self, user: Turn, t_s: float) -> None:
        """A short silence is enough, from now on or from before now."""
        user.silence_s = min(self.config.complete_s, self.config.commit_s)
        if user.speech.pause_s:
            self._fall_silent(user, t_s)

    def _on_reply_started(self, event: events.ReplyStarted) -> None:
        if self._reply is not None and self._reply.turn.number == event.turn:
            self._reply.is_heard = True
            if self._first_sound_s is None:
                self._first_sound_s = event.t_s

    def _on_reply_over(self, event: events.ReplyEnded | events.ReplyFailed) -> None:
        if self._reply is not None and self._reply.turn.number == event.turn:
            self._reply, self._resumed = None, None
            if self._is_paused:  # its last sample was on its way already
                self._is_paused = False
                self._do(events.Resume())
        elif (
            isinstance(event, events.ReplyFailed)
            and (user := self._user)
            and user.is_begun
            and user.number == event.turn
        ):
            self._dissolve(user)

    def _on_interrupt(self, _: events.Interrupt) -> None:
        if self._reply is not None:
            self._stop(self._reply)
        elif self._user is not None:
            self._dissolve(self._user)

    def _on_muted(self, event: events.Muted) -> None:
        if event.on and not self._is_muted and not (self._user is not None and self._user.by_key):
            self._hear_no_more(event)
        self._is_muted = event.on
        self._deaf_until_s = None

    def _hear_no_more(self, event: events.InputEnded | events.Muted) -> None:
        user = self._user
        if user is None:
            return
        if self._is_paused:
            self._resume(user, event.t_s)
            self._resumed = None
        elif self._reply is not None:
            self._user = None
        else:
            self._finish(user, event.t_s)

    def _on_talking(self, event: events.Talking) -> None:
        user = self._user
        if not event.on:
            if user is not None and user.by_key and user.decided_s is None:
                if not user.speech.voiced_s:
                    user.speech.end_s = event.t_s
                self._finish(user, event.t_s)
                user.by_key = False
            return
        if user is not None and user.by_key:
            return
        if self._reply is not None:
            self._claim(self._reply, event.t_s)
        elif user is not None and self._is_full(user, event.t_s):
            self._dissolve(user)
        elif user is not None and user.is_asked:
            self._go_on(user)
        if self._user is None:
            self._user = self._new_turn(event.t_s)
        self._user.by_key = True
        self._deaf_until_s = None
        self._announce(self._user)

    def _on_typed(self, event: events.Typed) -> None:
        if is_empty(event.text):
            return
        if self._reply is not None:
            self._stop(self._reply)
        if self._user is not None:
            self._dissolve(self._user)
        user = self._user = self._new_turn(event.t_s)
        user.is_typed, user.text = True, event.text.strip()
        user.transcript_s = user.decided_s = event.t_s
        self._settle(user, event.t_s)


def _answers(event: events.Transcribed | events.Complete, turn: Turn) -> bool:
    return (event.turn, event.revision) == (turn.number, turn.revision)


def _less(a_s: float, b_s: float) -> bool:
    """a < b, but for rounding."""
    return a_s < b_s - _ROUNDING_S
