"""A reply cut into what is spoken at once, while it is still being written: first a clause, then whole sentences."""

import re
from dataclasses import dataclass

from csm_mlx.text import SentenceStream, sentences, speakable

MIN_WORDS, MIN_ALPHANUMERICS = 3, 10
"""Of a first clause that ends with punctuation: less is over before the next is made."""
BREATH_WORDS, MAX_WORDS = 6, 12
"""One without punctuation ends between these."""
MAX_FIRST_CHARS = 120
MAX_CHARS = 240
"""About 16 s of speech: a longer sentence is cut at a clause border."""

_BORDER = re.compile(r"[,;:.?!…]['\"”’»)\]*_]*$")
_FULL_STOP = re.compile(r"[.…]['\"”’»)\]*_]*$")
_FENCE = re.compile(r"^\s*(?:```|~~~)", re.MULTILINE)
_WORD = re.compile(r"\S+")
_BREATHS = re.compile(
    r"(?i:and|but|or|so|because|which|that|who|where|while|when|if|then|than|as|for|with|from|without|about|after|before|in"
    r"|on|at|by|to|of|like|through)"
)
"""Words that one may breathe before."""


@dataclass(frozen=True)
class Clause:
    text: str
    """As it was written; those of all clauses together are the reply."""
    spoken: str
    """As a voice can read it; "" when nothing of it is to be spoken, such as a block of code."""


class Clauses:
    """Cuts one reply after another; how it was chopped up on its way makes no difference.

    The white space before a clause is part of its text. A cut waits for one character of the next word, so that none
    falls into a number, an abbreviation or a URL.
    """

    def __init__(self, language: str = "en"):
        self._language = language
        self._begin()

    def _begin(self) -> None:
        self._stream = SentenceStream(self._language, MAX_CHARS)
        self._pending = ""
        """What the stream has been given and no clause has taken."""
        self._is_first = True
        """Nothing to be spoken has been cut off yet."""
        self._short: list[str] = []
        """Sentences at the beginning of what is pending, too short to begin a reply with: "Sure!"."""

    def feed(self, text: str) -> list[Clause]:
        """Take more of the reply; return the clauses that it finished."""
        clauses: list[Clause] = []
        n_taken = 0
        while self._is_first and n_taken < len(text):
            clauses += self._add(text[n_taken])
            n_taken += 1
            end = _first_end(self._pending) if self._is_first else None
            if end is not None:
                rest = self._pending[end:]
                clauses.append(self._take(end, speakable(self._pending[:end], self._language)))
                self._stream, self._pending = SentenceStream(self._language, MAX_CHARS), ""
                clauses += self._add(rest)
        return clauses + self._add(text[n_taken:])

    def finish(self) -> list[Clause]:
        """The reply is over: what is left of it. Then another one may begin."""
        clauses = self._sentences(self._stream.flush())
        if self._short:
            clauses.append(self._take_sentences([]))
        if self._pending:
            clauses.append(Clause(self._pending, ""))
        self._begin()
        return clauses

    def _add(self, text: str) -> list[Clause]:
        self._pending += text
        return self._sentences(self._stream.feed(text))

    def _sentences(self, finished: list[str]) -> list[Clause]:
        clauses: list[Clause] = []
        for sentence in finished:
            if self._is_first and _is_short(speakable(" ".join([*self._short, sentence]), self._language)):
                self._short.append(sentence)
            else:
                clauses.append(self._take_sentences([sentence]))
        return clauses

    def _take_sentences(self, finished: list[str]) -> Clause:
        taken = [*self._short, *finished]
        spoken = filter(None, (speakable(sentence, self._language) for sentence in taken))
        return self._take(_end_of("".join(taken), self._pending), " ".join(spoken))

    def _take(self, end: int, spoken: str) -> Clause:
        clause = Clause(self._pending[:end], spoken)
        self._pending, self._short = self._pending[end:], []
        self._is_first = self._is_first and not spoken
        return clause


def _is_short(spoken: str) -> bool:
    """Something, but over before the next clause is made."""
    n_alphanumerics = sum(map(str.isalnum, spoken))
    return n_alphanumerics > 0 and (n_alphanumerics < MIN_ALPHANUMERICS or len(spoken.split()) < MIN_WORDS)


def _end_of(sentences: str, text: str) -> int:
    """Where in `text`, which differs by white space only, the sentences at its beginning end."""
    n_left = sum(not c.isspace() for c in sentences)
    for end, c in enumerate(text, 1):
        n_left -= not c.isspace()
        if n_left == 0:
            return end
    return len(text)


def _first_end(text: str) -> int | None:
    """Where the first clause ends, when the last character of `text` begins a word and shows it."""
    if not (len(text) > 1 and text[-2].isspace() and not text[-1].isspace()):
        return None
    head = text[:-1].rstrip()
    words = [match for match in _WORD.finditer(head) if any(map(str.isalnum, match[0]))]
    too_long = len(head) >= MAX_FIRST_CHARS
    if _FENCE.search(head) or not words or (_is_open(head) and not too_long):
        return None
    if len(words) >= MIN_WORDS and sum(map(str.isalnum, head)) >= MIN_ALPHANUMERICS and _BORDER.search(head):
        in_number = text[-1].isdigit() and head[-1] in ",." and "\n" not in text[len(head) :]
        if not in_number and (not _FULL_STOP.search(head) or _is_sentence(head, text[-1])):
            return len(head)
    if len(words) >= MAX_WORDS or too_long:
        return _breath(words)
    return None


def _is_open(head: str) -> bool:
    """Inside a link's words, its address, or code: half of that is no markup any more."""
    opened = head.rfind("[")
    in_link = opened > head.rfind("]") or ("](" in head and head.rfind("](") > head.rfind(")"))
    return in_link or head.count("`") % 2 == 1


def _is_sentence(head: str, following: str) -> bool:
    """Whether the full stop ends one, and no abbreviation, given the first character of what follows."""
    if following.islower():
        return False
    word = (
        f"{following}hen" if following.isalpha() else following
    )  # any word would do, but a letter alone is an initial
    return sentences(f"{head} {word}")[-1] == word


def _breath(words: list[re.Match[str]]) -> int:
    """Before the last word, from the seventh to the twelfth, that one may breathe before; or after the last of them."""
    for before, word in reversed(list(zip(words[BREATH_WORDS - 1 :], words[BREATH_WORDS:MAX_WORDS], strict=False))):
        if _BREATHS.fullmatch(word[0]):
            return before.end()
    return words[min(len(words), MAX_WORDS) - 1].end()
