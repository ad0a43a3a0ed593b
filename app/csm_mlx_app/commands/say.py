"""`csm say`: text in, speech out, sentence by sentence as the words arrive."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from csm_mlx_app import console, options, outputs, prompt, script

if TYPE_CHECKING:
    from csm_mlx_app.speaking import Spoken


def say(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="TEXT", show_default=False, help="What to say; without it, --file or what is piped in."),
    ] = None,
    file: Annotated[
        Path | None, typer.Option("--file", "-f", metavar="FILE", help="Read the text from a file; - is a pipe.")
    ] = None,
    batch: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Speak every line of --file on its own, N at a time, into the files of -o; a rerun makes what is "
            "missing or changed.",
        ),
    ] = None,
    verbatim: Annotated[
        bool, typer.Option("--verbatim", help="Speak the text as it stands: numbers, times, brackets and all.")
    ] = False,
    out: Annotated[
        str | None,
        typer.Option(
            "--out",
            "-o",
            metavar="FILE",
            rich_help_panel=options.OUTPUT,
            help="Write .wav, .flac or .mp3, by its ending; - streams wav to stdout. An older file is replaced. With "
            "--batch also a folder: 0001.wav and on, and index.jsonl.",
        ),
    ] = None,
    play: Annotated[
        bool,
        typer.Option(
            "--play",
            rich_help_panel=options.OUTPUT,
            help="Play while it is made. Without --play, -o and --codes: plays, or where that is impossible writes "
            "out.wav, or out-2.wav if that is there.",
        ),
    ] = False,
    play_if_possible: Annotated[
        bool,
        typer.Option(
            "--play-if-possible",
            rich_help_panel=options.OUTPUT,
            help="As --play, but go on without a loudspeaker where there is none.",
        ),
    ] = False,
    output_device: options.OutputDevice = None,
    codes: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            rich_help_panel=options.OUTPUT,
            help="Write the codes, for csm codec decode: safetensors, tensor `codes`, int32 (frames, codebooks).",
        ),
    ] = None,
    as_json: options.Json = False,
    model: options.Model = None,
    adapter: options.Adapter = None,
    voice: options.Voice = None,
    voice_text: options.VoiceText = None,
    speaker: options.Speaker = None,
    context: options.Context = None,
    seed: options.Seed = 0,
    temp: options.Temp = None,
    top_k: options.TopK = None,
    top_p: options.TopP = None,
    min_p: options.MinP = None,
    max_seconds: Annotated[
        float | None,
        typer.Option(
            metavar="S",
            rich_help_panel=options.SAMPLING,
            help="Stop after so many seconds of sound, in the whole; with --batch in each line.",
        ),
    ] = None,
    tour: Annotated[bool, typer.Option("--tour", hidden=True)] = False,
) -> None:
    """Speak a text, from the first words on.

    Long text is split into sentences; each is spoken with those before it
    as context. Ctrl-C keeps what was made.

    [bold]Examples[/bold]
      csm say "Hello there, how are you today?"
      csm say "It is 3:45 pm." -o time.mp3 --model csm-1b-q4 --voice anna
      csm say -f story.txt -o story.wav --play --seed 7
      csm say "In the voice that I trained." --adapter adapters/anna
      llm "Tell me a joke" | csm say
      csm say "Nice to meet you." -v me.wav --voice-text "What I say in me.wav."
      csm say "Stream me." -o - | ffplay -nodisp -autoexit -i -
      csm say -f lines.txt --batch 8 -o lines
      csm say -f lines.txt --batch 8 -o story.wav

    With --batch no line is context of another. What an interrupted run made
    is kept; the same command makes the rest. Several processes, or several
    Macs, share the lines; -o must be where all see it, such as on NFS:
      mlx.launch -n 2 -- csm say -f lines.txt --batch 4 -o lines
      mlx.launch --hosts IP,IP -- csm say -f lines.txt --batch 8 -o story.wav
    """
    given = options.given_sampling(temperature=temp, top_k=top_k, top_p=top_p, min_p=min_p)
    if max_seconds is not None and not 0 < max_seconds < math.inf:
        raise typer.BadParameter(f"{max_seconds:g} is not above 0 and finite", param_hint="--max-seconds")
    if out == "-" and as_json:
        raise typer.BadParameter("both would write to stdout; name a file with -o", param_hint="--json")
    prompt.check_voice(voice, voice_text)
    if batch is not None:
        from csm_mlx_app.batch import Job, refuse, say_batch

        refuse({"--play": play, "--play-if-possible": play_if_possible, "--output-device": output_device})
        refuse({"--codes": codes, "--context": context})
        job = Job(out, batch, model, adapter, voice, voice_text, speaker, seed, given, max_seconds)
        raise typer.Exit(say_batch(job, words or [], file, verbatim, as_json))
    sentences = script.read_script(words or [], file, verbatim)
    turns = prompt.read_turns(context, "--context") if context else []
    sinks = _sinks(out, codes, play, play_if_possible, output_device)

    from csm_mlx_app import loading, speaking

    started = time.perf_counter()
    csm = loading.load(model, adapter=adapter, speaks=True)
    load_s = time.perf_counter() - started
    frame_s = csm.frame_size / csm.sample_rate_hz
    if max_seconds is not None and max_seconds < frame_s:
        raise typer.BadParameter(f"{max_seconds:g} is less than a frame of {frame_s:g} s", param_hint="--max-seconds")
    session = csm.session(seed=seed, sampling=options.sampling(csm.config.sampling, given))
    if voice is not None:
        reference = prompt.load_voice(csm, voice, voice_text, speaker)
        session.add(reference, reference=True)
        speaker = reference.speaker
    for turn in turns:
        session.add(prompt.load_turn(turn, csm.sample_rate_hz))
    spoken = speaking.Spoken(csm, seed, load_s)
    with _accounted(spoken, sinks, codes), sinks.open(csm.sample_rate_hz):
        spoken.speak(session, sentences, speaker or 0, max_seconds, sinks)
    if not spoken.sentences and not spoken.interrupted:
        raise typer.BadParameter(script.NOTHING)
    if as_json:
        console.data(spoken.report(sinks.out))
    if tour:
        spoken.tour(sinks)
    if spoken.interrupted:
        raise typer.Exit(130)


def _sinks(out: str | None, codes: Path | None, play: bool, if_possible: bool, device: str | None) -> outputs.Outputs:
    """Where the sound goes; what cannot be written is refused, the codes too. Naming a loudspeaker is --play."""
    if codes is not None:
        options.writable(codes, "--codes")
        if out is not None:
            options.apart(Path(out), codes, "--codes")
    alone = out is None and codes is None
    aloud = "yes" if play or device else "if-possible" if if_possible or alone else "no"
    return outputs.Outputs(out, aloud, alone, device)


@contextmanager
def _accounted(spoken: "Spoken", sinks: outputs.Outputs, codes: Path | None) -> Iterator[None]:
    """Whatever stops the speaking, what was made is kept and accounted for."""
    try:
        yield
    except KeyboardInterrupt:
        spoken.interrupted = True
    except Exception:
        spoken.failed = True
        raise
    finally:
        if spoken.n_frames or spoken.interrupted:
            spoken.tell(sinks)
        if spoken.n_frames and codes is not None:
            spoken.write_codes(codes)
