"""`csm duplex` through its real entry point, with a small random Moshi as Kyutai's repositories hold one."""

import json
import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from csm_mlx_app import duplexing
from csm_mlx_app.assistant.duplex import Frame
from csm_mlx_app.assistant.report import Report
from support.disk import files_of_at_most
from support.kyutai import CONDITIONS, write_checkpoint
from support.moshi import hibiki_config, moshi_config, random_conversation
from support.talks import Told

import csm_mlx
from csm_mlx.audio import read_audio, write_audio
from csm_mlx.stored import any_preset

N_FRAMES = 8
LATE = 2
"""Of the checkpoint's delays: its first frame is silence."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("duplex") / "moshi", "moshi", "mlx")


@pytest.fixture
def user(tmp_path) -> np.ndarray:
    """Half a frame longer than whole ones."""
    rng = np.random.default_rng(0)
    pcm = (0.2 * rng.normal(size=1920 * N_FRAMES - 960)).astype(np.float32)
    write_audio(tmp_path / "user.wav", pcm, 24_000)
    return read_audio(tmp_path / "user.wav", 24_000)


def tensors(path: Path) -> dict[str, np.ndarray]:
    held = mx.load(str(path))
    assert isinstance(held, dict)
    return {name: np.array(array) for name, array in held.items()}


def by_the_library(
    folder: Path, user: np.ndarray, conditions: dict[str, str] | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray, str]:
    """Text, codes, sound and written text of the greedy conversation."""
    moshi = csm_mlx.load_moshi(folder)
    text, audio = (replace(s, temperature=0.0) for s in (moshi.config.text_sampling, moshi.config.audio_sampling))
    session = moshi.session(text=text, audio=audio, conditions=conditions)
    ids, codes, pcm, written = [], [], [], ""
    for frame in np.pad(user, (0, -len(user) % 1920)).reshape(-1, 1920):
        said, piece = session.step(frame)
        pcm.append(said)
        ids.append(session.text_ids[0])
        codes.append(session.codes[0])
        written += piece or ""
    return np.array(ids), np.stack(codes), np.concatenate(pcm), written


def test_a_file_is_answered_as_the_library_answers(run, tmp_path, folder, user):
    result = run(
        "duplex", "--model", folder, "--input", "user.wav", "--output", "moshi.wav", "--temp", "0",
        "--tokens", "said.safetensors", "--log", "log.jsonl",
    )  # fmt: skip
    assert result.code == 0, result.err
    ids, codes, pcm, written = by_the_library(folder, user)
    said = tensors(tmp_path / "said.safetensors")
    assert {name: (x.shape, x.dtype) for name, x in said.items()} == {
        "text": ((N_FRAMES,), np.int32),
        "audio": ((N_FRAMES, 4), np.int32),
    }
    np.testing.assert_array_equal(said["text"], ids)
    np.testing.assert_array_equal(said["audio"], codes)
    assert (said["audio"][: LATE - 1] == csm_mlx.load_moshi(folder).config.moshi.codebook_size).all()
    np.testing.assert_allclose(read_audio(tmp_path / "moshi.wav", 24_000), pcm, atol=1 / 32768)
    assert result.text.strip() == written.strip()
    assert written.strip()
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert " ".join(line["assistant"] for line in lines).split() == written.split()
    assert "real-time factor" in result.err


def test_events_as_json(call, folder, user):
    assert len(user)
    result = call("duplex", "--model", folder, "--input", "user.wav", "--json", "--seconds", "0.4", "--seed", "3")
    assert (result.code, result.err) == (0, "")
    told = [json.loads(line) for line in result.text.splitlines()]
    assert told[0]["event"] == "ready"
    assert told[0]["input"] == "user.wav"
    assert told[-1]["event"] == "summary"
    assert told[-1]["seconds"] == pytest.approx(0.4)
    times = [e["t_s"] for e in told if e["event"] == "text"]
    assert times == sorted(times)
    assert "".join(e["text"] for e in told if e["event"] == "text") == "".join(
        e["text"] for e in told if e["event"] == "said"
    )


def test_the_same_seed_says_the_same_and_another_does_not(call, tmp_path, folder, user):
    assert len(user)
    said = []
    for seed in (1, 1, 2):
        result = call(
            "duplex", "--model", folder, "--input", "user.wav", "--tokens", "t.safetensors", "--seed", str(seed)
        )
        assert result.code == 0, result.err
        said.append(tensors(tmp_path / "t.safetensors")["audio"].tolist())
    assert said[0] == said[1] != said[2]


def test_it_goes_on_after_the_end_if_asked_to_and_can_be_kept_quiet(call, tmp_path, folder, user):
    assert len(user)
    result = call(
        "duplex", "--model", folder, "--input", "user.wav", "--tokens", "t.safetensors", "--tail", "0.8",
        "--pad-bias", "100", "--repetition-penalty", "1.3",
    )  # fmt: skip
    assert (result.code, result.text) == (0, ""), result.err
    assert tensors(tmp_path / "t.safetensors")["text"].tolist() == [3] * (N_FRAMES + 10)


WRONG = {
    "no model": ([], "name a Moshi, such as kyutai/moshiko-mlx-q4"),
    "output alone": (["--output", "a.wav"], "it goes with --input FILE"),
    "a tail alone": (["--tail", "1"], "it goes with --input FILE"),
    "no time": (["--seconds", "0"], "0 s, expected 0.08 or more"),
    "devices and a file": (["--input", "user.wav", "--input-device", "2"], "a file runs without devices"),
    "no such file": (["--input", "no.wav"], "no.wav is not there"),
    "itself": (["--input", "user.wav", "--output", "./user.wav"], "name another file"),
    "tokens over sound": (["--input", "user.wav", "--tokens", "user.wav"], "name another file"),
    "no condition": (["--condition", "description"], "'description' is no NAME=VALUE"),
    "a condition twice": (["--condition", "a=b", "--condition", "a=c"], "'a=c' is no NAME=VALUE, or a name twice"),
    "a penalty of nothing": (["--repetition-penalty", "0"], "repetition_penalty is 0.0, expected above 0"),
    "too hot": (["--text-temp", "11"], "temperature is 11.0, expected 0"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_usage(call, tmp_path, user, case):
    assert len(user)
    flags, message = WRONG[case]
    model = [] if case == "no model" else ["--model", "any"]
    result = call("duplex", *model, *flags)
    assert (result.code, result.out) == (2, b"")
    assert message in result.err.splitlines()[-1]
    assert [path.name for path in tmp_path.iterdir() if path.name != "data"] == ["user.wav"]


def test_models_of_another_kind_and_missing_devices_are_one_line(call, run, folder, user, tmp_path):
    assert len(user)
    stt = write_checkpoint(tmp_path / "stt", "stt")
    cases = {
        (str(csm_mlx.default_checkpoint()), "--input", "user.wav"): "holds a CSM, expected a Moshi",
        (str(stt), "--input", "user.wav"): "expected a Moshi",
        (str(folder), "--input", "user.wav", "--condition", "pace=slow"): "expected one value each of none",
        (str(folder),): "or run on a file with --input FILE",
        ("no/such/model", "--input", "user.wav"): "no/such/model does not exist",
    }
    for (model, *flags), message in cases.items():
        # PortAudio knows of this process what devices an earlier test had.
        result = (call if flags else run)("duplex", "--model", model, *flags)
        assert (result.code, result.out) == (1, b""), result.err
        assert message in result.err
        assert result.err.startswith("error: ")
        assert len(result.err.splitlines()) == 1


def test_hibiki_translates_a_file_as_its_conditions_say(call, tmp_path, user):
    assert len(user)
    folder = write_checkpoint(tmp_path / "hibiki", "hibiki")
    flags = ("--input", "user.wav", "--temp", "0", "--tail", "0", "--tokens", "t.safetensors")
    said = {}
    for value in CONDITIONS["description"]:
        result = call("duplex", "--model", folder, *flags, "--condition", f"description={value}")
        assert result.code == 0, result.err
        said[value] = tensors(tmp_path / "t.safetensors")
        ids, codes, *_ = by_the_library(folder, user, {"description": value})
        np.testing.assert_array_equal(said[value]["text"], ids)
        np.testing.assert_array_equal(said[value]["audio"], codes)
    assert (said["very_bad"]["audio"] != said["very_good"]["audio"]).any()
    result = call("duplex", "--model", folder, *flags)
    assert result.code == 1
    assert "expected one value each of description" in result.err


@pytest.mark.parametrize(("tail", "n_more"), [(0.4, 5), (0.0, 0)])
def test_hibiki_is_told_that_a_file_is_over(monkeypatch, tail, n_more):
    """It then hears silence, until it ends its text or so long."""
    moshi = random_conversation(hibiki_config())
    session = moshi.session(conditions={"description": "very_good"})
    told, end = [], session.end
    monkeypatch.setattr(session, "end", lambda: (told.append(session.stats.n_frames), end())[1])
    steps = list(duplexing._steps(tail, moshi, session, np.zeros(1920 * 3 - 1, np.float32)))
    assert len(steps) == session.stats.n_frames == 3 + n_more
    assert told == [3][:n_more]
    if n_more:  # what it says next ends its text
        monkeypatch.setattr(type(moshi.tokenizer), "eos_id", property(lambda _: int(session.text_ids[0])))
        again = list(duplexing._steps(tail, moshi, session, np.zeros(1, np.float32)))
        assert len(again) == 2


def test_a_step_that_nobody_waited_for_says_nothing(monkeypatch, tmp_path):
    """It ends after the summary was told and the tokens were written."""
    moshi = random_conversation(moshi_config())
    session, told = moshi.session(), Told()
    flags: Any = SimpleNamespace(tokens=tmp_path / "t.safetensors", seconds=None)
    computing = duplexing._Computing(flags, Report(lambda: 0.0, [told]))
    computing._session, step = session, session.step
    frames = [Frame(np.zeros(1920, np.float32), 0.08 * (i + 1)) for i in range(4)]
    for frame in frames[:3]:
        assert computing._hear(session, frame) is not None
    monkeypatch.setattr(session, "step", lambda pcm: (computing.end(), step(pcm)[0], "late")[1:])
    assert computing._hear(session, frames[3]) is None
    assert told.events[-1]["event"] == "summary"
    assert told.events[-1]["seconds"] == 0.24
    assert {len(kept) for kept in tensors(tmp_path / "t.safetensors").values()} == {3}


@pytest.mark.parametrize("flag", ["--tokens", "--output", "--log"])
def test_a_full_disk_leaves_what_was_there(call, tmp_path, folder, user, flag):
    """A limit on the size of files, which fails as a full disk does."""
    assert len(user)
    (tmp_path / "kept.wav").write_text("before\n")
    with files_of_at_most(20):
        result = call("duplex", "--model", folder, "--input", "user.wav", "--json", flag, "kept.wav")
    events = [json.loads(line) for line in result.text.splitlines()]
    assert (tmp_path / "kept.wav").read_text() == "before\n"
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "data") == ["kept.wav", "user.wav"]
    if flag == "--log":  # nobody's conversation ends for its sake
        assert result.code == 0
        (note,) = (event["message"] for event in events if event["event"] == "note")
        assert "until there is room" in note
        return
    assert result.code == 1
    assert result.err.startswith("error: ")
    assert "kept" in result.err
    assert len(result.err.splitlines()) == 1


def test_a_disk_that_is_full_for_the_sound_keeps_the_tokens(call, tmp_path, folder, user):
    assert len(user)
    with files_of_at_most(2000):  # half a frame of sound
        flags = ("--input", "user.wav", "--json", "--output", "out.wav", "--tokens", "t.safetensors", "--log", "log")
        result = call("duplex", "--model", folder, *flags)
    assert result.code == 1
    assert "cannot write" in result.err
    assert len(tensors(tmp_path / "t.safetensors")["text"]) == 1
    events = [json.loads(line) for line in result.text.splitlines()]
    assert (events[-1]["event"], events[-1]["seconds"]) == ("summary", 0.08)
    said = "".join(event["text"] for event in events if event["event"] == "said")
    logged = (tmp_path / "log").read_text().splitlines() if said else []
    assert "".join(json.loads(line)["assistant"] for line in logged) == said


def test_sigterm_keeps_what_was_said(start, tmp_path, folder):
    write_audio(tmp_path / "long.wav", np.zeros(24_000 * 600, np.float32), 24_000)
    flags = ("--output", "out.wav", "--tokens", "t.safetensors", "--json")
    process = start("duplex", "--model", str(folder), "--input", "long.wav", *flags)
    n_texts = 0
    while n_texts < 3:
        n_texts += b'"text"' in process.stdout.readline()
    process.terminate()
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (128 + signal.SIGTERM, b"")
    summary = json.loads(out.splitlines()[-1])
    n_frames = len(tensors(tmp_path / "t.safetensors")["text"])
    assert 0 < n_frames < 7500
    # It may come in the middle of a frame.
    assert round(summary["seconds"] * 12.5) - n_frames in (0, 1)
    assert n_frames - len(read_audio(tmp_path / "out.wav", 24_000)) / 1920 in (0, 1)


def test_results_do_not_replace_each_other(call, user):
    assert len(user)
    for one, other in (("--output", "--tokens"), ("--tokens", "--log")):
        result = call("duplex", "--model", "any", "--input", "user.wav", one, "x.wav", other, "x.wav")
        assert result.code == 2
        assert f"x.wav is what {one} writes" in result.err


@pytest.mark.parametrize(("name", "expected"), [("moshi-7b", False), ("hibiki-1b", True), ("hibiki-2b", True)])
def test_who_translates(name, expected):
    config = any_preset(name)
    assert config.model_type == "moshi"
    assert config.moshi.translates is expected


@pytest.mark.parametrize(("quantization", "command"), [
    (None, "csm convert kyutai/moshika-pytorch-bf16 weights/moshi-q4 -q"),
    ({"bits": 8}, "convert the float weights that it was made from with -q, or take one such as kyutai/"),
    ({"bits": 4}, "close other programs"),
])  # fmt: skip
def test_the_advice_for_a_slow_machine_can_be_followed(quantization, command):
    """A quantized model cannot be quantized again."""
    moshi = random_conversation(moshi_config())
    config = replace(moshi.config, quantization=quantization)
    flags: Any = SimpleNamespace(
        model="kyutai/moshika-pytorch-bf16", seed=0, text_sampling={}, audio_sampling={}, conditions=None, rules={}
    )
    assert command in duplexing.measured(flags, replace(moshi, config=config)).advice
