"""`csm say` with the embedded voice: words in, sound out, in every form and through every interruption."""

import json
import os
import re
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from csm_mlx.stored import preset

RANDOM = Path(__file__).parents[1] / "golden" / "random"
"""Random weights, which mind the seed and all that precedes; the embedded voice is nearly sure of every code."""
SENTENCES = "Hello there, how are you today? It is 3:45 pm. I am fine (really)."


def test_a_text_becomes_a_file_codes_and_numbers(run, tmp_path, load_codes):
    result = run("say", SENTENCES, "-o", "a.wav", "--codes", "a.safetensors", "--json", "--seed", "3")
    assert result.code == 0, result.err
    numbers = json.loads(result.text)
    sound = soundfile.info(tmp_path / "a.wav")
    codes = load_codes("a.safetensors")

    assert (sound.samplerate, sound.channels, sound.subtype) == (24_000, 1, "PCM_16")
    assert sound.duration == pytest.approx(numbers["sound_s"])
    assert 1.5 < sound.duration < 20
    assert codes.dtype == np.int32
    assert codes.shape == (numbers["frames"], preset("csm-tiny").csm.n_codebooks)
    assert numbers["sentences"][0]["text"] == "Hello there, how are you today?"
    assert len(numbers["sentences"]) == 3
    assert "3:45" not in numbers["sentences"][1]["text"]
    assert "(" not in numbers["sentences"][2]["text"]
    assert all(s["stop"] == "end" for s in numbers["sentences"])
    assert numbers["frames"] == sum(s["n_frames"] for s in numbers["sentences"])
    assert numbers["real_time_factor"] == pytest.approx(numbers["work_s"] / numbers["sound_s"])
    assert 0 < numbers["first_audio_s"] < numbers["work_s"]
    assert numbers["peak_memory_bytes"] > 10e6
    assert numbers["seed"] == 3
    assert numbers["output"] == "a.wav"
    assert re.search(r"s of sound in .* real-time factor .* first audio after .* -> a.wav", result.err)


def test_the_same_seed_gives_the_same_sound_and_the_codec_agrees(run, call, tmp_path):
    (tmp_path / "text.txt").write_text("One two three.")
    model = ("--model", RANDOM)
    flags = (*model, "--max-seconds", "1", "--temp", "0.9")
    first = run("say", "One two three.", "-o", "-", "--seed", "5", *flags)
    again = call("say", "-f", "text.txt", "-o", "again.wav", "--seed", "5", "--codes", "again.safetensors", *flags)
    other = run("say", "--verbatim", "-o", "other.flac", "--seed", "6", *flags, "-", stdin=b"One two three.")
    greedy = call("say", "One two three.", "-o", "greedy.mp3", "--temp", "0")
    decoded = call("codec", "decode", "again.safetensors", "decoded.wav", *model)
    assert {r.code for r in (first, again, other, greedy, decoded)} == {0}

    (tmp_path / "first.wav").write_bytes(first.out)
    sounds = {p.stem: soundfile.read(p)[0] for p in tmp_path.glob("*.*") if p.suffix in (".wav", ".flac", ".mp3")}
    assert np.array_equal(sounds["first"], sounds["again"])
    n = min(len(sounds["other"]), len(sounds["first"]))
    assert not np.array_equal(sounds["other"][:n], sounds["first"][:n])
    assert np.abs(sounds["greedy"]).max() > 0.01
    heard = len(sounds["again"]) - 240  # the last 10 ms are faded
    assert np.allclose(sounds["again"][:heard], sounds["decoded"][:heard], atol=2 / 32768)


def test_a_voice_and_a_conversation_change_what_is_said(call, tmp_path, tone, load_codes):
    assert call("say", "Yes.", "-o", "anna.wav", "--seed", "1").code == 0
    added = call("voices", "add", "anna", "anna.wav", "--text", "Yes.", "--speaker", "1")
    assert added.code == 0, added.err
    turns = [{"speaker": 1, "text": "How was your day?", "audio": "anna.wav"}, {"speaker": 0, "text": "Long."}]
    (tmp_path / "turns.jsonl").write_text("\n".join(map(json.dumps, turns)))
    ways = {
        "plain": (),
        "stored": ("--voice", "anna"),
        "clip": ("--voice", tone, "--voice-text", "A falling tone."),
        "context": ("--context", "turns.jsonl"),
        "speaker": ("--speaker", "1"),
    }
    codes = {}
    for name, flags in ways.items():
        made = ("--codes", f"{name}.safetensors", "--model", RANDOM, "--temp", "0", "--max-seconds", "1")
        result = call("say", "Good.", *made, *flags)
        assert result.code == 0, result.err
        codes[name] = load_codes(f"{name}.safetensors").tobytes()
    assert len(set(codes.values())) == len(codes)
    assert not list(tmp_path.glob("out*.wav")), "with --codes alone no sound is written"


