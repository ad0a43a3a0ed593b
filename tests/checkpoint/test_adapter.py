"""Adapters on disk: what is read is what was written, in any base it was made for and in no other; nothing is lost."""

import json
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
import pytest
from support import layouts
from support.adapters import CONFIG, CONFIGS, DORA, adapted, answers, contents, trained
from support.models import largest

import csm_mlx
from csm_mlx.checkpoint import save
from csm_mlx.checkpoint.adapter import read_adapter, write_adapter
from csm_mlx.checkpoint.fuse import fuse_checkpoint
from csm_mlx.checkpoint.load import load_checkpoint
from csm_mlx.errors import CheckpointError, ConfigError
from csm_mlx.lora import AdapterConfig, adapter_parameters, adapters


@CONFIGS
def test_what_is_read_is_what_was_written(config: AdapterConfig, sources: dict[str, Path], tmp_path: Path) -> None:
    model = trained(sources["float"], tmp_path / "new" / "anna", config)

    adapter = read_adapter(tmp_path / "new" / "anna")

    assert sorted(p.name for p in (tmp_path / "new" / "anna").iterdir()) == [
        "adapter_config.json",
        "adapters.safetensors",
    ]
    assert (adapter.config, adapter.summary, adapter.base.name) == (config, {"steps": 30}, "float")
    assert adapter.base.csm == layouts.CONFIG.csm
    written = adapter_parameters(model)
    assert set(adapter.weights) == set(written)
    assert all(mx.array_equal(w, written[name]).item() for name, w in adapter.weights.items())


@pytest.mark.parametrize("base", ["float", "bfloat16", "q4", "mxfp4"])
@CONFIGS
def test_a_loaded_adapter_answers_as_the_model_that_was_trained(
    config: AdapterConfig, base: str, sources: dict[str, Path], tmp_path: Path
) -> None:
    expected = answers(trained(sources[base], tmp_path / "anna", config, unpack=False))
    plain = answers(load_checkpoint(sources[base]).model)
    assert largest(expected - plain) > 0.1

    beside = load_checkpoint(sources[base], adapter=tmp_path / "anna", unpack=False).model
    inside = load_checkpoint(sources[base], adapter=tmp_path / "anna", unpack=True).model

    assert bool(adapters(beside)) == (base in ("q4", "mxfp4"))
    assert not adapters(inside)
    assert largest(answers(beside) - expected) < 1e-4
    assert largest(answers(inside) - expected) < 1e-4


def test_an_adapter_fits_its_base_in_other_types(sources: dict[str, Path], tmp_path: Path) -> None:
    trained(sources["q4"], tmp_path / "anna", unpack=False)

    for base in ("float", "bfloat16", "mxfp4"):
        model = load_checkpoint(sources[base], adapter=tmp_path / "anna").model
        assert largest(answers(model) - answers(load_checkpoint(sources[base]).model)) > 0.1


# --- what does not fit ---------------------------------------------------------------------------------------------


def test_another_base_is_refused_before_any_work(anna: Path, tmp_path: Path) -> None:
    layouts.write_own(tmp_path / "twin", layouts.make_tiny(1))
    layouts.write_own(tmp_path / "dims", layouts.make_tiny())
    edit(tmp_path / "dims" / "config.json", lambda c: c["csm"]["depth"].update(ffn_dim=96))

    twin = r"anna was trained on float, and this model has its dimensions but other weights; give float as the model"
    dims = r"anna was trained on float with depth\.ffn_dim 128, this model has 96; give float as the model"
    for other, message in (("twin", twin), ("dims", dims)):
        with pytest.raises(CheckpointError, match=message):
            load_checkpoint(tmp_path / other, adapter=anna)
        with pytest.raises(CheckpointError, match=message):
            fuse_checkpoint(tmp_path / other, anna, tmp_path / "whole")
    with pytest.raises(CheckpointError, match=r"anna was trained on float with .* this model has"):
        csm_mlx.load(adapter=anna)
    assert not (tmp_path / "whole").exists()


def edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def weights_changed(folder: Path, change: Callable[[dict[str, mx.array]], Any]) -> None:
    tensors = cast("dict[str, mx.array]", mx.load(str(folder / "adapters.safetensors")))
    change(tensors)
    mx.save_safetensors(str(folder / "adapters.safetensors"), tensors)


A, B = "projection.lora_a", "projection.lora_b"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(A), rf"missing '{A}' \[128, 4\]; copy both again"),
        (lambda t: t.update(x=mx.zeros(3)), r"does not fit adapter_config.json: extra 'x' \[3\]"),
        (lambda t: t.update({A: t[A].T}), rf"misshapen '{A}' is \[4, 128\], expected \[128, 4\]"),
        (lambda t: t.update({A: t[A] / 0}), rf"'{A}' in adapters.safetensors holds 0 NaN and 512 infinite"),
        (lambda t: t.update({B: t[B].astype(mx.int32)}), rf"'{B}' in adapters.safetensors is stored as I32, expected"),
    ],
    ids=["missing", "extra", "misshapen", "infinite", "integers"],
)
def test_weights_that_do_not_fit_are_named(
    change: Callable[[dict[str, mx.array]], Any], message: str, anna: Path
) -> None:
    weights_changed(anna, change)
    with pytest.raises(CheckpointError, match=message):
        read_adapter(anna)


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        (lambda c: c.pop("format_version"), CheckpointError, "is no adapter of csm-mlx: adapter_config.json states no"),
        (lambda c: c.update(format_version=2), CheckpointError, "format_version 2, this csm-mlx reads 1; update"),
        (lambda c: c["adapter"].update(r=3), ConfigError, r"adapter_config\.json\.adapter has the unknown field 'r'"),
        (lambda c: c["adapter"].update(rank="4"), ConfigError, r"adapter\.rank is str '4', expected int"),
        (lambda c: c["adapter"].update(rank=5), CheckpointError, r"misshapen 'audio_head\.0\.lora_a' is \[64, 4\]"),
        (lambda c: c["adapter"].update(targets=["x"]), ConfigError, "the target 'x' names no layer"),
        (lambda c: c.pop("base"), ConfigError, "lacks the field 'base'"),
    ],
    ids=["foreign", "version", "unknown", "type", "rank", "target", "base"],
)
def test_configs_that_do_not_fit_are_told(
    change: Callable[[dict[str, Any]], Any], kind: type[Exception], message: str, anna: Path
) -> None:
    edit(anna / "adapter_config.json", change)
    with pytest.raises(kind, match=message):
        read_adapter(anna)


