"""Words with times as subtitles: cut where a reader wants them cut, and written as SRT or WebVTT."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from csm_mlx.generate.words import Word

MAX_CUE_S = 7.0
MAX_LINE_CHARS = 42
MIN_CUE_S = 1.0
"""Shorter ones are shown for so long, if nothing follows."""
PAUSE_S = 1.0
"""After which a cue is over."""
BREATH_S = 0.3
"""After a sentence."""
SHORT_CHARS = 21
"""A sentence as short as this does not get a cue of its own where the next follows without a breath."""
_ENDS = (".", "?", "!", "…")
_CLOSERS = "\"')]”’»"


@dataclass(frozen=True)
class Cue:
    start_s: float
    stop_s: float
    lines: tuple[str, ...]


class CueBuilder:
    """Makes cues out of words as they come: at most two lines and 7 s, broken at pauses and ends of sentences."""

    def __init__(self) -> None:
        self._words: list[Word] = []

    def put(self, word: "Word") -> list[Cue]:
        """The cue that ends before this word, if one does."""
        done = [self._cue(word.start_s)] if self._words and self._breaks_before(word) else []
        self._words = [] if done else self._words
        self._words.append(word)
        return done

    def end(self) -> list[Cue]:
        """The last cue, if there is one."""
        done = [self._cue(None)] if self._words else []
        self._words = []
        return done

    def _breaks_before(self, word: "Word") -> bool:
        text, gap_s = _text(self._words), word.start_s - self._words[-1].said_s
        if text.rstrip(_CLOSERS).endswith(_ENDS) and (len(text) > SHORT_CHARS or gap_s >= BREATH_S):
            return True
        too_long = word.said_s - self._words[0].start_s > MAX_CUE_S
        return gap_s >= PAUSE_S or too_long or not _fits(f"{text} {word.text}")

    def _cue(self, next_s: float | None) -> Cue:
        start_s = self._words[0].start_s
        stop_s = max(self._words[-1].said_s, start_s + MIN_CUE_S)
        return Cue(start_s, stop_s if next_s is None else min(stop_s, next_s), _lines(_text(self._words)))


def _text(words: "list[Word]") -> str:
    return " ".join(word.text for word in words)


def _fits(text: str) -> bool:
    return max(map(len, _lines(text))) <= MAX_LINE_CHARS


def _lines(text: str) -> tuple[str, ...]:
    """One line, or the two that are most alike in length."""
    if len(text) <= MAX_LINE_CHARS or " " not in text:
        return (text,)
    cuts = [i for i, c in enumerate(text) if c == " "]
    cut = min(cuts, key=lambda i: max(i, len(text) - i - 1))
    return text[:cut], text[cut + 1 :]


def srt(cue: Cue, number: int) -> str:
    """A block of a SubRip file, numbered from 1."""
    return f"{number}\n{_stamp(cue.start_s, ',')} --> {_stamp(cue.stop_s, ',')}\n{chr(10).join(cue.lines)}\n\n"


def vtt(cue: Cue, number: int) -> str:
    """A block of a WebVTT file; the file's header comes with the first."""
    text = "\n".join(cue.lines).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    header = VTT_HEADER if number == 1 else ""
    return f"{header}{_stamp(cue.start_s, '.')} --> {_stamp(cue.stop_s, '.')}\n{text}\n\n"


VTT_HEADER = "WEBVTT\n\n"


def _stamp(seconds: float, point: str) -> str:
    ms = round(seconds * 1000)
    return f"{ms // 3_600_000:02}:{ms // 60_000 % 60:02}:{ms // 1000 % 60:02}{point}{ms % 1000:03}"


BLOCKS: dict[str, Callable[[Cue, int], str]] = {"srt": srt, "vtt": vtt}
