"""Each way in which a checkpoint can be broken, on the command line: one line, exit code 1, nothing lost or left."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support import hub_server, layouts

Weights = dict[str, np.ndarray]


def weights(change: Callable[[Weights], None]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        model = dict(layouts.make_tiny().model)
        change(model)
        layouts.save(folder / "model.safetensors", model)

    return spoil


def config(change: Callable[[dict], None]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        data = json.loads((folder / "config.json").read_text())
        change(data)
        (folder / "config.json").write_text(json.dumps(data))

    return spoil


def cut_short(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def pickle_only(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "codec.safetensors").unlink()
    (folder / "ckpt.pt").write_bytes(b"\x80\x04")


def of_int64(folder: Path) -> None:
    model = dict(layouts.make_tiny().model)
    model["projection.weight"] = model["projection.weight"].astype(np.int64)
    layouts.save(folder / "model.safetensors", model)


NORM, HEAD = "backbone.norm.weight", "codebook0_head.weight"
CASES = {
    "truncated": (cut_short, "is cut short: its header promises"),
    "a pickle": (pickle_only, "holds no safetensors, only a pickle (ckpt.pt)"),
    "a wrong dtype": (of_int64, "'projection.weight' in model.safetensors is stored as I64, expected F32, F16 or BF16"),
    "NaN": (weights(lambda w: w.update({NORM: np.full_like(w[NORM], np.nan)})), "holds 128 NaN and 0 infinite weights"),
    "missing": (weights(lambda w: w.__delitem__(NORM)), f"missing '{NORM}' [128]"),
    "extra": (weights(lambda w: w.update(stray=np.zeros(3, np.float32))), "extra 'stray' [3]"),
    "misshapen": (weights(lambda w: w.update({HEAD: w[HEAD][:8]})), f"'{HEAD}' is [8, 128], expected [24, 128]"),
    "an unknown field": (config(lambda c: c["csm"].update(n_codebook=4)), "unknown field 'n_codebook'; did you mean"),
    "a contradiction": (config(lambda c: c["csm"].update(codebook_size=15)), "codebook_size is 15"),
    "no JSON": (lambda folder: (folder / "config.json").write_text("{") and None, "is not JSON"),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("command", ["convert", "say"])
def test_a_broken_checkpoint(call, tmp_path: Path, case: str, command: str) -> None:
    spoil, message = CASES[case]
    layouts.write_own(tmp_path / "broken", layouts.make_tiny())
    spoil(tmp_path / "broken")
    before = {path: path.read_bytes() for path in (tmp_path / "broken").iterdir()}
    arguments = ["broken", "out"] if command == "convert" else ["Hi.", "--model", "broken", "-o", "out.wav"]

    result = call(command, *arguments)

    assert (result.code, result.out) == (1, b"")
    (line,) = result.err.splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert {path: path.read_bytes() for path in (tmp_path / "broken").iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["broken"]


def test_what_the_hub_does_not_give(run, tmp_path: Path) -> None:
    with hub_server.serve() as hub:
        hub.repositories["sesame/csm-1b"] = {"config.json": b"{}", "model.safetensors": b"x"}
        hub.gated.add("sesame/csm-1b")
        online = {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0"}
        gated = run("convert", "sesame/csm-1b", "out", env=online)
        unknown = run("convert", "some/thing", "out", env=online)
        offline = run("convert", "sesame/csm-1b", "out", env={"HF_HUB_OFFLINE": "1"})
    for result, parts in (
        (gated, ("accept its terms at", "hf auth login", "the open mirror unsloth/csm-1b")),
        (unknown, ("no folder some/thing here and no repository",)),
        (offline, ("HF_HUB_OFFLINE is set", "fetch it once")),
    ):
        assert (result.code, result.out) == (1, b"")
        (line,) = result.err.splitlines()
        assert line.startswith("error: ")
        assert all(part in line for part in parts), line
    assert list(tmp_path.iterdir()) == []
