"""Sesame's prompt clips (`prompts/*.wav` of sesame/csm-1b) and their words, which make them voices.

The words are those of Sesame's demonstration space (https://huggingface.co/spaces/sesame/csm-1b).
"""

import shutil
from pathlib import Path

from csm_mlx.audio import read_audio
from csm_mlx.checkpoint import files
from csm_mlx.checkpoint.load import load_codec
from csm_mlx.checkpoint.save import write_error
from csm_mlx.checkpoint.source import Source
from csm_mlx.errors import AudioError
from csm_mlx.stored import AnyConfig
from csm_mlx.voices import VoiceStore

TRANSCRIPTS = {
    "conversational_a": (
        "like revising for an exam I'd have to try and like keep up the momentum because I'd start really early I'd be "
        "like okay I'm gonna start revising now and then like you're revising for ages and then I just like start "
        "losing steam I didn't do that for the exam we had recently to be fair that was a more of a last minute "
        "scenario but like yeah I'm trying to like yeah I noticed this yesterday that like Mondays I sort of start "
        "the day with this not like a panic but like a"
    ),
    "conversational_b": (
        "like a super Mario level. Like it's very like high detail. And like, once you get into the park, it just "
        "like, everything looks like a computer game and they have all these, like, you know, if, if there's like a, "
        "you know, like in a Mario game, they will have like a question block. And if you like, you know, punch it, a "
        "coin will come out. So like everyone, when they come into the park, they get like this little bracelet and "
        "then you can go punching question blocks around."
    ),
    "read_speech_a": (
        "And Lake turned round upon me, a little abruptly, his odd yellowish eyes, a little like those of the sea "
        "eagle, and the ghost of his smile that flickered on his singularly pale face, with a stern and insidious "
        "look, confronted me."
    ),
    "read_speech_b": (
        "He was such a big boy that he wore high boots and carried a jack knife. He gazed and gazed at the cap, and "
        "could not keep from fingering the blue tassel."
    ),
    "read_speech_c": (
        "All passed so quickly, there was so much going on around him, the Tree quite forgot to look to himself."
    ),
    "read_speech_d": (
        "Suddenly I was back in the old days Before you felt we ought to drift apart. It was some trick-the way your "
        "eyebrows raise."
    ),
}


def store_voices(source: Source[AnyConfig], folder: Path) -> tuple[list[str], list[str]]:
    """Put the voices of an opened source into a new checkpoint folder: (their names, notes on clips left out)."""
    names, notes = [], []
    if (source.path / files.VOICES).is_dir():
        try:
            shutil.copytree(source.path / files.VOICES, folder / files.VOICES)
        except OSError as error:
            raise write_error(folder / files.VOICES, error) from error
        names += [voice.name for voice in VoiceStore(folder / files.VOICES).list()]
    clips = sorted((source.path / files.PROMPTS).glob("*.wav"))
    wanted = [clip for clip in clips if clip.stem in TRANSCRIPTS and clip.stem not in names]
    notes += [f"{clip.name} is no voice: its words are not known" for clip in clips if clip.stem not in TRANSCRIPTS]
    if wanted:
        store, codec = VoiceStore(folder / files.VOICES), load_codec(source)
        for clip in wanted:
            try:
                pcm = read_audio(clip, source.config.codec.sample_rate_hz)
            except AudioError as error:
                notes.append(f"{clip.name} is no voice: {error}")
                continue
            store.add(clip.stem, pcm, TRANSCRIPTS[clip.stem], codec)
            names.append(clip.stem)
    return sorted(names), notes
