"""`csm train` on the embedded voice: from clips to an adapter that speaks, through every interruption."""

import json
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

import csm_mlx
from csm_mlx.lora import AdapterConfig
from csm_mlx.train.config import DEFAULT_EPOCHS, LEARNING_RATES, TrainConfig

SENTENCES = ("Good morning.", "It is late.", "Where is the key?", "I like tea.", "Come in, please.")
FLAGS = ("--steps", "10", "--batch", "2", "--lr", "0.01", "--warmup", "1", "--seed", "3")


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> Path:
    """A manifest of what the embedded voice says, a semitone higher."""
    folder = tmp_path_factory.mktemp("clips")
    csm = csm_mlx.load()
    lines = []
    for number, text in enumerate(SENTENCES):
        pcm = np.concatenate(list(csm.session(seed=number).speak(text, speaker=number % 2)))
        higher = np.interp(np.arange(0, len(pcm) - 1, 1.06), np.arange(len(pcm)), pcm)
        soundfile.write(folder / f"{number}.wav", higher, csm.sample_rate_hz)
        lines.append({"speaker": number % 2, "text": text, "audio": f"{number}.wav"})
    (folder / "clips.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder / "clips.jsonl"


@pytest.fixture(scope="module")
def trained(tmp_path_factory, clips, environment):
    """(folder it ran in, numbers, talk) of a training that nothing disturbed."""
    folder = tmp_path_factory.mktemp("trained")
    done = csm(folder, environment, "train", clips, "-o", "adapters/anna", *FLAGS, "--json")
    assert done.returncode == 0, done.stderr
    return folder, json.loads(done.stdout), done.stderr


def csm(folder: Path, environment, *arguments, before: str = "true") -> subprocess.CompletedProcess:
    """csm in `folder`, after a line of shell."""
    line = [f'{before}; exec "$@"', "-", sys.executable, "-m", "csm_mlx_app", *map(str, arguments)]
    return subprocess.run(
        ["bash", "-c", *line], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def test_what_a_training_says_and_leaves(trained, clips):
    folder, numbers, talk = trained
    assert re.search(r"clips: 5, \d\.\d s \(speaker 0: 3, .* s; speaker 1: 2, .* s\)", talk)
    assert "training: lora of rank 8 on csm-tiny, 0.19 million weights, 10 steps of 2 clips" in talk
    assert re.search(r"memory: .* MB expected at the peak, of .* GB here \(weights .* MB, .* activations .* MB\)", talk)
    assert len(re.findall(r"^step \d+/10  loss [\d.]+  lr .*e-.*(steps/s|s a step)  0:\d\d left$", talk, re.M)) == 10
    assert "trained after 10 of 10 steps" in talk
    assert 'next: csm say "Hello there." --adapter adapters/anna' in talk
    assert "or: csm fuse adapters/anna -o weights/anna" in talk

    assert (numbers["stopped"], numbers["steps"], numbers["best_step"]) == ("done", 10, None)
    assert numbers["config"]["seed"] == 3
    assert numbers["clips_by_speaker"] == {"0": 3, "1": 2}
    losses = [point["losses"]["first"] for point in numbers["curve"]]
    assert np.mean(losses[-4:]) < 0.9 * np.mean(losses[:4])
    assert (
        numbers["memory"]["total_bytes"] / 1.5 < numbers["peak_memory_bytes"] < 1.5 * numbers["memory"]["total_bytes"]
    )
    made = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert made == {f"adapters/anna/{name}" for name in ("adapter_config.json", "adapters.safetensors")} | {
        f"adapters/anna.training/{name}" for name in ("curves.png", "state.safetensors")
    }
    assert (folder / "adapters/anna.training/curves.png").read_bytes().startswith(b"\x89PNG")
    assert {path.suffix for path in clips.parent.iterdir()} == {".wav", ".jsonl", ""}
    assert len(list((clips.parent / ".csm-cache").iterdir())) == len(SENTENCES)


def test_the_adapter_speaks(call, trained, load_codes, greedy_codes):
    adapter = trained[0] / "adapters" / "anna"
    said = call("say", SENTENCES[3], "--temp", "0", "--codes", "a.safetensors", "--adapter", adapter)
    assert said.code == 0, said.err
    assert not np.array_equal(load_codes("a.safetensors"), greedy_codes(SENTENCES[3]))


def test_an_interrupted_training_goes_on_to_the_same_weights(start, call, tmp_path, trained, clips):
    command = ("train", str(clips), "-o", "adapters/anna", *FLAGS)
    process = start(*command)
    talk = b""
    while b"step 2/10" not in talk:
        assert process.poll() is None
        talk += process.stderr.readline()
    process.send_signal(signal.SIGINT)
    _, rest = process.communicate(timeout=60)
    assert process.returncode == 130
    assert re.search(rb"interrupted after \d+ of 10 steps", rest)
    resuming = re.search(r"to go on: csm (train .* --resume)", rest.decode())
    assert resuming
    again = call(*command)
    assert again.code == 1
    assert "--resume" in again.err
    other = call(*command[:-1], "4", "--resume")
    assert other.code == 1
    assert "seed is 4, it had 3" in other.err

    assert call(*resuming[1].split()).code == 0
    weights = "adapters/anna/adapters.safetensors"
    assert (tmp_path / weights).read_bytes() == (trained[0] / weights).read_bytes()


def test_every_bad_clip_is_named_before_anything_starts(call, tmp_path, tone):
    soundfile.write(tmp_path / "slow.wav", np.sin(np.arange(8000) / 9), 8000)
    soundfile.write(tmp_path / "silent.wav", np.zeros(24_000), 24_000)
    soundfile.write(tmp_path / "hour.wav", np.zeros(1000 * 3600, np.int16), 1000)
    bad = [("nowhere.wav", "What?", 0), ("slow.wav", "Slow.", 0), ("silent.wav", "Hush.", 0), ("hour.wav", "Long.", 0)]
    bad += [(str(tone), " ", 0), (str(tone), "Who?", 7)]
    lines = [json.dumps({"speaker": n, "text": text, "audio": audio}) for audio, text, n in bad]
    (tmp_path / "bad.jsonl").write_text("\n".join(lines))
    (tmp_path / "held.jsonl").write_text("{no json")
    flags = ("--speaker", "0", "--speaker", "1", "--validation", "held.jsonl")
    result = call("train", "bad.jsonl", "-o", "anna", *flags)
    assert (result.code, result.text) == (1, "")
    errors = [line.removeprefix("error: ") for line in result.err.splitlines()]
    assert [error.split(": ")[0] for error in errors] == [f"bad.jsonl:{n}" for n in range(1, 7)] + ["held.jsonl:1"]
    for error, said in zip(
        errors, ("nowhere.wav", "8000 Hz", "silent", "3600.0 s", "text is empty", "speaker 7", "no JSON"), strict=True
    ):
        assert said in error
    assert not (tmp_path / "anna").exists()
    assert not list(tmp_path.glob(".csm-cache"))


def test_a_full_disk_leaves_the_earlier_adapter(tmp_path, trained, clips, environment):
    shutil.copytree(trained[0] / "adapters", tmp_path / "adapters")
    before = {path: path.read_bytes() for path in (tmp_path / "adapters" / "anna").iterdir()}
    flags = ("-o", "adapters/anna", *FLAGS, "--steps", "2", "--force")
    full = csm(tmp_path, environment, "train", clips, *flags, before="ulimit -f 600")
    assert full.returncode == 1, full.stderr
    assert re.search(r"error: cannot write .*state.safetensors.* the file may not grow so large here", full.stderr)
    assert {path: path.read_bytes() for path in (tmp_path / "adapters" / "anna").iterdir()} == before
    assert not [path for path in (tmp_path / "adapters").rglob("*") if "part" in path.name]


def test_a_dry_run_only_counts(call, tmp_path, clips):
    folder = shutil.copytree(clips.parent, tmp_path / "clips", ignore=lambda *_: [".csm-cache"])
    flags = ("--method", "dora", "--rank", "2", "--target", "backbone.*.q_proj", "--validation", "0.5", "--dry-run")
    result = call("train", folder / clips.name, *flags, "--json")
    assert result.code == 0, result.err
    numbers = json.loads(result.text)
    assert numbers["clips"] + numbers["validation_clips"] == len(SENTENCES)
    q_proj = 4 * (2 * (256 + 256) + 256)
    assert numbers["trainable_weights"] == q_proj
    assert "to validate on" in result.err
    assert not (folder / ".csm-cache").exists()
    begun = call("train", folder / clips.name, "-o", "anna", "--resume")
    assert begun.code == 1
    assert "there is no training to resume at" in begun.err
    nothing = call("train", folder / clips.name, "--target", "backbone.*.no_proj", "--dry-run")
    assert nothing.code == 1
    assert "the target 'backbone.*.no_proj' names no layer" in nothing.err


def test_the_help_states_the_defaults(call):
    text = call("train", "--help").text
    config, adapter = TrainConfig(), AdapterConfig()
    stated = {
        "--epochs": DEFAULT_EPOCHS,
        "--batch": config.batch,
        "--accumulate": config.accumulate,
        "--warmup": config.warmup,
        "--save-every": config.save_every,
        "--rank": adapter.rank,
        "--alpha": f"{adapter.alpha:g}",
        "--dropout": f"{adapter.dropout:g}",
        "--lr": f"{LEARNING_RATES['lora']:g}, full {LEARNING_RATES['full']:.5f}",
    }
    for flag, value in stated.items():
        (line,) = re.findall(rf"^│ {flag} .*", text, re.M)
        assert f"[default: ({value})]" in line
    assert (config.validate_every, config.patience, config.seed) == (None, None, 0)
