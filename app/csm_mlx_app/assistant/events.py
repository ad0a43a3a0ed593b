"""What the turn machine is told and what it answers. Every `t_s` is in seconds of the conversation's clock."""

from dataclasses import dataclass
from typing import Literal

State = Literal["listening", "thinking", "speaking", "interrupted"]


@dataclass(frozen=True)
class Window:
    """32 ms of microphone sound that end at `t_s`.

    probability: of speech. level_db: RMS, 0 dB is full scale. playing: the loudspeaker sounded meanwhile.
    """

    t_s: float
    probability: float
    level_db: float
    playing: bool


@dataclass(frozen=True)
class Transcribed:
    """The answer to a `Transcribe`. echo: the words are among those that are being spoken (`transcripts.is_echo`)."""

    t_s: float
    turn: int
    revision: int
    text: str
    final: bool
    echo: bool = False


@dataclass(frozen=True)
class Complete:
    """Smart Turn's opinion: the probability that the user has finished."""

    t_s: float
    turn: int
    revision: int
    probability: float


@dataclass(frozen=True)
class Finished:
    """The recognizer, which hears all the time, takes what was said until now for a whole turn."""

    t_s: float


@dataclass(frozen=True)
class ReplyStarted:
    """The first sample of the reply is heard."""

    t_s: float
    turn: int


@dataclass(frozen=True)
class ReplyEnded:
    """All of the reply was heard."""

    t_s: float
    turn: int


@dataclass(frozen=True)
class ReplyFailed:
    """There will be no more of the reply, for a reason that the user was told."""

    t_s: float
    turn: int


@dataclass(frozen=True)
class Interrupt:
    """The key that stops the assistant."""

    t_s: float


@dataclass(frozen=True)
class Muted:
    """The microphone is not to be listened to, or is again."""

    t_s: float
    on: bool


@dataclass(frozen=True)
class Talking:
    """Push-to-talk: the key went down, or up."""

    t_s: float
    on: bool


@dataclass(frozen=True)
class Typed:
    """A turn from the keyboard."""

    t_s: float
    text: str


@dataclass(frozen=True)
class InputEnded:
    """There will be no more microphone sound."""

    t_s: float


Event = (
    Window
    | Transcribed
    | Complete
    | Finished
    | ReplyStarted
    | ReplyEnded
    | ReplyFailed
    | Interrupt
    | Muted
    | Talking
    | Typed
    | InputEnded
)


@dataclass(frozen=True)
class Transcribe:
    """Recognize what the microphone heard from `start_s` to `end_s`; not final: while the user still speaks."""

    turn: int
    revision: int
    start_s: float
    end_s: float
    final: bool


@dataclass(frozen=True)
class Begin:
    """Start the language model and speech for this text; the sound waits for `Open`."""

    turn: int
    revision: int
    text: str


@dataclass(frozen=True)
class Open:
    """The turn is decided: let the sound out."""

    turn: int
    revision: int


@dataclass(frozen=True)
class Drop:
    """The user went on before anything was heard: forget all that was begun for this revision."""

    turn: int
    revision: int


@dataclass(frozen=True)
class Pause:
    """Fade the output out and hold it; `Resume` or `Stop` follows."""


@dataclass(frozen=True)
class Resume:
    """It was no interruption: go on."""


@dataclass(frozen=True)
class Stop:
    """The reply to `turn` is interrupted for good: cut it to what was heard."""

    turn: int


@dataclass(frozen=True)
class SpeechStarted:
    """The user has been speaking since `t_s`: certain only a moment later."""

    turn: int
    t_s: float


@dataclass(frozen=True)
class SpeechEnded:
    """The user spoke until `t_s`, and has finished."""

    turn: int
    t_s: float


@dataclass(frozen=True)
class Show:
    state: State


Action = Transcribe | Begin | Open | Drop | Pause | Resume | Stop | SpeechStarted | SpeechEnded | Show
