"""`csm evaluate`: how well a checkpoint speaks, as numbers."""

from pathlib import Path
from typing import Annotated

import typer

from csm_mlx_app import console, options, prompt


def evaluate(
    sentences: Annotated[
        Path,
        typer.Argument(metavar="SENTENCES.txt", help="What to say, one sentence per line; empty lines are skipped."),
    ],
    whisper: Annotated[
        str,
        typer.Option(
            "--whisper",
            metavar="NAME|FOLDER",
            help="The whisper that listens: a name that faster-whisper knows, or a folder.",
        ),
    ] = "tiny.en",
    quality: Annotated[
        bool, typer.Option("--quality", help="Judge the sound too: DNSMOS, 1 to 5, by speechmos.")
    ] = False,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, metavar="N", help="Only the first N sentences.")
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(metavar="PNG", rich_help_panel=options.OUTPUT, help="Draw the errors, sentence by sentence."),
    ] = None,
    as_json: options.Json = False,
    model: options.Model = None,
    adapter: options.Adapter = None,
    voice: options.Voice = None,
    voice_text: options.VoiceText = None,
    speaker: options.Speaker = None,
    seed: options.Seed = 0,
    temp: options.Temp = None,
    top_k: options.TopK = None,
    top_p: options.TopP = None,
    min_p: options.MinP = None,
) -> None:
    """Measure how well a checkpoint speaks.

    It says each sentence on its own; whisper writes down what it hears.
    Prints the word error rate, speaking rate, pitch, early and missing ends
    and the real-time factor.

    [bold]Examples[/bold]
      csm evaluate sentences.txt
      csm evaluate sentences.txt --model csm-1b-q4 --quality --plot errors.png
      csm evaluate sentences.txt --adapter adapters/anna
      csm evaluate sentences.txt --temp 0 --json > greedy.json
    """
    given = options.given_sampling(temperature=temp, top_k=top_k, top_p=top_p, min_p=min_p)
    prompt.check_voice(voice, voice_text)
    lines = _read(options.existing_file(sentences, "SENTENCES.txt"))[:limit]
    if plot is not None:
        options.png(plot, "--plot")

    from csm_mlx_app import evaluating

    result = evaluating.run(
        lines,
        model=model,
        adapter=adapter,
        voice=voice,
        voice_text=voice_text,
        speaker=speaker,
        given=given,
        seed=seed,
        whisper=whisper,
        quality=quality,
    )
    if plot is not None:
        evaluating.draw(result, plot)
    if as_json:
        console.data(result.to_dict())
    else:
        evaluating.show(result)


def _read(path: Path) -> list[str]:
    lines = [line.strip() for line in path.read_text(encoding="utf-8-sig", errors="replace").splitlines()]
    if not any(lines):
        raise typer.BadParameter(f"{path} holds no sentence, expected one per line", param_hint="SENTENCES.txt")
    return [line for line in lines if line]
