"""Where the words of a transcript go: running text, a terminal, JSON lines or subtitles, as they come."""

import json
import shutil
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from csm_mlx_app.captions import BLOCKS, PAUSE_S, VTT_HEADER, Cue, CueBuilder

if TYPE_CHECKING:
    from csm_mlx.generate.words import Word

Write = Callable[[str], None]


class Teller(Protocol):
    def put(self, word: "Word") -> None:
        """A word, partial or final."""
        ...

    def pause(self) -> None:
        """The turn is over."""
        ...

    def end(self) -> None:
        """Nothing follows."""
        ...


class TextTeller:
    """Final words, a space between them, and a new line after a long pause or a turn."""

    def __init__(self, write: Write):
        self._write = write
        self._last: Word | None = None
        self._breaks = False

    def put(self, word: "Word") -> None:
        if not word.final:
            return
        last = self._last
        if last is not None:
            is_new = self._breaks or word.start_s - last.said_s >= PAUSE_S
            self._write("\n" if is_new else " ")
        self._write(word.text)
        self._last, self._breaks = word, False

    def pause(self) -> None:
        self._breaks = self._last is not None

    def end(self) -> None:
        if self._last is not None:
            self._write("\n")
        self._last = None


class LiveTeller:
    """As `TextTeller`, on a terminal: wrapped at its edge, and with the word that is being said in grey."""

    def __init__(self, write: Write):
        self._write = write
        self._column = 0
        self._shown = 0
        """Cells of the partial word after the cursor's place."""
        self._text = TextTeller(self._final)
        self._last_text = ""

    def put(self, word: "Word") -> None:
        self._hide()
        if word.final:
            self._text.put(word)
            return
        room = _width() - self._column - 2
        if (shown := word.text[: max(0, room)]) and shown.isprintable():
            self._shown = len(shown) + bool(self._column)
            self._write(f"\033[90m{' ' if self._column else ''}{shown}\033[0m" + "\b" * self._shown)

    def pause(self) -> None:
        self._text.pause()

    def end(self) -> None:
        self._hide()
        self._text.end()

    def _hide(self) -> None:
        if self._shown:
            self._write("\033[K")
            self._shown = 0

    def _final(self, text: str) -> None:
        if text == " ":
            self._last_text = text
            return
        gap, self._last_text = self._last_text, ""
        if gap and self._column + 1 + len(text) >= _width():
            gap = "\n"
        self._write(gap + text)
        self._column = len(text) if gap == "\n" else 0 if text == "\n" else self._column + len(gap) + len(text)


def _width() -> int:
    return max(20, shutil.get_terminal_size().columns)


class JsonTeller:
    """One object per word; `common` is in each."""

    def __init__(self, write: Write, common: dict[str, Any] | None = None):
        self._write, self._common = write, common or {}

    def put(self, word: "Word") -> None:
        if word.stop_s is not None:
            times = {"start_s": round(word.start_s, 3), "stop_s": round(word.stop_s, 3)}
            self._write(json.dumps({**self._common, "text": word.text, **times}, ensure_ascii=False) + "\n")

    def pause(self) -> None:
        pass

    def end(self) -> None:
        pass


class CueTeller:
    """Subtitles: srt or vtt."""

    def __init__(self, write: Write, format: str):
        self._write, self._format = write, format
        self._builder = CueBuilder()
        self._n = 0

    def put(self, word: "Word") -> None:
        if word.final:
            self._tell(self._builder.put(word))

    def pause(self) -> None:
        pass

    def end(self) -> None:
        self._tell(self._builder.end())
        if self._n == 0 and self._format == "vtt":
            self._write(VTT_HEADER)

    def _tell(self, cues: list[Cue]) -> None:
        for cue in cues:
            self._n += 1
            self._write(BLOCKS[self._format](cue, self._n))


def teller(format: str, write: Write) -> Teller:
    """Of txt, srt or vtt."""
    return TextTeller(write) if format == "txt" else CueTeller(write, format)
