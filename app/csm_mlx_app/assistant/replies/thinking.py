"""Models that think aloud before they answer: the thoughts are neither spoken nor kept."""

from typing import Literal

START, END = "<think>", "</think>"


class Thinking:
    """Takes the thoughts off the beginning of an answer that arrives in pieces.

    start, end: the marks around them.
    inside: the prompt has already begun them, as some chat templates do.
    """

    def __init__(self, start: str = START, end: str = END, *, inside: bool = False):
        self._start, self._end = start, end
        self._held = ""
        self._at: Literal["beginning", "thoughts", "gap", "answer"] = "thoughts" if inside else "beginning"

    @property
    def inside(self) -> bool:
        return self._at == "thoughts"

    def feed(self, piece: str) -> str:
        """What of the text so far is answer, and new."""
        self._held += piece
        if self._at == "beginning":
            begun = self._held.lstrip()
            if begun.startswith(self._start):
                self._at, self._held = "thoughts", begun[len(self._start) :]
            elif not self._start.startswith(begun):
                self._at = "answer"
        if self._at == "thoughts":
            _, mark, after = self._held.partition(self._end)
            self._held = after if mark else self._held[-len(self._end) :]  # the mark may be coming in pieces
            if mark:
                self._at = "gap"
        if self._at == "gap":
            self._held = self._held.lstrip()
            if self._held:
                self._at = "answer"
        if self._at != "answer":
            return ""
        answer, self._held = self._held, ""
        return answer

    def finish(self) -> str:
        """The text is over: what was held back because thoughts might have begun with it."""
        return self._held if self._at == "beginning" else ""
