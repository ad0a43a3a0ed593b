"""`csm convert` and `csm quantize`: a folder that speaks, or nothing at all."""

import json
import signal
import time

import numpy as np
import pytest
from support import layouts


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A random checkpoint in the transformers layout."""
    folder = tmp_path_factory.mktemp("hf") / "tiny-hf"
    layouts.write_transformers(folder, layouts.make_tiny())
    return folder


def _files(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_convert_then_speak(call, tmp_path, tiny):
    result = call("convert", tiny, "weights/mine", "--notice", "made for a test", "--json")
    assert result.code == 0, result.err
    numbers = json.loads(result.text)
    assert (numbers["layout"], numbers["dtype"], numbers["quantization"]) == ("transformers", "bfloat16", None)
    assert "next: csm say" in result.err

    quantized = call("convert", tiny, "-q", "--q-group-size", "32", "--json")
    assert quantized.code == 0, quantized.err
    numbers = json.loads(quantized.text)
    assert numbers["out"] == "weights/tiny-hf-q4-group32"
    assert numbers["bits_per_weight"] < 16

    foreign = call("convert", "--hf-path", tiny, "--mlx-path", "named", "--dtype", "float32", "--q-bits", "5")
    assert foreign.code == 0, foreign.err
    assert json.loads((tmp_path / "named" / "config.json").read_text())["quantization"]["bits"] == 5

    spoken = call("say", "hello", "--model", "mine", "--max-seconds", "0.5", "-o", "a.wav", "--json")
    assert spoken.code == 0, spoken.err
    assert "note: made for a test" in spoken.err
    assert json.loads(spoken.text)["frames"] > 0


def test_only_force_replaces(call, tmp_path, tiny):
    assert call("convert", tiny, "out").code == 0
    before = _files(tmp_path / "out")
    refused = call("convert", tiny, "out", "-q")
    assert refused.code == 1
    assert "out exists" in refused.err
    assert "--force" in refused.err
    assert _files(tmp_path / "out") == before
    assert call("convert", tiny, "out", "-q", "--force").code == 0
    assert _files(tmp_path / "out") != before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_quantize_reports_what_it_cost(call, tmp_path, tiny, tone):
    assert call("convert", tiny, "float").code == 0
    (tmp_path / "turns.jsonl").write_text(json.dumps({"speaker": 0, "text": "hello", "audio": str(tone)}))
    flags = ("--report", "--turns", "turns.jsonl", "--q-recipe", "q8", "--q-group-size", "32")
    made = call("quantize", "float", "q8", *flags, "--plot", "loss.png", "--json")
    assert made.code == 0, made.err
    report = json.loads(made.text)["report"]
    assert len(report["kl"]) == len(report["top1_agreement"])
    assert 0 < report["mean_kl"] < 0.1
    assert report["mean_top1_agreement"] > 0.8
    assert report["candidate_bytes"] < report["reference_bytes"]
    assert (tmp_path / "loss.png").read_bytes()[1:4] == b"PNG"

    before = _files(tmp_path / "q8")
    shown = call("quantize", "float", "q8", *flags)
    assert shown.code == 0, shown.err
    lines = shown.text.splitlines()
    assert lines[0].split() == ["codebook", "KL", "(nats)", "same", "first", "choice"]
    assert len(lines) == len(report["kl"]) + 3
    assert float(lines[1].split()[1]) == pytest.approx(report["kl"][0], abs=1e-4)
    assert _files(tmp_path / "q8") == before, "an OUT that is there is measured and left alone"

    again = call("quantize", "q8", "q4")
    assert again.code == 1
    assert "q8 is quantized already (8 bits)" in again.err


def test_ctrl_c_leaves_nothing_behind(start, tmp_path):
    tiny = layouts.make_tiny()
    n_rows, dim = 400_000, tiny.model["text_embeddings.weight"].shape[1]  # enough to be caught at
    tiny.model["text_embeddings.weight"] = np.zeros((n_rows, dim), np.float32)
    layouts.write_own(tmp_path / "large", tiny)
    config = json.loads((tmp_path / "large" / "config.json").read_text())
    config["csm"]["text_vocab_size"] = n_rows
    (tmp_path / "large" / "config.json").write_text(json.dumps(config))

    process = start("convert", "large", "out", "--q-bits", "8", "--q-group-size", "32")
    while len(list(tmp_path.iterdir())) == 1:
        assert process.poll() is None
        time.sleep(0.002)
    process.send_signal(signal.SIGINT)
    out, talk = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, b"")
    assert talk.decode().splitlines() == ["interrupted: nothing was written"]
    assert [path.name for path in tmp_path.iterdir()] == ["large"]
