"""`csm duplex`: a conversation in which both sides may speak at any time."""

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from csm_mlx_app import options

SOUND, CHARACTER, RECORDS = "Sound", "Character", "Output"


class Echo(str, Enum):
    auto = "auto"
    aec = "aec"
    headphones = "headphones"
    off = "off"


def duplex(
    model: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            rich_help_panel=options.MODEL,
            autocompletion=options.complete_model,
            help="A Moshi or Hibiki: a folder, a name below ./weights, or a hub id such as kyutai/moshiko-mlx-q4.",
        ),
    ] = None,
    input: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            rich_help_panel=SOUND,
            help="A sound file instead of the microphone, as fast as the machine can, without devices.",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.wav", rich_help_panel=SOUND, help="With --input: where the answer goes, as long as the file."
        ),
    ] = None,
    tail: Annotated[
        float | None,
        typer.Option(
            metavar="S",
            rich_help_panel=SOUND,
            show_default="0; up to 10 for Hibiki",
            help="With --input: go on for so many seconds of silence after the file; Hibiki is told that it is over.",
        ),
    ] = None,
    input_device: options.InputDevice = None,
    output_device: options.OutputDevice = None,
    echo: Annotated[
        Echo,
        typer.Option(
            metavar="HOW",
            rich_help_panel=SOUND,
            help="How Moshi does not hear itself. aec: cancel its voice in the microphone. headphones, off: do "
            "nothing. auto: aec where it is installed.",
        ),
    ] = Echo.auto,
    seconds: Annotated[
        float | None,
        typer.Option(metavar="S", rich_help_panel=SOUND, help="End after so many seconds; Ctrl-C ends it before."),
    ] = None,
    condition: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE",
            rich_help_panel=CHARACTER,
            help="What Hibiki asks for, such as description=very_good; once for each of its conditions.",
        ),
    ] = None,
    pad_bias: Annotated[
        float,
        typer.Option(
            metavar="X", rich_help_panel=CHARACTER, help="Above 0 it says less, below 0 more; a few units are a lot."
        ),
    ] = 0.0,
    repetition_penalty: Annotated[
        float,
        typer.Option(metavar="X", rich_help_panel=CHARACTER, help="Above 1 it repeats itself less; 1 is off."),
    ] = 1.0,
    repetition_context: Annotated[
        int,
        typer.Option(metavar="N", rich_help_panel=CHARACTER, help="Its last N words or pieces count for that."),
    ] = 64,
    as_json: Annotated[
        bool, typer.Option("--json", rich_help_panel=RECORDS, help="One JSON object per event on stdout.")
    ] = False,
    log: Annotated[
        Path | None,
        typer.Option(metavar="FILE.jsonl", rich_help_panel=RECORDS, help="Append what it said, a line per sentence."),
    ] = None,
    tokens: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            rich_help_panel=RECORDS,
            help="Its tokens as safetensors: `text` (T,) and `audio` (T, codebooks), int32, a row per 80 ms of sound.",
        ),
    ] = None,
    seed: options.Seed = 0,
    temp: options.Temp = None,
    text_temp: Annotated[
        float | None,
        typer.Option(
            metavar="T", rich_help_panel=options.SAMPLING, show_default="--temp", help="The same for its text alone."
        ),
    ] = None,
    top_k: options.TopK = None,
    text_top_k: Annotated[
        int | None,
        typer.Option(
            metavar="K", rich_help_panel=options.SAMPLING, show_default="--top-k", help="The same for its text alone."
        ),
    ] = None,
    top_p: options.TopP = None,
    min_p: options.MinP = None,
) -> None:
    """Talk with Moshi: you both may speak at any time, also at once.

    Its words appear as it says them; nothing leaves this machine, and
    nothing is kept unless --log or --tokens asks for it. At the start it
    says whether this machine is fast enough. Wear headphones where echo
    cancellation is not installed. Ctrl-C ends it.

    [bold]Examples[/bold]
      csm duplex --model kyutai/moshiko-mlx-q4
      csm convert kyutai/moshika-mlx-bf16 weights/moshika-q4 -q
      csm duplex --model moshika-q4 --echo headphones --seconds 300
      csm duplex --model moshika-q4 --input user.wav --output moshi.wav --temp 0 --tokens moshi.safetensors
      csm duplex --model hibiki-2b --condition description=very_good --input rede.wav --output speech.wav
    """
    both = {"top_p": top_p, "min_p": min_p}
    audio = options.given_sampling(temperature=temp, top_k=top_k, **both)
    text = options.given_sampling(
        temperature=temp if text_temp is None else text_temp, top_k=top_k if text_top_k is None else text_top_k, **both
    )
    rules = {"pad_bias": pad_bias, "repetition_penalty": repetition_penalty, "repetition_context": repetition_context}
    if model is None:
        raise typer.BadParameter("name a Moshi, such as kyutai/moshiko-mlx-q4 (4.8 GB)", param_hint="--model")
    _check_rules(rules)
    _check_sound(input, output, tail, seconds, input_device, output_device)
    options.distinct(("--output", output), ("--tokens", tokens), ("--log", log))
    options.results(input, ("--log", log), ("--tokens", tokens))

    from csm_mlx_app import duplexing

    code = duplexing.duplex(
        duplexing.Flags(
            model=model,
            input=input,
            output=output,
            tokens=tokens,
            input_device=input_device,
            output_device=output_device,
            echo=echo.value,
            seconds=seconds,
            tail=tail,
            as_json=as_json,
            log=log,
            seed=seed,
            text_sampling=text,
            audio_sampling=audio,
            conditions=_conditions(condition or []),
            rules=rules,
        )
    )
    if code:
        raise typer.Exit(code)


def _check_rules(rules: dict[str, float]) -> None:
    from csm_mlx.errors import ConfigError
    from csm_mlx.generate.monologue import TextRules

    try:
        TextRules(**rules)  # pyright: ignore[reportArgumentType]
    except ConfigError as error:
        raise typer.BadParameter(str(error)) from None


def _conditions(given: list[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for one in given:
        name, equals, value = one.partition("=")
        if not (name and equals and value) or name in found:
            raise typer.BadParameter(f"{one!r} is no NAME=VALUE, or a name twice", param_hint="--condition")
        found[name] = value
    return found


def _check_sound(
    source: Path | None,
    target: Path | None,
    tail: float | None,
    seconds: float | None,
    input_device: str | None,
    output_device: str | None,
) -> None:
    for flag, value, least in (("--seconds", seconds, 0.08), ("--tail", tail, 0.0)):
        if value is not None and not least <= value < float("inf"):
            raise typer.BadParameter(f"{value:g} s, expected {least:g} or more and finite", param_hint=flag)
    if source is None:
        for flag, value in (("--output", target), ("--tail", tail)):
            if value is not None:
                raise typer.BadParameter("it goes with --input FILE", param_hint=flag)
        return
    for flag, value in (("--input-device", input_device), ("--output-device", output_device)):
        if value is not None:
            raise typer.BadParameter("a file runs without devices; leave it or --input out", param_hint=flag)
    options.existing_file(source, "--input")
    if target is not None:
        options.sound_target(str(target), "--output")
        options.apart(source, target, "--output")
