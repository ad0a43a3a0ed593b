"""The recogniser's thread: sound of the user's to words."""

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager

import numpy as np

from csm_mlx.recognize import Recognizer
from csm_mlx_app.assistant.ears import Ears
from csm_mlx_app.assistant.events import Complete, Event, Transcribe, Transcribed
from csm_mlx_app.assistant.smart_turn import SmartTurn
from csm_mlx_app.assistant.transcripts import is_echo
from csm_mlx_app.sound.clock import Clock
from csm_mlx_app.sound.device import RATE_HZ

_REST = 4.0
"""A partial transcript must not keep a final one waiting: after one, this many times its duration is left free."""


class Hearing:
    """Recognizes what it is asked for, the newest only; `run` is the body of its thread.

    speaking_text: what the assistant is saying, by which an echo is known.
    span: told of each piece of work: thread, name, beginning, end, and the turn whose reply waits for it.
    """

    def __init__(
        self,
        recognizer: Recognizer,
        ears: Ears,
        clock: Clock,
        post: Callable[[Event], None],
        *,
        speaking_text: Callable[[], str] = lambda: "",
        smart_turn: SmartTurn | None = None,
        span: Callable[[str, str, float, float, int | None], None] = lambda *_: None,
    ):
        self._recognizer, self._ears, self._clock, self._post = recognizer, ears, clock, post
        self._speaking_text, self._smart_turn, self._span = speaking_text, smart_turn, span
        self._lock = threading.Lock()
        self._asked: Transcribe | None = None
        self._is_working = False
        self._is_closed = False
        self._partial: tuple[int, int] | None = None
        self._rests_until_s = 0.0

    def submit(self, action: Transcribe) -> None:
        """From any thread; what was asked before and not begun is forgotten."""
        with self._lock:
            self._asked = action
        self._clock.notify()

    def audio(self, start_s: float, end_s: float) -> np.ndarray:
        return self._ears.audio(start_s, end_s)

    @property
    def is_busy(self) -> bool:
        """Something that was asked for is not posted yet."""
        with self._lock:
            return self._asked is not None or self._is_working

    def close(self) -> None:
        """`run` returns after what it is doing."""
        self._is_closed = True
        self._clock.notify()

    def run(self, attendance: AbstractContextManager[None] | None = None) -> None:
        """Until `close`; attendance: what `clock.attend()` gave, else it is asked here. Errors are the recogniser's."""
        with attendance or self._clock.attend():
            while True:
                self._clock.wait(lambda: self._is_closed or self._asked is not None)
                if self._is_closed:
                    return
                with self._lock:
                    action, self._asked = self._asked, None
                    self._is_working = True
                if action is not None:
                    self._transcribe(action)
                self._is_working = False

    def _transcribe(self, action: Transcribe) -> None:
        began_s = self._clock.now_s()
        which = (action.turn, action.revision)
        if not action.final and which == self._partial and began_s < self._rests_until_s:
            return
        pcm = self._ears.audio(action.start_s, action.end_s)
        if action.final and self._smart_turn is not None:
            probability = self._smart_turn.probability(pcm)
            judged_s = self._clock.now_s()
            self._span("hearing", "smart turn", began_s, judged_s, None)
            self._post(Complete(judged_s, *which, probability))
            began_s = judged_s
        text = self._recognizer.transcribe(pcm, RATE_HZ)
        ended_s = self._clock.now_s()
        if not action.final:
            self._partial, self._rests_until_s = which, ended_s + _REST * (ended_s - began_s)
        self._span("hearing", "recognition", began_s, ended_s, action.turn)
        self._post(Transcribed(ended_s, *which, text, action.final, is_echo(text, self._speaking_text())))
