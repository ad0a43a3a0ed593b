"""Manifests: all that is wrong is told at once, by line, before anything is trained."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.models import random_csm
from support.training import tone, write_endless_wav

from csm_mlx.audio import write_audio
from csm_mlx.errors import ConfigError, ManifestError
from csm_mlx.generate.session import Csm
from csm_mlx.train import Example, hold_out, read_manifest

SECOND = 24000


@pytest.fixture(scope="module")
def csm() -> Csm:
    return random_csm()


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    (tmp_path / "clips").mkdir()
    write_audio(tmp_path / "clips/a.wav", tone(SECOND), SECOND)
    write_audio(tmp_path / "clips/b.flac", tone(2 * SECOND, 1), SECOND)
    write_audio(tmp_path / "cd.wav", tone(44100), 44100)
    write_audio(tmp_path / "silent.wav", np.full(SECOND, 1e-4, np.float32), SECOND)
    click = np.zeros(SECOND, np.float32)
    click[7] = 0.1
    write_audio(tmp_path / "click.wav", click, SECOND)
    write_audio(tmp_path / "short.wav", tone(1000), SECOND)
    (tmp_path / "noise.wav").write_bytes(b"this is no sound")
    write_endless_wav(tmp_path / "hour.wav", 3600)
    return tmp_path


def write(folder: Path, *lines: Any) -> Path:
    path = folder / "clips.jsonl"
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines), "utf-8")
    return path


def turn(audio: str | None = "clips/a.wav", text: str = "Hi!", speaker: Any = 0, **extra: Any) -> dict[str, Any]:
    return {"speaker": speaker, "text": text, **({} if audio is None else {"audio": audio}), **extra}


def test_a_good_manifest(csm: Csm, clips: Path) -> None:
    context = [turn(None, "How was it?", 1), turn("clips/b.flac", "And?", 1)]
    last = json.dumps(turn("clips/b.flac", "Fine,\u2028fine.", 1), ensure_ascii=False)  # no end of a line
    path = write(clips, "\ufeff" + json.dumps(turn(context=context)), "", last)
    manifest = read_manifest(path, csm, speakers=[0, 1])
    first, second = manifest.examples
    assert first.where == "clips.jsonl:1"
    assert second.where == "clips.jsonl:3"
    assert first.text == "Hi!"
    n_text = len("[1]How was it?") + 2
    assert first.turn_rows == (n_text, len("[1]And?") + 2 + 25 + 1, len("[0]Hi!") + 2 + 13 + 1)
    assert first.n_frames == 14
    assert manifest.clips_by_speaker == {0: 1, 1: 1}
    assert manifest.seconds_by_speaker == {0: 1.0, 1: 2.0}
    assert manifest.cache_folder == clips / ".csm-cache"
    assert not manifest.warnings


BAD = [
    ("{", "no JSON"),
    ('{"text": "\\ud800"}', "holds half of a character"),
    ("[1]", "expected an object"),
    (turn("gone.wav"), "gone.wav is missing"),
    (turn("cd.wav"), "is at 44100 Hz, the codec takes 24000 Hz; convert it with 'ffmpeg -i cd.wav -ar 24000"),
    (turn(text="  "), "text is empty"),
    (turn("silent.wav"), "silent.wav is silent"),
    (turn("click.wav"), "click.wav is silent"),
    (turn("hour.wav"), "hour.wav is 3600.0 s long, expected at most"),
    (turn("short.wav"), "short.wav is 0.04 s long, expected at least 0.08 s"),
    (turn("noise.wav"), "cannot read"),
    (turn(speaker=7), "speaker 7 is unknown, expected one of 0, 1"),
    (turn(speaker=-1), "speaker is -1, expected a whole number from 0 on"),
    (turn(speaker=True), "speaker is bool True, expected int"),
    (turn(speaker="Anna"), "speaker is str 'Anna', expected int"),
    (turn(speeker=1), "unknown field 'speeker'; did you mean 'speaker'?"),
    ({"speaker": 0, "text": "Hi!"}, "lacks the field 'audio'"),
    (turn(""), "audio is empty"),
    (turn("a" * 300), "aaa: File name too long; expected the path of a clip"),
    (turn("clips"), "is no regular file"),
    (turn(context=[turn("nowhere.wav", "So?")]), "nowhere.wav is missing"),
    (turn(context=[turn(None, "")]), "text is empty"),
    (turn(context=[{"text": "So?"}]), "turn.context[0] lacks the field 'speaker'"),
    (turn(context="So?"), "turn.context is 'So?', expected a list"),
    (turn(text="a" * 600), "take 619 positions, at most 512 are there"),
]


def test_all_that_is_wrong_is_told_by_line(csm: Csm, clips: Path) -> None:
    path = write(clips, turn(), *(line for line, _ in BAD))
    with pytest.raises(ManifestError) as raised:
        read_manifest(path, csm, speakers=[0, 1])
    problems = str(raised.value).splitlines()
    assert len(problems) == len(BAD)
    for number, (problem, (_, expected)) in enumerate(zip(problems, BAD, strict=True), 2):
        assert problem.startswith(f"{path}:{number}: ")
        assert expected in problem


def test_one_line_can_have_many_problems(csm: Csm, clips: Path) -> None:
    path = write(clips, turn("gone.wav", " ", 9, mood="glad"))
    with pytest.raises(ManifestError) as raised:
        read_manifest(path, csm, speakers=[0, 1])
    assert len(str(raised.value).splitlines()) == 4


def test_the_first_fifty_problems_and_a_count(csm: Csm, clips: Path) -> None:
    path = write(clips, *["{"] * 53)
    with pytest.raises(ManifestError) as raised:
        read_manifest(path, csm)
    lines = str(raised.value).splitlines()
    assert len(lines) == 51
    assert lines[-1].endswith("3 more problems like these")


@pytest.mark.parametrize(
    ("data", "message"), [(b"", "no examples"), (b"\n \n", "no examples"), (b"\xff\xfe\x00", "no UTF-8 text")]
)
def test_a_file_that_is_no_manifest(csm: Csm, tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "m.jsonl").write_bytes(data)
    with pytest.raises(ManifestError, match=message):
        read_manifest(tmp_path / "m.jsonl", csm)
    with pytest.raises(ManifestError, match="cannot read"):
        read_manifest(tmp_path / "gone.jsonl", csm)


def test_other_rates_on_request_and_limits_of_length(csm: Csm, clips: Path) -> None:
    path = write(clips, turn("cd.wav"))
    (example,) = read_manifest(path, csm, resample=True).examples
    assert example.turns[-1].clip
    assert example.turns[-1].clip.n_frames == 13
    with pytest.raises(ManifestError, match=r"at most 0\.5 s"):
        read_manifest(path, csm, resample=True, max_s=0.5)
    with pytest.raises(ManifestError, match=r"at least 3\.00 s"):
        read_manifest(path, csm, resample=True, min_s=3.0)
    with pytest.raises(ManifestError, match="at most 20"):
        read_manifest(path, csm, resample=True, max_rows=20)


def test_a_line_twice_is_a_warning(csm: Csm, clips: Path) -> None:
    manifest = read_manifest(write(clips, turn(), turn(text="Ho!"), turn(), turn()), csm)
    assert len(manifest.examples) == 4
    assert [w.split(": ", 1)[1] for w in manifest.warnings] == ["the same speaker, text and audio as line 1"] * 2


def test_what_is_held_out_depends_on_the_text_alone(csm: Csm, clips: Path) -> None:
    examples = read_manifest(write(clips, *(turn(text=f"Text {i}.") for i in range(60))), csm).examples
    training, validation = hold_out(examples, 0.25)
    assert len(training) + len(validation) == 60
    assert 5 < len(validation) < 25

    def texts(held: list[Example]) -> set[str]:
        return {example.text for example in held}

    assert texts(hold_out(examples[10:], 0.25)[1]) == texts(validation) - {e.text for e in examples[:10]}
    for share in (0.0, 1.0, -1.0, 1e-9):
        with pytest.raises(ConfigError, match="share"):
            hold_out(examples, share)
