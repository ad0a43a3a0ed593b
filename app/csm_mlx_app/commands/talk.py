"""`csm talk`: a conversation by voice, on this machine alone."""

import os
from collections.abc import Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from csm_mlx_app import options, prompt

_CLASHES = (
    ("--text", ("--input", "--input-device", "--asr", "--smart-turn"), "what you type is not heard"),
    ("--input", ("--input-device", "--output-device"), "a file runs on a clock of its own, without devices"),
    ("--output", ("--output-device",), "the answers sound in one place"),
    ("--llm-cmd", ("--llm", "--llm-url"), "one of them answers"),
)
SOUND, TURNS, REPLIES, RECORDS = "Sound", "Turn-taking", "Recognition and replies", "Output"


class Eagerness(str, Enum):
    low = "low"
    medium = "medium"
    high = "high"


class Echo(str, Enum):
    auto = "auto"
    aec = "aec"
    half_duplex = "half-duplex"
    headphones = "headphones"
    off = "off"


def talk(
    context: typer.Context,
    offline: Annotated[
        bool,
        typer.Option(
            "--offline",
            rich_help_panel=REPLIES,
            help="No model hub: the embedded voice, whisper tiny.en and SmolLM2-135M-Instruct, from Python packages; "
            "of models that you name, only what is here already, as with HF_HUB_OFFLINE=1.",
        ),
    ] = False,
    asr: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            rich_help_panel=REPLIES,
            help="What hears you: kyutai, or a checkpoint of its speech-to-text, which is taken where one is in "
            "./weights; or a model of faster-whisper's, such as large-v3-turbo, or a folder; else tiny.en.",
        ),
    ] = None,
    llm: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            rich_help_panel=REPLIES,
            help="What answers: a model for mlx-lm, by hub id or folder, else Qwen3-4B-Instruct-2507 in "
            "4 bits (2.3 GB); `echo` says your words back.",
        ),
    ] = None,
    llm_url: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            rich_help_panel=REPLIES,
            help="Answers from an OpenAI-compatible server, such as http://localhost:1234/v1; --llm names its model.",
        ),
    ] = None,
    llm_cmd: Annotated[
        str | None,
        typer.Option(
            metavar="COMMAND",
            rich_help_panel=REPLIES,
            help="Answers from a command: messages as JSON on its stdin, the reply on its stdout as it is written.",
        ),
    ] = None,
    system: Annotated[
        str | None,
        typer.Option(metavar="TEXT", rich_help_panel=REPLIES, help="Who the assistant is: its system prompt."),
    ] = None,
    text: Annotated[
        bool,
        typer.Option(
            "--text",
            rich_help_panel=SOUND,
            help="Type instead of speaking; where nothing can be played, only read the answers.",
        ),
    ] = False,
    input: Annotated[
        Path | None,
        typer.Option(
            "--input",
            metavar="FILE",
            rich_help_panel=SOUND,
            help="A sound file instead of the microphone. The clock is then simulated: silence passes at once.",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", metavar="FILE.wav", rich_help_panel=SOUND, help="A sound file instead of the loudspeaker."
        ),
    ] = None,
    input_device: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|N",
            rich_help_panel=SOUND,
            help="The microphone: part of its name, or its number in csm devices.",
        ),
    ] = None,
    output_device: Annotated[
        str | None,
        typer.Option(metavar="NAME|N", rich_help_panel=SOUND, help="The loudspeaker, likewise."),
    ] = None,
    echo: Annotated[
        Echo,
        typer.Option(
            metavar="HOW",
            rich_help_panel=TURNS,
            help="How the assistant does not hear itself. aec: cancel its voice in the microphone. half-duplex: "
            "be deaf while it speaks. headphones, off: do nothing. auto: aec while it works well, else half-duplex.",
        ),
    ] = Echo.auto,
    eagerness: Annotated[
        Eagerness,
        typer.Option(
            rich_help_panel=TURNS,
            help="How soon a silence is the end of your turn: after 0.9, 0.5 or 0.2 seconds.",
        ),
    ] = Eagerness.medium,
    smart_turn: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.onnx",
            rich_help_panel=TURNS,
            help="Smart Turn's model, which hears whether you have finished; without it, silence alone decides.",
        ),
    ] = None,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json", rich_help_panel=RECORDS, help="One JSON object per event on stdout, instead of a screen."
        ),
    ] = False,
    log: Annotated[
        Path | None,
        typer.Option(metavar="FILE.jsonl", rich_help_panel=RECORDS, help="Append what was said, a line per turn."),
    ] = None,
    record: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            rich_help_panel=RECORDS,
            help="Keep the sound of both sides. Nothing is recorded without it.",
        ),
    ] = None,
    trace: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.json",
            rich_help_panel=RECORDS,
            help="Who worked when, for chrome://tracing or ui.perfetto.dev.",
        ),
    ] = None,
    model: options.Model = None,
    voice: options.Voice = None,
    voice_text: options.VoiceText = None,
    speaker: options.Speaker = None,
    seed: options.Seed = 0,
    temp: options.Temp = None,
    top_k: options.TopK = None,
    top_p: options.TopP = None,
    min_p: options.MinP = None,
) -> None:
    """Talk with a voice assistant; nothing leaves this machine.

    You speak, and it answers aloud while its answer is still being written.
    Speak over it to interrupt it: it then remembers only what you have heard.
    Nothing is kept of a conversation unless --log or --record asks for it.

    [bold]Keys[/bold]
      space    interrupts it; while it listens, begins and ends push-to-talk
      m, t, q  mutes the microphone; types a turn; quits
      Ctrl-C   once silences it, twice leaves

    [bold]Examples[/bold]
      csm talk --offline
      csm talk --model csm-1b-q4 --voice anna --echo headphones
      csm talk --llm-url http://localhost:11434/v1 --llm llama3.2 --eagerness high
      csm talk --text --system "You are a pirate."
      csm talk --offline --input question.wav --output answer.wav --json
    """
    given = options.given_sampling(temperature=temp, top_k=top_k, top_p=top_p, min_p=min_p)
    prompt.check_voice(voice, voice_text)
    _check_together(context.params)
    _check_files(input, output, (("--log", log), ("--trace", trace)))

    if offline:
        os.environ["HF_HUB_OFFLINE"] = "1"  # before the hub's library is imported, which reads it once

    from csm_mlx.errors import HubError
    from csm_mlx_app import talking

    flags = talking.Flags(
        offline=offline,
        asr=asr,
        llm=llm,
        llm_url=llm_url,
        llm_cmd=llm_cmd,
        system=system,
        text=text,
        input=input,
        output=output,
        input_device=input_device,
        output_device=output_device,
        echo=echo.value,
        eagerness=eagerness.value,
        smart_turn=smart_turn,
        as_json=as_json,
        log=log,
        record=record,
        trace=trace,
        model=model,
        voice=voice,
        voice_text=voice_text,
        speaker=speaker,
        seed=seed,
        sampling=given,
    )
    try:
        code = talking.talk(flags)
    except HubError as error:
        raise HubError(f"{error}; or leave --offline out") if offline else error from None
    if code:
        raise typer.Exit(code)


def _check_together(given: Mapping[str, object]) -> None:
    """Refuses flags of which one would silently do nothing. given: parameter -> value."""
    flags = {f"--{name.replace('_', '-')}": value for name, value in given.items()}
    for one, others, why in _CLASHES:
        for other in others:
            if flags[one] and flags[other]:
                raise typer.BadParameter(f"{why}; leave it or {other} out", param_hint=one)
    if flags["--output"] and not (flags["--input"] or flags["--text"]):
        raise typer.BadParameter(
            "it goes with --input or --text; --record keeps the sound of a spoken conversation", param_hint="--output"
        )


def _check_files(source: Path | None, target: Path | None, texts: Sequence[tuple[str, Path | None]]) -> None:
    if source is not None:
        options.existing_file(source, "--input")
    options.distinct(("--output", target), *texts)
    options.results(source, *texts)
    if target is not None:
        if str(target) == "-":
            raise typer.BadParameter("a conversation needs a file, such as answer.wav", param_hint="--output")
        options.sound_target(str(target), "--output")
        if source is not None:
            options.apart(source, target, "--output")
