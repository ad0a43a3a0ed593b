"""What a transcript is worth: words or whisper's inventions, an interruption or a nod, the user or an echo. Pure."""

import re
from collections.abc import Sequence
from difflib import SequenceMatcher

_INVENTED = frozenset([
    "", "you", "thank you", "thanks", "thanks for watching", "thank you for watching", "bye", "bye bye", "so", "oh",
    "the", "i", "okay", "music", "applause", "silence", "blank audio", "please subscribe", "subtitles by",
])  # fmt: skip
"""What whisper writes for silence and noise; credible only when there was enough voice."""

_NODS = frozenset([
    "mhm", "mm", "mmhmm", "hm", "hmm", "uh", "um", "huh", "uhhuh", "uhuh", "aha", "ah", "oh", "okay", "ok", "yeah",
    "yep", "yes", "right", "sure", "wow",
])  # fmt: skip
"""Words by which a listener says "go on"."""

_COMMANDS = frozenset(["stop", "wait", "no", "quiet", "enough", "cancel", "pause"])
"""Words that interrupt although they are alone."""

_ECHO_LIKENESS = 0.75
"""Part of a transcript's letters that must be found, in order, in the spoken text."""


def words(text: str) -> list[str]:
    """The words in lower case without punctuation, and without what whisper puts in brackets: [MUSIC], (coughs)."""
    bare = re.sub(r"\[[^\]]*\]|\([^)]*\)|\*[^*]*\*", " ", text.lower())
    return re.findall(r"[^\W_]+", re.sub(r"['’-]", "", bare))


def is_empty(text: str) -> bool:
    return not words(text)


def is_invented(text: str) -> bool:
    """Whether whisper also writes this where nobody spoke."""
    return " ".join(words(text)) in _INVENTED


def interrupts(text: str) -> bool:
    """Whether somebody who says this over a reply wants it to stop: a command, or two words that are more than nods."""
    said = [word for word in words(text) if word not in _NODS]
    return len(said) >= 2 or bool(_COMMANDS.intersection(said))


def is_echo(text: str, spoken: str) -> bool:
    """Whether `text` is contained in `spoken`, roughly: what a microphone hears of the loudspeaker is distorted.

    One word alone is no proof: both may have said it.
    """
    heard, source = words(text), words(spoken)
    return len(heard) > 1 and bool(source) and _likeness(heard, source) >= _ECHO_LIKENESS


def _likeness(heard: Sequence[str], source: Sequence[str]) -> float:
    """Part of the letters of `heard` that the most similar run of words of `source` has in the same order."""
    letters, best = "".join(heard), 0.0
    for start in range(max(1, len(source) - len(heard) + 1)):
        # One word more than was heard: recognition joins and splits words.
        run = "".join(source[start : start + len(heard) + 1])
        blocks = SequenceMatcher(None, letters, run, autojunk=False).get_matching_blocks()
        best = max(best, sum(block.size for block in blocks) / len(letters))
    return best
