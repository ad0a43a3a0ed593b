"""Where the words come from: arguments, a file, or a pipe that may be slow. Yields speakable sentences."""

import codecs
import os
import select
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import typer

from csm_mlx_app import options

NOTHING = 'nothing to say: write csm say "Hello there.", name a --file, or pipe text in'
PAUSE_S = 0.6
"""A pipe that is silent this long after a finished sentence does not hold that sentence back."""
_CLOSERS = "\"')]}»”’*_"
_BLOCK_BYTES = 1 << 16


def read_script(words: list[str], file: Path | None, verbatim: bool, by_line: bool = False) -> Iterator[str]:
    """The sentences, or lines, to speak; wrong usage when there is no source, or more than one, is raised at once."""
    cut = _lines if by_line else _sentences
    if words and words != ["-"] and file is not None:
        raise typer.BadParameter("give the text as an argument or as --file, not both", param_hint="--file")
    if words and words != ["-"]:
        chunks = [" ".join(words)]
    elif file is not None and str(file) != "-":
        if not options.existing_file(file, "--file").is_file():
            return cut(_pipe(os.open(file, os.O_RDONLY)), verbatim)
        chunks = [file.read_text(encoding="utf-8-sig", errors="replace")]
        if "\0" in chunks[0]:  # sound, weights, or UTF-16: hours of babble
            raise typer.BadParameter(f"{file} is no plain text; save it as UTF-8", param_hint="--file")
    elif sys.stdin is None or (sys.stdin.isatty() and words != ["-"] and file is None):
        raise typer.BadParameter(NOTHING)
    else:
        return cut(_pipe(sys.stdin.fileno()), verbatim)
    sentences = list(cut(chunks, verbatim))
    if not sentences:
        raise typer.BadParameter(NOTHING)
    return iter(sentences)


def _pipe(descriptor: int) -> Iterator[str]:
    """What arrives, as it arrives; an empty string marks a pause after the end of a sentence."""
    decoder = codecs.getincrementaldecoder("utf-8-sig")("replace")
    tail = ""
    while True:
        if _ends_sentence(tail) and not select.select([descriptor], [], [], PAUSE_S)[0]:
            tail = ""
            yield ""
        block = os.read(descriptor, _BLOCK_BYTES)
        chunk = decoder.decode(block, final=not block)
        tail = (tail + chunk)[-16:]
        if chunk:
            yield chunk
        if not block:
            return


def _ends_sentence(text: str) -> bool:
    return text.endswith("\n") or text.rstrip().rstrip(_CLOSERS).endswith((".", "!", "?", "…"))


def _sentences(chunks: Iterable[str], verbatim: bool) -> Iterator[str]:
    from csm_mlx.text import SentenceStream, speakable

    stream = SentenceStream()

    def finished() -> Iterator[str]:
        for chunk in chunks:
            yield from stream.feed(chunk) if chunk else stream.flush()
        yield from stream.flush()

    for sentence in finished():
        if spoken := (sentence if verbatim else speakable(sentence)).strip():
            yield spoken


def _lines(chunks: Iterable[str], verbatim: bool) -> Iterator[str]:
    from csm_mlx.text import speakable

    for line in "".join(chunks).splitlines():
        if spoken := (line if verbatim else speakable(line)).strip():
            yield spoken
