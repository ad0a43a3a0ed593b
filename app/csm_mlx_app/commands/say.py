"""`csm say`: text in, speech out, sentence by sentence as the words arrive."""

import math
from pathlib import Path
from typing import Annotated

import typer

from csm_mlx_app import console, options, outputs, prompt, script


def say(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="TEXT", show_default=False, help="What to say; without it, --file or what is piped in."),
    ] = None,
    file: Annotated[
        Path | None, typer.Option("--file", "-f", metavar="FILE", help="Read the text from a file; - is a pipe.")
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
            help="Write .wav, .flac or .mp3, by its ending; - streams wav to stdout. An older file is replaced.",
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
            metavar="S", rich_help_panel=options.SAMPLING, help="Stop after so many seconds of sound, in the whole."
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
    """
    given = options.given_sampling(temperature=temp, top_k=top_k, top_p=top_p, min_p=min_p)
    if max_seconds is not None and not 0 < max_seconds < math.inf:
        raise typer.BadParameter(f"{max_seconds:g} is not above 0 and finite", param_hint="--max-seconds")
    if out == "-" and as_json:
        raise typer.BadParameter("both would write to stdout; name a file with -o", param_hint="--json")
    prompt.check_voice(voice, voice_text)
    sentences = script.read_script(words or [], file, verbatim)
    turns = prompt.read_turns(context, "--context") if context else []
    if codes is not None:
        options.writable(codes, "--codes")
        if out is not None:
            options.apart(Path(out), codes, "--codes")
    alone = out is None and codes is None
    sinks = outputs.Outputs(out, "yes" if play else "if-possible" if play_if_possible or alone else "no", or_file=alone)

    from csm_mlx_app import loading, speaking

    csm = loading.load(model, adapter=adapter, speaks=True)
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
    spoken = speaking.Spoken(csm, seed)
    try:
        with sinks.open(csm.sample_rate_hz):
            spoken.speak(session, sentences, speaker or 0, max_seconds, sinks)
    except KeyboardInterrupt:
        spoken.interrupted = True
    except Exception:
        spoken.failed = True
        raise
    finally:  # whatever stopped it, what was made is kept and accounted for
        if spoken.n_frames or spoken.interrupted:
            spoken.tell(sinks)
        if spoken.n_frames and codes is not None:
            spoken.write_codes(codes)
    if not spoken.sentences and not spoken.interrupted:
        raise typer.BadParameter(script.NOTHING)
    if as_json:
        console.data(spoken.report(sinks.out))
    if tour:
        spoken.tour(sinks)
    if spoken.interrupted:
        raise typer.Exit(130)