def test_what_is_no_adapter_is_told(sources: dict[str, Path], anna: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nowhere is no folder; give the folder of an adapter"):
        load_checkpoint(sources["float"], adapter=tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"float is no adapter, .*; it is a whole checkpoint: give it as the"):
        read_adapter(sources["float"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"empty is no adapter, it holds no adapter_config\.json; give what csm"):
        read_adapter(tmp_path / "empty")
    weights = anna / "adapters.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"adapters\.safetensors is cut short"):
        read_adapter(anna)
    weights.unlink()
    with pytest.raises(CheckpointError, match=r"anna lacks adapters\.safetensors; copy the whole folder again"):
        read_adapter(anna)
    (anna / "adapter_config.json").write_text("{")
    with pytest.raises(ConfigError, match="is not JSON"):
        read_adapter(anna)


def test_nothing_but_the_attached_adapter_is_written(sources: dict[str, Path], tmp_path: Path) -> None:
    model = adapted(sources["float"])
    with pytest.raises(ConfigError, match="the model's adapter is not the one described, or it has none"):
        write_adapter(tmp_path / "anna", model, DORA, base="float")
    with pytest.raises(ConfigError, match="or it has none"):
        write_adapter(tmp_path / "anna", load_checkpoint(sources["float"]).model, CONFIG, base="float")
    adapters(model)["projection"].lora_b = mx.full((4, 64), float("nan"))
    with pytest.raises(CheckpointError, match=rf"'{B}' in adapters\.safetensors holds 256 NaN"):
        write_adapter(tmp_path / "anna", model, CONFIG, base="float")
    assert not list(tmp_path.iterdir())


# --- nothing is lost -----------------------------------------------------------------------------------------------


@pytest.fixture
def kept(anna: Path) -> Iterator[Path]:
    """An adapter in the way; it must be as it was after the test."""
    before = contents(anna)
    yield anna
    assert contents(anna) == before
    read_adapter(anna)


def test_an_adapter_is_not_replaced_unasked(sources: dict[str, Path], kept: Path, tmp_path: Path) -> None:
    model = adapted(sources["float"], seed=2)
    with pytest.raises(CheckpointError, match="anna exists; choose another place, or replace it with --force"):
        write_adapter(kept, model, CONFIG, base="float")
    with pytest.raises(CheckpointError, match="anna exists; choose another place, or replace it with --force"):
        fuse_checkpoint(sources["float"], kept, kept)
    with pytest.raises(CheckpointError, match="anna is the adapter itself, which replacing would lose"):
        fuse_checkpoint(sources["float"], kept, kept, force=True)
    with pytest.raises(CheckpointError, match="float is the source itself, which replacing would lose"):
        fuse_checkpoint(sources["float"], kept, sources["float"], force=True)
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text("years")
    with pytest.raises(CheckpointError, match=r"holds more than a checkpoint \(thesis\.tex\)"):
        write_adapter(tmp_path / "home", model, CONFIG, base="float", force=True)


@pytest.mark.parametrize("exchange", [True, False], ids=["at once", "by two renames"])
def test_force_replaces_an_adapter(
    exchange: bool, sources: dict[str, Path], anna: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not exchange:  # as on a disk that has no such call
        monkeypatch.setattr(save, "_exchange", lambda *_: False)
    model = adapted(sources["float"], seed=2)

    write_adapter(anna, model, CONFIG, base="float", force=True)

    assert mx.array_equal(read_adapter(anna).weights[B], adapter_parameters(model)[B]).item()
    assert [p.name for p in tmp_path.iterdir()] == ["anna"]


SAVE = """
import sys
from pathlib import Path
from csm_mlx.checkpoint.adapter import write_adapter
from csm_mlx.checkpoint.load import load_checkpoint
from csm_mlx.errors import CsmError
from csm_mlx.lora import AdapterConfig, attach
model = load_checkpoint(sys.argv[1]).model
config = AdapterConfig(rank=16)
attach(model, config)
try:
    print("ready", flush=True)
    while True:
        write_adapter(sys.argv[2], model, config, base="float", force=True)
        print("saved", flush=True)
except CsmError as error:
    sys.exit(str(error))
"""


def test_a_disk_that_fills_up_leaves_the_adapter(sources: dict[str, Path], kept: Path, tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-c", SAVE, str(sources["float"]), str(kept)],
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000)),
        check=False,
    )

    assert run.returncode == 1
    assert "cannot write adapters.safetensors" in run.stderr
    assert "free some space or choose another place" in run.stderr
    assert "Traceback" not in run.stderr
    assert run.stdout == "ready\n"
    assert [p.name for p in tmp_path.iterdir()] == ["anna"]


def test_a_kill_at_any_moment_leaves_a_whole_adapter(sources: dict[str, Path], anna: Path) -> None:
    before = contents(anna)
    for delay_ms in (0, 3, 11):
        process = subprocess.Popen(
            [sys.executable, "-c", SAVE, str(sources["float"]), str(anna)], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        if delay_ms:
            assert process.stdout.readline() == "saved\n"
            signal.sigtimedwait([], delay_ms / 1000)
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=20)
        rank = read_adapter(anna).config.rank  # strict: whole, and of one training
        assert rank == 16 if delay_ms else contents(anna) == before or rank == 16
        shutil.rmtree(anna)
        anna.mkdir()
        for name, data in before.items():
            (anna / name).write_bytes(data)
