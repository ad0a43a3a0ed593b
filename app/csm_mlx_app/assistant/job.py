"""One reply on its way from the user's words to what was heard: data, and the arithmetic on it."""

from collections import deque
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import numpy as np

from csm_mlx.generate.session import Snapshot
from csm_mlx.generate.speech import Speech
from csm_mlx_app.assistant.clauses import Clause, Clauses
from csm_mlx_app.assistant.heard import Heard, Ledger
from csm_mlx_app.assistant.replies import Message, Reply


@dataclass
class SpokenClause:
    """A clause that CSM spoke, or is speaking."""

    clause: Clause
    before: Snapshot | None
    """The session as it was before it; None once all of it was heard, since each is a copy of the cache."""
    codes: np.ndarray | None = None
    """(n_frames, n_codebooks), once all of it was made."""


@dataclass
class Job:
    """A reply. Nothing of it is heard before `is_open`, when the user's turn is known to be over."""

    turn: int
    revision: int
    text: str
    """What the user said."""
    generation: int
    before: Snapshot
    """CSM's session as it was before the user's turn."""
    reply: Reply
    asked_s: float
    """When the language model was asked."""
    away: AbstractContextManager[None] | None = None
    """Holds a simulated clock to real time while the language model works elsewhere."""
    is_open: bool = False
    clauses: Clauses = field(default_factory=Clauses)
    ledger: Ledger = field(default_factory=Ledger)
    written: str = ""
    """The reply so far, as the language model wrote it."""
    finished: bool = False
    """The language model has nothing more to say."""
    waiting: deque[Clause] = field(default_factory=deque)
    spoken: list[SpokenClause] = field(default_factory=list)
    untold: list[str] = field(default_factory=list)
    """Clauses that nobody is told of before the turn is known to be over."""
    speech: Speech | None = None
    held: list[np.ndarray] = field(default_factory=list)
    """Sound that waits for the gate, or for enough to begin with."""
    sound: list[np.ndarray] = field(default_factory=list)
    """All of it, where it is recorded."""
    base: int | None = None
    """Where its first sample is among all that were written to the loudspeaker."""
    began: bool = False
    """Its first sample was heard."""
    error: str | None = None

    @property
    def speaks(self) -> bool:
        """There is something to make sound of now."""
        return self.speech is not None or bool(self.waiting)

    @property
    def is_made(self) -> bool:
        return self.finished and not self.speaks

    @property
    def n_held(self) -> int:
        return sum(map(len, self.held))

    def heard(self, n_played: int) -> Heard:
        """What the user heard of it when `n_played` samples had been played since the start of the conversation."""
        return self.ledger.heard(0 if self.base is None else max(0, n_played - self.base))

    @property
    def n_samples(self) -> int:
        """Of all sound that was made of it."""
        return self.ledger.n_samples

    def forget_before(self, n_played: int) -> None:
        """Lets go of the snapshots that no interruption can ask for any more."""
        for spoken in self.spoken[: max(0, self.heard(n_played).clause - 1)]:  # one more: devices err about latency
            spoken.before = None

    def come_back(self) -> None:
        """The language model is done."""
        if self.away is not None:
            away, self.away = self.away, None
            with away:
                pass

    def close(self) -> None:
        """Ends what is going on; the session is rewound by whoever knows to where."""
        self.reply.cancel()
        self.come_back()
        if self.speech is not None:
            self.speech.close()
            self.spoken[-1].codes = self.speech.codes
            self.speech = None


class History:
    """What the language model is told: whole exchanges, of the replies just what was heard."""

    def __init__(self, system: str):
        self._messages: list[Message] = [{"role": "system", "content": system}] if system else []

    def with_user(self, text: str) -> list[Message]:
        """The messages up to and including what the user says now."""
        messages = list(self._messages)
        if messages and messages[-1]["role"] == "user":  # its reply was never heard; models want roles to take turns
            text = f"{messages.pop()['content']} {text}"
        return [*messages, {"role": "user", "content": text}]

    def add(self, user: str, heard: str) -> None:
        self._messages = self.with_user(user)
        if heard.strip():
            self._messages.append({"role": "assistant", "content": heard.strip()})
