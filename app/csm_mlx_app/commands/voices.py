"""`csm voices`: clips with their transcripts, kept under a name."""

from pathlib import Path
from typing import Annotated

import typer

from csm_mlx_app import console, options, places, prompt

app = typer.Typer(rich_markup_mode="rich")

Name = Annotated[
    str,
    typer.Argument(metavar="NAME", autocompletion=options.complete_voice, help="1 to 64 of a-z, 0-9, - and _."),
]


@app.callback(invoke_without_command=True)
def voices(context: typer.Context, model: options.Model = None, as_json: options.Json = False) -> None:
    """List, add and remove the voices that csm say --voice knows.

    Listed are yours and those that came with the checkpoint.

    [bold]Examples[/bold]
      csm voices
      csm voices add anna anna.wav --text "What Anna says in the clip."
      csm say "Hello, it's me." --voice anna
      csm voices rm anna
    """
    if context.invoked_subcommand is not None:
        return
    named = options.resolve_model(model)
    stores = prompt.voice_stores(Path(named) if Path(named).is_dir() else None)
    found = [(store, voice) for store in stores for voice in store.list()]
    if as_json:
        console.data(
            [
                {"name": v.name, "speaker": v.speaker, "seconds": v.seconds, "text": v.text, "path": str(v.path)}
                for _, v in found
            ]
        )
        return
    if not found:
        console.talk(f'no voices in {places.voices()} yet; add one: csm voices add NAME CLIP.wav --text "what it says"')
        return
    rows = [(v.name, v.speaker, f"{v.seconds:.1f} s", str(v.path), v.text) for _, v in found]
    console.table(("name", "speaker", "length", "folder", "text"), rows)


@app.command()
def add(
    name: Name,
    clip: Annotated[Path, typer.Argument(metavar="CLIP", help="5 to 15 s of clean speech of one person.")],
    text: Annotated[str, typer.Option("--text", "-t", metavar="TEXT", help="What the clip says, word for word.")],
    speaker: Annotated[int, typer.Option(min=0, metavar="N", help="Speaker number that this voice speaks as.")] = 0,
    model: options.Model = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a voice of this name.")] = False,
) -> None:
    """Store a clip as a voice, with its codes.

    [bold]Example[/bold]
      csm voices add anna anna.wav --text "What Anna says in the clip."
    """
    from csm_mlx.audio import read_audio
    from csm_mlx.errors import VoiceError
    from csm_mlx_app import loading

    options.existing_file(clip, "CLIP")
    store = prompt.voice_stores(None)[0]
    csm = loading.load(model)
    pcm = read_audio(clip, csm.sample_rate_hz)
    # Every frame takes a position, and the rest has to hold what is said with the voice.
    most_s = csm.config.csm.max_positions // 2 * csm.frame_size / csm.sample_rate_hz
    if (clip_s := len(pcm) / csm.sample_rate_hz) > most_s:
        raise VoiceError(
            f"{clip} lasts {clip_s:.0f} s, a voice may last {most_s:.0f} s and is best at 5 to 15: "
            f"ffmpeg -i {clip} -t 15 shorter.wav"
        )
    voice = store.add(name, pcm, text, csm.codec, speaker=speaker, force=force)
    console.talk(
        f'stored {voice.seconds:.1f} s as {voice.name!r} in {voice.path}; now: csm say "Hello." --voice {name}'
    )


@app.command()
def rm(name: Name) -> None:
    """Forget a voice of yours."""
    prompt.voice_stores(None)[0].remove(name)
    console.talk(f"removed the voice {name!r}")
