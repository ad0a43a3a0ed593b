"""The times of one turn, and what the user waited for."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

STAGES = ("decided", "transcript", "first_token", "first_clause", "first_frame", "first_sample")
"""In the order in which they usually come; each at most once per turn, the first time counts."""
WORK = ("recognition", "language_model", "synthesis")
"""What a reply waits for; other work of a turn (`encode`, the prefill of the user's turn) counts as synthesis."""


@dataclass
class TurnClock:
    """Times in seconds of the conversation's clock."""

    speech_end_s: float | None = None
    """The true end of speech: of its last voiced window, not of the decision that it was over."""
    marks: dict[str, float] = field(default_factory=dict)
    work: list[tuple[str, float, float]] = field(default_factory=list)
    sound_s: float = 0.0
    synthesis_s: float = 0.0

    def mark(self, stage: str, t_s: float) -> bool:
        """Whether this was the first time."""
        return self.marks.setdefault(stage, t_s) == t_s

    def forget(self) -> None:
        """The user went on: what was made for the shorter turn does not count."""
        self.marks.clear()
        self.work.clear()
        self.sound_s = self.synthesis_s = 0.0

    def worked(self, name: str, start_s: float, end_s: float) -> None:
        self.work.append((name, start_s, end_s))
        if name == "synthesis":
            self.synthesis_s += end_s - start_s

    @property
    def voice_to_voice_s(self) -> float | None:
        """From the true end of speech to the first sample played."""
        if self.speech_end_s is None or "first_sample" not in self.marks:
            return None
        return self.marks["first_sample"] - self.speech_end_s

    @property
    def real_time_factor(self) -> float | None:
        return self.synthesis_s / self.sound_s if self.sound_s else None

    def latency_ms(self) -> dict[str, int]:
        """Since the end of speech: each stage; what each kind of work took until the first sample; and `waiting`, the
        part in which none of them was going on."""
        if self.speech_end_s is None:
            return {}
        start_s = self.speech_end_s
        ms = {stage: _ms(self.marks[stage] - start_s) for stage in STAGES if stage in self.marks}
        total_s = self.voice_to_voice_s
        if total_s is None:
            return ms
        end_s = start_s + total_s
        spans = [(name, max(start_s, a), min(end_s, b)) for name, a, b in self.work if a < end_s and b > start_s]
        ms["voice_to_voice"] = _ms(total_s)
        for kind in WORK:
            ms[kind] = _ms(covered_s([(a, b) for name, a, b in spans if name == kind]))
        ms["waiting"] = _ms(total_s - covered_s([(a, b) for _, a, b in spans]))
        return ms


def covered_s(spans: Sequence[tuple[float, float]]) -> float:
    """The length of the union of intervals."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


def percentile(values: Sequence[float], part: float) -> float:
    """The value below which `part` of them lie, the nearest rank; `values` must not be empty."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(part * len(ordered) - 1e-9) - 1)]  # 0.95 * 100 is a little more than 95


def _ms(seconds: float) -> int:
    return round(1000 * seconds)
