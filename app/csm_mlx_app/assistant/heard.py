"""What of a reply was heard, from the samples that were played: words, because that is what history is made of."""

import re
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate

from csm_mlx.text import speakable
from csm_mlx_app.assistant.clauses import Clause
from csm_mlx_app.sound.device import RATE_HZ

CHARS_PER_S = 14.0
"""Of speakable text, until a clause of the reply has been spoken."""
_WORD = re.compile(r"\S+")


@dataclass(frozen=True)
class Heard:
    text: str
    """A prefix of the reply that ends with a clause or a word."""
    clause: int
    """The one that was heard last, counted from 0 in the order in which they were added; 0 where nothing was heard."""
    n_samples: int
    """How much of it."""
    complete: bool
    """All that was added had ended and was heard."""


@dataclass
class _Entry:
    clause: Clause
    start: int
    """Its first sample among those of the reply."""
    n_samples: int = 0
    is_closed: bool = False

    @cached_property
    def words(self) -> list[tuple[int, int]]:
        """Of each word its end in the clause's text, and how many speakable characters there are up to it."""
        matches = list(_WORD.finditer(self.clause.text))
        n_chars = accumulate(len(speakable(match[0])) for match in matches)
        return [(match.end(), n) for match, n in zip(matches, n_chars, strict=True)]


@dataclass
class Ledger:
    """Which samples of a reply are which of its words. All counts are from the reply's first sample on.

    A clause's samples are shared out among its words by their length as they are spoken. While a clause is being made,
    how long it will be is estimated from the pace of those before it.
    """

    _entries: list[_Entry] = field(default_factory=list)

    def add(self, clause: Clause) -> None:
        """The next clause; the one before it is closed."""
        self.close()
        self._entries.append(_Entry(clause, self.n_samples))

    def grow(self, n_samples: int) -> None:
        """So much sound of the last clause was made."""
        self._entries[-1].n_samples += n_samples

    def close(self) -> None:
        """All sound of the last clause was made."""
        if self._entries:
            self._entries[-1].is_closed = True

    def heard(self, n_played: int) -> Heard:
        """What was heard when `n_played` samples had been played: whole clauses, and of the one that was cut, words.

        More samples never give less text. What has no sound is heard with what comes after it.
        """
        index = max(
            (i for i, entry in enumerate(self._entries) if entry.start < n_played and entry.n_samples), default=None
        )
        if index is None:
            return Heard("", 0, 0, complete=False)
        last = self._entries[index]
        n_samples = min(n_played - last.start, last.n_samples)
        if n_played >= self.n_samples and self._entries[-1].is_closed:
            text = "".join(entry.clause.text for entry in self._entries)
            return Heard(text, index, n_samples, complete=True)
        text = "".join(entry.clause.text for entry in self._entries[:index])
        return Heard(text + self._words(last, n_samples), index, n_samples, complete=False)

    @property
    def n_samples(self) -> int:
        """Of all sound that was made so far."""
        return self._entries[-1].start + self._entries[-1].n_samples if self._entries else 0

    def _words(self, entry: _Entry, n_samples: int) -> str:
        if entry.is_closed and n_samples == entry.n_samples:
            return entry.clause.text
        n_chars = entry.words[-1][1]
        expected = n_samples / max(entry.n_samples, 0 if entry.is_closed else self._expected(entry)) * n_chars
        # The last word is heard only when the clause has ended.
        ends = [end for end, n in entry.words if 0 < n <= expected and n < n_chars]
        return entry.clause.text[: max(ends, default=0)]

    def _expected(self, entry: _Entry) -> float:
        """Samples that a clause which is being made will have."""
        done = [e for e in self._entries if e.is_closed and e.n_samples]
        n_chars, n_samples = sum(len(e.clause.spoken) for e in done), sum(e.n_samples for e in done)
        chars_per_sample = n_chars / n_samples if n_chars else CHARS_PER_S / RATE_HZ
        return len(entry.clause.spoken) / chars_per_sample