@pytest.mark.skipif(
    sys.platform == "darwin" or Path("/proc/asound/card0").exists(), reason="this machine has a loudspeaker"
)
def test_without_a_loudspeaker_a_file_of_a_free_name_is_written(run, tmp_path):
    (tmp_path / "out.wav").write_bytes(b"mine")
    result = run("say", "Hello.", "--max-seconds", "0.4")
    assert result.code == 0
    assert "note: not played: " in result.err
    assert (tmp_path / "out.wav").read_bytes() == b"mine"
    assert 0 < soundfile.info(tmp_path / "out-2.wav").duration <= 0.4
    demanded = run("say", "Hello.", "--play", "-o", "a.wav")
    assert demanded.code == 1
    assert re.search(r"error: (no loudspeaker|PortAudio is missing)", demanded.err)
    assert not (tmp_path / "a.wav").exists()
    tour = run("say", "Hello.", "-o", "out.wav", "--play-if-possible", "--tour", "--max-seconds", "0.4")
    assert tour.code == 0
    assert soundfile.info(tmp_path / "out.wav").duration > 0
    assert "Try next:" in tour.err
    assert 'say "' in tour.err


def test_a_slow_pipe_is_spoken_sentence_by_sentence(start):
    process = start("say", "-o", "-")
    heard = []
    for sentence in (b"Hello there.", b" How are you?\n"):
        process.stdin.write(sentence)  # no end of file and no next word: the pause alone says that it is complete
        process.stdin.flush()
        heard.append(process.stdout.read(9600))  # 0.2 s of 16-bit sound
    assert heard[0][:4] == b"RIFF"
    assert len(heard[1]) == 9600
    rest, talk = process.communicate(timeout=60)
    assert process.returncode == 0
    assert re.search(rb"s of sound in", talk)
    sound = np.frombuffer(b"".join([*heard, rest])[44:], "<i2")
    assert np.abs(sound).max() > 300


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_keeps_what_was_made(start, tmp_path, load_codes, signal_number):
    (tmp_path / "story.txt").write_text("This is a long story about the sea and the wind. " * 40)
    process = start("say", "-f", "story.txt", "-o", "story.wav", "--codes", "story.safetensors", "--json")
    deadline = time.monotonic() + 60
    while not any(part.stat().st_size > 60_000 for part in tmp_path.glob("story*.part.wav")):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal_number)
    out, talk = process.communicate(timeout=60)

    assert process.returncode == 128 + signal_number
    assert b"Traceback" not in talk
    sound = soundfile.info(tmp_path / "story.wav")
    n_frames = len(load_codes("story.safetensors"))
    assert 1.2 < sound.duration < 60
    assert n_frames * 0.08 == pytest.approx(sound.duration, abs=1.0)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["story.safetensors", "story.txt", "story.wav"]
    if signal_number == signal.SIGINT:
        assert json.loads(out)["interrupted"] is True
        assert b"interrupted, kept: " in talk


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is read-only for root")
def test_a_folder_that_is_read_only_is_refused_before_the_work(run, tmp_path):
    (tmp_path / "closed").mkdir(mode=0o500)
    result = run("say", "Hi.", "-o", "closed/a.wav")
    assert result.code == 2
    assert result.err.startswith("error: ")
    assert "closed is read-only" in result.err


def test_an_older_file_survives_a_failure(run, tmp_path):
    (tmp_path / "a.wav").write_bytes(b"older")
    result = run("say", "word " * 3000, "--verbatim", "-o", "a.wav", "-v", "nobody")
    assert result.code == 1
    assert (tmp_path / "a.wav").read_bytes() == b"older"
