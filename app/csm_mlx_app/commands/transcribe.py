"""`csm transcribe`: what was said, in a file or at this moment."""

import sys
from collections import Counter
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from csm_mlx_app import options


class Format(str, Enum):
    txt = "txt"
    srt = "srt"
    vtt = "vtt"


def complete_stt(incomplete: str) -> list[str]:
    from csm_mlx_app import places

    return [name for name in places.stt_names() if name.startswith(incomplete)]


def transcribe(
    files: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="FILE", show_default=False, help="Sound files: wav, flac, mp3, ogg, …; - reads one from stdin."
        ),
    ] = None,
    mic: Annotated[bool, typer.Option("--mic", help="Listen to the microphone, until Ctrl-C.")] = False,
    batch: Annotated[
        int, typer.Option("--batch", min=1, metavar="N", help="Of several files, hear so many at once.")
    ] = 4,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="FILE",
            rich_help_panel=options.OUTPUT,
            help="Write .txt, .srt or .vtt, by its ending, when all is heard; for several sound files a folder. An "
            "older file is replaced.",
        ),
    ] = None,
    format: Annotated[
        Format | None,
        typer.Option(
            "--format",
            rich_help_panel=options.OUTPUT,
            show_default="by -o, else txt",
            help="Running text, or subtitles: SubRip or WebVTT.",
        ),
    ] = None,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json",
            rich_help_panel=options.OUTPUT,
            help='One JSON object per word on stdout: {"text": "Hello", "start_s": 0.32, "stop_s": 0.64}.',
        ),
    ] = False,
    tokens: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            rich_help_panel=options.OUTPUT,
            help="Write what the model said, frame by frame: safetensors, tensor `text`, int32 (frames,).",
        ),
    ] = None,
    input_device: options.InputDevice = None,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            rich_help_panel=options.MODEL,
            autocompletion=complete_stt,
            help="Kyutai's speech-to-text: a folder, a name below ./weights, or a hub id such as "
            "kyutai/stt-2.6b-en. Without it, the one that is below ./weights, stt-1b first.",
        ),
    ] = None,
    seed: options.Seed = 0,
    temp: options.Temp = None,
) -> None:
    """Write down what is said, as it is said.

    Words come half a second after they were spoken (stt-1b; stt-2.6b takes
    2.5 s), with their times. A word that may still change is grey. Ctrl-C ends
    listening, and the last words are written; a second one drops them.

    [bold]Examples[/bold]
      csm convert kyutai/stt-1b-en_fr-candle weights/stt-1b-q4 -q
      csm transcribe interview.mp3
      csm transcribe --mic
      csm transcribe film.wav -o film.srt
      csm transcribe *.flac -o texts --format vtt --batch 8
      csm transcribe --mic --json | jq -r .text
      csm say "Hello there." -o - | csm transcribe -
    """
    given = options.given_sampling(temperature=temp)
    sources = _sources(files or [], mic)
    if input_device and not mic:
        raise typer.BadParameter(
            "files are heard without a device; leave it out, or say --mic", param_hint="--input-device"
        )
    chosen = _format(out, format, len(sources) > 1)
    _check_places(sources, out, tokens, as_json, format)

    from csm_mlx_app import transcribing

    code = transcribing.transcribe(
        transcribing.Flags(
            sources=sources,
            out=out,
            format=chosen,
            as_json=as_json,
            tokens=tokens,
            batch=batch,
            model=model,
            input_device=input_device,
            seed=seed,
            sampling=given,
        )
    )
    if code:
        raise typer.Exit(code)


def _sources(files: list[str], mic: bool) -> tuple[str, ...]:
    if mic and files:
        raise typer.BadParameter("name files or listen to the microphone, not both", param_hint="--mic")
    if not mic and not files:
        raise typer.BadParameter("nothing to hear: name a sound file, - for stdin, or --mic", param_hint="FILE")
    if "-" in files and len(files) > 1:
        raise typer.BadParameter("stdin holds one sound; leave - or the files out", param_hint="FILE")
    if files == ["-"] and (sys.stdin is None or sys.stdin.isatty()):
        raise typer.BadParameter("stdin is a terminal; pipe sound into it, or listen with --mic", param_hint="FILE")
    return tuple(files)


def _format(out: Path | None, format: Format | None, many: bool) -> str:
    if format is not None or out is None or many:
        return (format or Format.txt).value
    ending = out.suffix.lower().removeprefix(".")
    if ending not in Format.__members__:
        given = f"has the ending .{ending}" if ending else "has no ending"
        raise typer.BadParameter(f"{out} {given}; expected .txt, .srt or .vtt, or say --format", param_hint="--out")
    return ending


def _check_places(
    sources: tuple[str, ...], out: Path | None, tokens: Path | None, as_json: bool, format: Format | None
) -> None:
    """Refuses what cannot be written, before anything is loaded."""
    many = len(sources) > 1
    if many and tokens is not None:
        raise typer.BadParameter("it keeps those of one sound; name one", param_hint="--tokens")
    if twice := [source for source, n in Counter(sources).items() if n > 1]:
        raise typer.BadParameter(f"{twice[0]} is named twice; once is enough", param_hint="FILE")
    options.distinct(("--out", out), ("--tokens", tokens))
    if out is None and format not in (None, Format.txt) and (many or as_json):
        why = "--json has its own form" if as_json else "subtitles of several sounds need files"
        raise typer.BadParameter(f"{why}; name a place with -o", param_hint="--format")
    if many and out is not None:
        if not out.is_dir():
            raise typer.BadParameter(
                f"{out} is no folder, and there are several files; make it with mkdir", param_hint="--out"
            )
        if twice := [stem for stem, n in Counter(Path(source).stem for source in sources).items() if n > 1]:
            raise typer.BadParameter(f"several files are called {twice[0]}; transcribe them apart", param_hint="--out")
    for path, flag in ((None if many else out, "--out"), (tokens, "--tokens")):
        if path is None:
            continue
        options.writable(path, flag)
        for source in sources:
            options.apart(Path(source), path, flag)
