"""The numbers of turn-taking."""

from dataclasses import dataclass
from typing import Literal

Eagerness = Literal["low", "medium", "high"]
_SILENCES_S: dict[Eagerness, tuple[float, float]] = {"low": (0.9, 2.0), "medium": (0.5, 1.2), "high": (0.2, 0.6)}
"""Silence after which a turn is over: usually, and when Smart Turn finds it incomplete."""


@dataclass(frozen=True, kw_only=True)
class TurnConfig:
    """Every number of turn-taking; `TurnConfig.of` for what a user chooses."""

    commit_s: float
    """Silence after which a turn is over."""
    incomplete_s: float
    """The same when Smart Turn says that the user has not finished,"""
    complete_s: float = 0.2
    """and when it says the contrary."""
    echo_rules: bool = True
    """Whether the microphone may hear the loudspeaker."""
    start_s: float = 0.064
    """Voice of this length is somebody who begins, or goes on."""
    preroll_s: float = 0.3
    minimum_s: float = 0.16
    """Less voice than this is no turn."""
    speculate_s: float = 0.096
    """Silence after which a turn is recognized and answered, in case it is over."""
    invented_s: float = 0.4
    """With less voice than this, what whisper writes for noise is taken for noise."""
    longest_s: float = 60.0
    partial_s: float = 1.0
    """How often a transcript is wanted while the user speaks."""
    reopen_s: float = 7.0
    """For so long a turn whose reply is not heard yet may be continued; then another one begins."""
    sustained_s: float = 0.16
    """Voice over a reply that pauses it,"""
    certain_s: float = 0.4
    """that ends it,"""
    resume_s: float = 0.3
    """and silence after which the reply goes on."""
    fresh_s: float = 0.192
    """Part of `certain_s` that must come after the loudspeaker fell silent, where there may be an echo;"""
    patience_s: float = 1.0
    """but no echo lasts as long as this."""
    warm_up_s: float = 1.0
    """Since the first sound of all: the echo canceller learns, and only `certain_s` pauses."""
    late_s: float = 2.0
    """For so long after the reply went on, words may still prove that it should not have."""
    quieter_db: float = 20.0
    """How far below the user's usual level an interruption may be."""
    above_echo_db: float = 6.0
    """How far above an echo that was mistaken for the user an interruption must be,"""
    below_user_db: float = 6.0
    """but never nearer than this to the user's own level."""

    @classmethod
    def of(cls, eagerness: Eagerness, *, echo_rules: bool = True) -> "TurnConfig":
        commit_s, incomplete_s = _SILENCES_S[eagerness]
        return cls(commit_s=commit_s, incomplete_s=incomplete_s, echo_rules=echo_rules)
