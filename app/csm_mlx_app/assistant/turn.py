"""What the turn machine remembers of a turn."""

from dataclasses import dataclass

from csm_mlx_app.assistant.voice import Utterance


@dataclass(frozen=True)
class TurnTimes:
    """When a turn that was opened happened; for a typed one all are the same."""

    revision: int
    speech_start_s: float
    speech_end_s: float
    """The true end: of the last window with speech, not of the silence after it."""
    decided_s: float
    transcript_s: float


@dataclass
class Turn:
    """A turn of the user's, from the first voiced window on; what hangs on the revision is forgotten by `go_on`."""

    number: int
    revision: int
    speech: Utterance
    audio_start_s: float
    by_key: bool = False
    """Push-to-talk: the key, not the voice, says when it begins and ends."""
    is_typed: bool = False
    is_announced: bool = False
    partial_s: float = 0.0
    is_asked: bool = False
    is_begun: bool = False
    text: str | None = None
    is_refused: bool = False
    """Its text is nothing that anybody said."""
    silence_s: float | None = None
    """What Smart Turn made of the silence that ends it."""
    transcript_s: float = 0.0
    decided_s: float | None = None

    def go_on(self) -> None:
        self.revision += 1
        self.is_asked = self.is_begun = self.is_refused = False
        self.text = self.silence_s = self.decided_s = None


@dataclass
class Reply:
    """The turn that is being answered."""

    turn: Turn
    opened_s: float
    is_heard: bool = False
