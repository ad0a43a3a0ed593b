"""`csm models` and `csm doctor`: what is here, and what is wrong with it."""

import json
import os
import shutil

import csm_mlx

EMBEDDED = csm_mlx.default_checkpoint()


def test_models_lists_what_is_here_and_what_would_fit(run, tmp_path):
    weights = tmp_path / "weights"
    for name in ("mine", "broken"):
        shutil.copytree(EMBEDDED, weights / name)
    (weights / "broken" / "model.safetensors").write_bytes(b"cut")
    (weights / "empty").mkdir()
    cached = tmp_path / "hf" / "hub" / "models--someone--csm-9b"
    shutil.copytree(EMBEDDED, cached / "snapshots" / "abc123")
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("abc123")
    result = run("models", "--json", env={"HF_HOME": str(tmp_path / "hf")})
    assert result.code == 0, result.err
    listing = json.loads(result.text)
    here = {model["name"]: model for model in listing["here"]}
    assert here.keys() == {"csm-tiny", "mine", "someone/csm-9b"}
    assert here["csm-tiny"]["where"] == "embedded"
    assert here["someone/csm-9b"]["where"] == "hub cache"
    assert here["mine"]["size_bytes"] == sum(p.stat().st_size for p in EMBEDDED.glob("*.safetensors"))
    assert here["mine"]["fits"] is True
    assert len(listing["broken"]) == 1
    assert "broken" in listing["broken"][0]

    known = {(model["name"], model["weights"]): model["size_bytes"] for model in listing["known"]}
    assert {name for name, _ in known} == {
        "csm-1b", "csm-3b", "csm-8b", "hibiki-1b", "hibiki-2b", "moshi-7b", "stt-1b-en_fr", "stt-2.6b-en",
    }  # fmt: skip
    assert known["csm-1b", "q4"] < known["csm-1b", "q8"] < known["csm-1b", "bfloat16"] < known["csm-8b", "bfloat16"]
    assert 3.0e9 < known["csm-1b", "bfloat16"] < 4.0e9
    assert listing["usable_bytes"] <= listing["memory_bytes"]

    table = run("models").text
    assert "mine" in table
    assert "csm-8b" in table


def test_doctor_finds_each_part_and_says_what_to_do(run):
    result = run("doctor", "--json")
    findings = {finding["name"]: finding for finding in json.loads(result.text)}
    assert list(findings) == [
        *("platform", "chip", "memory", "mlx", "packages", "loudspeaker", "microphone", "checkpoints", "speed")
    ]
    assert result.code == 0, findings
    assert {finding["status"] for finding in findings.values()} <= {"ok", "warning"}
    assert all(finding.get("cure") for finding in findings.values() if finding["status"] == "warning")
    assert findings["speed"]["numbers"]["real_time_factor"] > 0
    assert str(EMBEDDED) in findings["checkpoints"]["numbers"]["found"]

    lines = run("doctor").text
    assert "real-time factor" in lines


def test_doctor_fails_where_mlx_is_broken(run, tmp_path):
    (tmp_path / "mlx").mkdir()
    (tmp_path / "mlx" / "__init__.py").write_text("raise ImportError('no libmlx here')")
    paths = [str(tmp_path), os.environ.get("PYTHONPATH", "")]
    result = run("doctor", env={"PYTHONPATH": os.pathsep.join(filter(None, paths))})
    assert result.code == 1
    assert "FAIL  mlx" in result.text
    assert "no libmlx here" in result.text
