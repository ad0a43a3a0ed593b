"""What precedes the words: the voice to speak with, and the conversation so far, as turns for the session."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from csm_mlx_app import options, places

if TYPE_CHECKING:
    import csm_mlx
    from csm_mlx.voices import Voice, VoiceStore

_EXAMPLE = '{"speaker": 1, "text": "Hi!", "audio": "hi.wav"}'


@dataclass(frozen=True, kw_only=True)
class TurnFile:
    """One line of a `--context` file, checked."""

    speaker: int
    text: str
    audio: Path | None


def read_turns(path: Path, flag: str) -> list[TurnFile]:
    """The turns of a JSON-lines file; paths in it are relative to it. A `CsmError` lists all that is wrong, by line."""
    from csm_mlx.errors import CsmError
    from csm_mlx.jsonl import read_json_lines

    options.existing_file(path, flag)
    turns, problems = [], []
    for number, data in read_json_lines(path, _EXAMPLE, CsmError):
        turn = [data] if isinstance(data, str) else _read_turn(data, path.parent)
        if isinstance(turn, TurnFile):
            turns.append(turn)
        else:
            problems += [f"{path}:{number}: {problem}" for problem in turn]
    if not turns and not problems:
        problems = [f"{path}: no turns in it; expected lines such as {_EXAMPLE}"]
    if problems:
        raise CsmError("\n".join(problems))
    return turns


def _read_turn(data: dict[str, Any], folder: Path) -> TurnFile | list[str]:
    problems = [
        f"unknown field {name!r}; known are speaker, text, audio"
        for name in data
        if name not in ("speaker", "text", "audio")
    ]
    speaker, text, audio = data.get("speaker"), data.get("text"), data.get("audio")
    if type(speaker) is not int or speaker < 0:
        problems.append(f"speaker is {_shown(data, 'speaker')}, expected a whole number from 0")
    if not isinstance(text, str) or not text.strip():
        problems.append(f"text is {_shown(data, 'text')}, expected what was said")
    if audio is not None and not isinstance(audio, str):
        problems.append(f"audio is {_shown(data, 'audio')}, expected the path of a sound file, or none")
    elif audio is not None and not (folder / audio).is_file():
        problems.append(f"audio file {folder / audio} is not there; paths are relative to {folder}")
    if problems:
        return problems
    assert isinstance(speaker, int)
    assert isinstance(text, str)
    return TurnFile(speaker=speaker, text=text, audio=None if audio is None else folder / audio)


def _shown(data: dict[str, Any], name: str) -> str:
    return f"{json.dumps(data[name]):.40}" if name in data else "missing"


def load_turn(file: TurnFile, sample_rate_hz: int) -> "csm_mlx.Turn":
    """The turn with its sound at the codec's rate."""
    import csm_mlx
    from csm_mlx.audio import read_audio

    pcm = None if file.audio is None else read_audio(file.audio, sample_rate_hz)
    return csm_mlx.Turn(speaker=file.speaker, text=file.text, pcm=pcm)


def check_voice(voice: str | None, voice_text: str | None) -> None:
    """Raises wrong usage before anything is loaded."""
    if voice is None:
        if voice_text is not None:
            raise typer.BadParameter(
                "it says what is heard in --voice CLIP.wav, which is missing", param_hint="--voice-text"
            )
        return
    if not is_clip(voice):
        if voice_text is not None:
            raise typer.BadParameter(
                f"{voice} is a stored voice, which has its text; it goes with a clip only", param_hint="--voice-text"
            )
        return
    options.existing_file(Path(voice), "--voice")
    if not (voice_text or "").strip():
        raise typer.BadParameter(
            f'say what is heard in {voice}: --voice-text "…" (the model needs the words of its example)',
            param_hint="--voice",
        )


def is_clip(voice: str) -> bool:
    """A path has a dot or a slash; names of voices never do."""
    return "." in voice or "/" in voice or "\\" in voice


def load_voice(csm: "csm_mlx.Csm", voice: str, voice_text: str | None, speaker: int | None) -> "csm_mlx.Turn":
    """The reference turn of `--voice`: a clip with its text, or a stored voice with its codes."""
    import csm_mlx
    from csm_mlx.audio import read_audio
    from csm_mlx.voices import check_clip

    if is_clip(voice):
        pcm = read_audio(voice, csm.sample_rate_hz)
        check_clip(pcm, csm.sample_rate_hz)
        return csm_mlx.Turn(speaker=speaker or 0, text=voice_text or "", pcm=pcm)
    store, found = find_voice(voice, csm.path)
    return csm_mlx.Turn(
        speaker=found.speaker if speaker is None else speaker,
        text=found.text,
        codes=store.codes(voice, csm.codec, csm.config.csm.n_codebooks),
    )


def voice_stores(checkpoint: Path | None) -> "list[VoiceStore]":
    """The user's voices, then those that came with a checkpoint; the first that knows a name wins."""
    from csm_mlx.checkpoint import files
    from csm_mlx.voices import VoiceStore

    roots = [places.voices()] + ([checkpoint / files.VOICES] if checkpoint else [])
    return [VoiceStore(root) for root in roots]


def find_voice(name: str, checkpoint: Path) -> "tuple[VoiceStore, Voice]":
    """`VoiceError` lists the voices of both places."""
    from csm_mlx.errors import VoiceError
    from csm_mlx.voices import META_FILE

    stores = voice_stores(checkpoint)
    for store in stores:
        if (store.root / name).is_dir():
            return store, store.get(name)
    known = sorted({meta.parent.name for store in stores for meta in store.root.glob(f"*/{META_FILE}")})
    raise VoiceError(
        f"no voice {name!r}; {'there are ' + ', '.join(known) if known else 'none is stored yet'}: "
        f'csm voices add {name} CLIP.wav --text "what it says"'
    )
