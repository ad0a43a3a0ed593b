"""`csm transcribe` on files and pipes: the words are the library's, and what cannot be is told in one line."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from csm_mlx_app import transcribing
from csm_mlx_app.transcribing import Flags
from support import layouts
from support.disk import files_of_at_most
from support.kyutai import write_checkpoint
from support.stt import noise

import csm_mlx
from csm_mlx.audio import read_audio, write_audio
from csm_mlx.generate.reader import Transcript
from csm_mlx.generate.words import Word

RATE_HZ = 24_000


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("stt") / "stt-1b-small", "stt", "candle", wordy=True)


@pytest.fixture(scope="module")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("sounds")
    paths = []
    for i, seconds in enumerate((4.0, 1.5, 2.1)):
        paths.append(folder / f"sound {i}.wav")
        write_audio(paths[-1], noise(seconds, i), RATE_HZ)
    return paths


@pytest.fixture(scope="module")
def expected(checkpoint: Path, sounds: list[Path]) -> list[Transcript]:
    stt = csm_mlx.load_stt(checkpoint)
    return [stt.transcribe(read_audio(path, stt.sample_rate_hz)) for path in sounds]


def objects(transcript: Transcript) -> list[dict]:
    return [
        {"text": w.text, "start_s": round(w.start_s, 3), "stop_s": round(w.stop_s or 0, 3)} for w in transcript.words
    ]


def test_words_are_those_of_the_library(call, checkpoint, sounds, expected, tmp_path) -> None:
    result = call("transcribe", sounds[0], "--model", checkpoint, "--tokens", "tokens.safetensors")
    assert result.code == 0, result.err
    assert result.text.split() == expected[0].text.split()
    assert len(expected[0].words) > 3
    assert "4.0 s of sound in" in result.err
    tensors = mx.load(str(tmp_path / "tokens.safetensors"))
    assert isinstance(tensors, dict)
    assert tensors["text"].dtype == mx.int32
    assert np.array_equal(np.array(tensors["text"]), expected[0].tokens)
    with_json = call("transcribe", sounds[0], "--model", checkpoint, "--json", "-o", "out.srt")
    assert [json.loads(line) for line in with_json.text.splitlines()] == objects(expected[0])
    written = (tmp_path / "out.srt").read_text()
    assert written.startswith("1\n00:00:0")
    assert " ".join(written.split()).count("-->") >= 1
    drawn = call("transcribe", sounds[0], "--model", checkpoint, "--temp", "1", "--seed", "1", "--format", "srt").text
    assert drawn.startswith("1\n00:00:0")
    assert drawn != written


def test_the_checkpoint_of_the_weights_folder_is_the_default(run, checkpoint, sounds, expected, tmp_path) -> None:
    missing = run("transcribe", sounds[0])
    assert missing.code == 1
    assert "no speech-to-text model in ./weights" in missing.err
    assert "csm convert kyutai/stt-1b-en_fr" in missing.err
    layouts.write_own(tmp_path / "weights" / "a-csm", layouts.make_tiny())
    (tmp_path / "weights" / "stt-1b-small").symlink_to(checkpoint)
    result = run("transcribe", "-", stdin=sounds[0].read_bytes())
    assert (result.code, result.text.split()) == (0, expected[0].text.split())
    wrong = run("transcribe", sounds[0], "--model", "a-csm")
    assert wrong.code == 1
    assert "csm say" in wrong.err
    assert len(wrong.err.splitlines()) == 1


def test_several_files_are_heard_at_once(call, checkpoint, sounds, expected, tmp_path) -> None:
    (tmp_path / "broken.wav").write_bytes(b"no sound")
    result = call("transcribe", *sounds[:2], "broken.wav", sounds[2], "--model", checkpoint, "--batch", "3")
    assert result.code == 1
    assert "cannot read broken.wav" in result.err
    assert "3 of 4 files" in result.err
    lines = result.text.splitlines()
    assert [line.split() for line in lines] == [
        f"{path}: {transcript.text}".split() for path, transcript in zip(sounds, expected, strict=True)
    ]
    (tmp_path / "texts").mkdir()
    result = call("transcribe", *sounds, "--model", checkpoint, "-o", "texts", "--format", "vtt", "--json")
    assert result.code == 0
    assert [json.loads(line) for line in result.text.splitlines()] == [
        {"file": str(path), **word} for path, one in zip(sounds, expected, strict=True) for word in objects(one)
    ]
    assert sorted(path.name for path in (tmp_path / "texts").iterdir()) == [f"sound {i}.vtt" for i in range(3)]
    assert (tmp_path / "texts" / "sound 1.vtt").read_text().startswith("WEBVTT\n\n00:00:0")


@pytest.mark.parametrize(
    ("arguments", "code", "why"),
    [
        ((), 2, "nothing to hear: name a sound file, - for stdin, or --mic"),
        (("a.wav", "--mic"), 2, "not both"),
        (("-", "a.wav"), 2, "stdin holds one sound"),
        (("a.wav", "-o", "out.doc"), 2, "expected .txt, .srt or .vtt"),
        (("a.wav", "-o", "nowhere/out.txt"), 2, "mkdir -p"),
        (("a.wav", "b.wav", "-o", "out.txt"), 2, "out.txt is no folder"),
        (("a.wav", "b.wav", "--format", "srt"), 2, "subtitles of several sounds need files"),
        (("a.wav", "b.wav", "--tokens", "t.safetensors"), 2, "keeps those of one sound"),
        (("x/a.wav", "a.mp3", "-o", "."), 2, "several files are called a"),
        (("a.wav", "a.wav"), 2, "a.wav is named twice"),
        (("a.wav", "-o", "x.txt", "--tokens", "x.txt"), 2, "x.txt is what --out writes"),
        (("a.wav", "--json", "--format", "vtt"), 2, "--json has its own form"),
        (("a.wav", "--input-device", "1"), 2, "without a device"),
        (("a.wav", "--temp", "-1"), 2, "expected 0 (greedy) to 10"),
        (("missing.wav",), 1, "missing.wav is missing; expected a sound file"),
        (("--mic",), 1, "microphone"),
    ],
)
def test_what_cannot_be_is_told_in_one_line(call, run, arguments, code, why) -> None:
    # PortAudio knows of this process what devices an earlier test had.
    result = (run if arguments == ("--mic",) else call)("transcribe", *arguments)
    assert (result.code, result.out) == (code, b"")
    assert why in result.err
    assert len(result.err.splitlines()) == 1


def test_sound_that_is_none_is_told(run, checkpoint, tmp_path) -> None:
    write_audio(tmp_path / "a.wav", noise(0.1), RATE_HZ)
    (tmp_path / "empty.wav").write_bytes((tmp_path / "a.wav").read_bytes()[:44])
    for source, stdin, why in (
        ("empty.wav", b"", "holds no samples"),
        ("-", b"", "stdin"),
        ("-", b"no sound at all", "cannot read"),
    ):
        result = run("transcribe", source, "--model", checkpoint, "-o", "out.txt", stdin=stdin)
        assert (result.code, result.out) == (1, b"")
        assert why in result.err
        assert len(result.err.splitlines()) == 1
        assert not (tmp_path / "out.txt").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has a device that is always full")
def test_a_full_disk_is_told(checkpoint, sounds, environment) -> None:
    command = [sys.executable, "-m", "csm_mlx_app", "transcribe", sounds[1], "--model", checkpoint]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, env=environment, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines() == ["error: No space left on device"]


@pytest.mark.parametrize("shown", [False, True])
def test_a_full_disk_costs_neither_an_older_file_nor_the_work(call, checkpoint, sounds, tmp_path, shown) -> None:
    """A limit on the size of files, which fails as a full disk does: the words come on stdout, once."""
    expected = call("transcribe", sounds[0], "--model", checkpoint, "--format", "srt").text
    assert expected.startswith("1\n00:00:0")
    (tmp_path / "out.srt").write_text("before")
    with files_of_at_most(20):
        result = call("transcribe", sounds[0], "--model", checkpoint, "-o", "out.srt", *["--json"] * shown)
    assert result.code == 1
    assert "cannot write out.srt: File too large" in result.err.splitlines()[-1]
    assert (tmp_path / "out.srt").read_text() == "before"
    assert not list(tmp_path.glob(".out*"))
    if shown:
        assert all(json.loads(line)["text"] for line in result.text.splitlines())
    else:
        assert result.text == expected


def test_a_full_disk_stops_none_of_several_files(call, checkpoint, sounds, expected, tmp_path) -> None:
    (tmp_path / "texts").mkdir()
    with files_of_at_most(5):
        result = call("transcribe", *sounds, "--model", checkpoint, "-o", "texts")
    assert result.code == 1
    assert [line.split(":")[0] for line in result.err.splitlines()] == 3 * ["error"] + [result.err.splitlines()[-1]]
    assert result.err.splitlines()[-1].startswith("0 of 3 files")
    assert result.text.split() == [word for transcript in expected for word in transcript.text.split()]
    assert not list((tmp_path / "texts").iterdir())


def test_an_interrupt_leaves_no_file(start, checkpoint, tmp_path) -> None:
    write_audio(tmp_path / "long.wav", noise(240.0), RATE_HZ)
    process = start("transcribe", "long.wav", "--model", str(checkpoint), "--json", "-o", "out.txt")
    assert process.stdout.readline().startswith(b'{"text"'), "words come before the end"
    process.send_signal(signal.SIGINT)
    started = time.monotonic()
    assert process.wait(timeout=30) == 130
    assert time.monotonic() - started < 10
    assert not (tmp_path / "out.txt").exists()


def test_a_sound_in_which_nothing_is_said_has_a_line_of_its_own(capsys) -> None:
    flags = Flags(
        sources=("a", "b"), out=None, format="txt", as_json=False, tokens=None, model=None, seed=0, sampling={},
        input_device=None, batch=2,
    )  # fmt: skip
    for source, words in (("a", ()), ("b", ("Good", "night."))):
        place = transcribing._Place(flags, source)
        for i, word in enumerate(words):
            place.tellers[0].put(Word(text=word, start_s=9.0 * i, stop_s=9.0 * i + 0.3))
        place.end()
    assert capsys.readouterr().out == "a:\nb: Good night.\n"
