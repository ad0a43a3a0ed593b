"""Sentences out of text that may still be arriving, a few characters at a time."""

import re
import warnings
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pysbd import Segmenter

MAX_CHARS = 300
"""About 20 s of speech: a longer sentence is cut at a clause border."""
_MIN_CHARS = 100
"""No such cut leaves less than this before it, where the sentence has any other place to cut."""

_MAX_WORD_CHARS = 1000
"""A longer run without white space is no word, and is cut so often: text that never pauses must not stop everything."""
_WORD = re.compile(rf"(\s*)(\S{{1,{_MAX_WORD_CHARS}}})")
_ENDS_SENTENCE = re.compile(r"[.!?…]['\"”’»)\]*_]*$")
_STARTS_BLOCK = re.compile(r"(?:[-*+•>|]|#{1,6}|\d{1,2}[.)])$|\||```|~~~")
_HEADING = re.compile(r"#{1,6}\s")
_FENCE = re.compile(r"(```|~~~)")
_CLAUSE_BORDERS = (
    re.compile(r"[;:—–][\"”’)]*\s"),
    re.compile(r",[\"”’)]*\s"),
    re.compile(r"\s(?=(?:and|but|or|so|because|which|that|while|when|if|then)\s)"),
    re.compile(r"\s"),
)


def sentences(text: str, language: str = "en") -> list[str]:
    """The sentences of a whole text, as `SentenceStream` cuts them."""
    stream = SentenceStream(language)
    return [*stream.feed(text), *stream.flush()]


class SentenceStream:
    """Cuts text into sentences while it arrives; how it was chopped up on its way makes no difference.

    A sentence is handed over when the word after it is complete, or the paragraph is. Paragraphs, headings, list items
    and table rows end sentences too; a fenced block of code is one "sentence" (which `speakable` drops). Nothing of the
    text but white space is lost. `language` is one of pysbd's; for others English rules hold. A sentence of more than
    `max_chars` is cut.
    """

    def __init__(self, language: str = "en", max_chars: int = MAX_CHARS):
        self._language = language
        self._max_chars = max_chars
        self._sentence = ""  # complete words of the sentence that is being read
        self._rest = ""  # white space and a word that may not be complete yet
        self._fence = ""  # what closes the block of code that is being read

    def feed(self, chunk: str) -> list[str]:
        """Take more text; return the sentences that it finished."""
        self._rest += chunk
        finished: list[str] = []
        end = 0
        for match in _WORD.finditer(self._rest):
            if match.end() == len(self._rest):
                break  # it may go on
            finished += self._add(match[1], match[2])
            end = match.end()
        self._rest = self._rest[end:]
        if not self._fence and not self._rest.strip() and _is_paragraph(self._rest):
            finished += self._finish()
        return finished

    def flush(self) -> list[str]:
        """The text is over: return what is left, and be ready for another."""
        gap, word = re.fullmatch(r"(\s*)(\S*)", self._rest).groups()  # pyright: ignore[reportOptionalMemberAccess]
        finished = self._add(gap, word) if word else []
        finished += self._finish()
        self._rest = self._fence = ""
        return finished

    def _add(self, gap: str, word: str) -> list[str]:
        """Append a complete word; return the sentences that turn out to have ended before it."""
        at_line_start = "\n" in gap or not self._sentence
        if self._fence:
            self._sentence += gap + word
            return self._finish(raw=True) if at_line_start and word == self._fence else []
        finished: list[str] = []
        if self._ends_before(gap, word):
            finished = self._finish()
        if at_line_start and (fence := _FENCE.match(word)) and fence[1] not in word[3:]:
            self._fence = fence[1]
        self._sentence += gap + word if self._sentence else word
        if not self._fence and len(self._sentence) > self._max_chars:
            finished += self._cut()
        return finished

    def _ends_before(self, gap: str, word: str) -> bool:
        if not self._sentence or not gap:
            return False
        if _is_paragraph(gap) or ("\n" in gap and (_STARTS_BLOCK.match(word) or _HEADING.match(self._sentence))):
            return True
        if not _ENDS_SENTENCE.search(self._sentence):
            return False
        # pysbd is only asked whether, never for the text: in rare cases it loses some.
        last = _segmenter(self._language).segment(f"{' '.join(self._sentence.split())} {word}")[-1:]
        return last == [word]

    def _cut(self) -> list[str]:
        """Split the sentence, which has become too long, at its best border; keep what is after it."""
        for border in _CLAUSE_BORDERS:
            ends = [m.end() for m in border.finditer(self._sentence, _MIN_CHARS, self._max_chars)]
            if ends:
                break
        else:
            ends = [m.end() for m in re.finditer(r"\s+", self._sentence)]  # very long words, or one
        if not ends:
            if len(self._sentence) <= _MAX_WORD_CHARS:
                return []
            ends = [_MAX_WORD_CHARS]
        head, self._sentence = self._sentence[: ends[-1]], self._sentence[ends[-1] :].lstrip()
        return [_tidy(head)]

    def _finish(self, raw: bool = False) -> list[str]:
        sentence, self._sentence, self._fence = self._sentence, "", ""
        sentence = sentence.strip() if raw else _tidy(sentence)
        return [sentence] if sentence else []


def _is_paragraph(gap: str) -> bool:
    return gap.count("\n") > 1


def _tidy(sentence: str) -> str:
    """White space made single spaces, but in a block of code, where it means something."""
    return sentence.strip() if _FENCE.match(sentence) else " ".join(sentence.split())


@cache
def _segmenter(language: str) -> "Segmenter":
    with warnings.catch_warnings():
        # Its source has invalid escapes, of which Python warns where no .pyc has been made at installation.
        warnings.simplefilter("ignore", SyntaxWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        from pysbd import Segmenter
        from pysbd.languages import LANGUAGE_CODES

    return Segmenter(language=language if language in LANGUAGE_CODES else "en", clean=False)
