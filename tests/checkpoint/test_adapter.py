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
import numpy as np
import pytest
from support import layouts
from support.models import largest

import csm_mlx
from csm_mlx.checkpoint import save
from csm_mlx.checkpoint.adapter import read_adapter, write_adapter
from csm_mlx.checkpoint.convert import convert
from csm_mlx.checkpoint.fuse import fuse_checkpoint, write_full
from csm_mlx.checkpoint.load import load_checkpoint
from csm_mlx.checkpoint.read import read_tensors
from csm_mlx.config import CheckpointConfig
from csm_mlx.errors import CheckpointError, ConfigError
from csm_mlx.frames import Turn
from csm_mlx.lora import AdapterConfig, adapter_parameters, adapters, attach, fuse_model
from csm_mlx.models.csm import CsmModel
from csm_mlx.quantize import Quantization, bits_per_weight, dequantized, named_parameters

CONFIG = AdapterConfig(rank=4, targets=("backbone.*_proj", "projection", "*head*"))
DORA = AdapterConfig(method="dora", rank=4, alpha=6.0, targets=("backbone.*_proj", "projection", "*head*"))
CONFIGS = pytest.mark.parametrize("config", [CONFIG, DORA], ids=["lora", "dora"])


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One base in three forms."""
    place = tmp_path_factory.mktemp("bases")
    layouts.write_own(place / "float", layouts.make_tiny())
    convert(place / "float", place / "bfloat16")
    convert(place / "float", place / "q4", quantization=Quantization())
    convert(place / "float", place / "mxfp4", quantization=Quantization(mode="mxfp4"))
    return {path.name: path for path in place.iterdir()}


def adapted(base: Path, config: AdapterConfig = CONFIG, *, unpack: bool | None = None, seed: int = 1) -> CsmModel:
    """A base with what a training could have made."""
    model = load_checkpoint(base, unpack=unpack).model
    attach(model, config, seed=seed)
    mx.random.seed(seed)
    for layer in adapters(model).values():
        layer.lora_b = 0.2 * mx.random.normal(layer.lora_b.shape)
        if "magnitude" in layer:
            layer["magnitude"] = layer["magnitude"] * mx.random.uniform(0.7, 1.3, layer["magnitude"].shape)
    return model


def trained(base: Path, folder: Path, config: AdapterConfig = CONFIG, **options: Any) -> CsmModel:
    model = adapted(base, config, **options)
    write_adapter(folder, model, config, base=base.name, summary={"steps": 30})
    return model


def answers(model: CsmModel) -> mx.array:
    hidden, _ = model.backbone(
        model.embed_text(mx.array([[1, 5, 7, 9, 11, 2]])), model.backbone.make_state(1, model.dtype, 8)
    )
    return model.frame_logits(hidden[0], mx.array([[3, 1, 4, 1]] * 6))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


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


def codes(csm: csm_mlx.Csm, text: str) -> np.ndarray:
    session = csm.session(seed=3)
    session.add(Turn(speaker=1, text="hello"))
    for _ in session.speak(text, max_seconds=2):
        pass
    found = session.turns[-1].codes
    assert found is not None
    return np.array(found)


def test_the_embedded_voice_speaks_the_same_loaded_trained_and_fused(tmp_path: Path) -> None:
    plain = csm_mlx.load()
    model = csm_mlx.load().model
    attach(model, AdapterConfig())
    mx.random.seed(0)
    for layer in adapters(model).values():
        layer.lora_b = 0.2 * mx.random.normal(layer.lora_b.shape)
    write_adapter(tmp_path / "anna", model, AdapterConfig(), base="csm-tiny")
    expected = codes(csm_mlx.Csm(model, plain.codec, plain.tokenizer, plain.config, plain.path), "good morning")
    assert not np.array_equal(expected, codes(plain, "good morning"))

    assert np.array_equal(codes(csm_mlx.load(adapter=tmp_path / "anna"), "good morning"), expected)
    fuse_checkpoint(plain.path, tmp_path / "anna", tmp_path / "whole")
    assert np.array_equal(codes(csm_mlx.load(tmp_path / "whole"), "good morning"), expected)


# --- fused checkpoints ---------------------------------------------------------------------------------------------


@CONFIGS
def test_a_fused_checkpoint_answers_as_the_adapter(
    config: AdapterConfig, sources: dict[str, Path], tmp_path: Path
) -> None:
    model = trained(sources["float"], tmp_path / "anna", config)
    expected = answers(model)
    (sources["float"] / "README.md").write_text("---\nlicense: mit\n---\n# Float\n")
    seen: list[tuple[str, int, int]] = []

    report = fuse_checkpoint(
        sources["float"], tmp_path / "anna", tmp_path / "whole", on_tensor=lambda *step: seen.append(step)
    )

    fused = load_checkpoint(tmp_path / "whole")
    assert largest(answers(fused.model) - expected) < 1e-4
    assert (report.dtype, report.quantization, seen[-1][1]) == ("float32", None, seen[-1][2])
    assert fused.config.source == {
        "name": "float",
        "layout": "own",
        "csm_mlx_version": csm_mlx.__version__,
        "adapter": "anna",
        "training": {"steps": 30},
    }
    card = (tmp_path / "whole" / "README.md").read_text()
    assert card.startswith("---\nlicense: mit\n---\n")
    assert "> This is float with the adapter anna in its weights" in card
    assert card.endswith("# Float\n")
    plain = load_checkpoint(sources["float"])
    for name, weight in named_parameters(plain.codec).items():
        assert mx.array_equal(weight, named_parameters(fused.codec)[name]).item()
    for name, weight in named_parameters(plain.model).items():
        same = mx.array_equal(weight, named_parameters(fused.model)[name]).item()
        assert same == (name.removesuffix(".weight") not in adapters(model)), name


@pytest.mark.parametrize("base", ["q4", "mxfp4"])
@CONFIGS
def test_a_quantized_base_stays_quantized(
    config: AdapterConfig, base: str, sources: dict[str, Path], tmp_path: Path
) -> None:
    model = trained(sources[base], tmp_path / "anna", config, unpack=False)
    before = bits_per_weight(load_checkpoint(sources[base], unpack=False).model)

    fuse_checkpoint(sources[base], tmp_path / "anna", tmp_path / "whole")

    fused = load_checkpoint(tmp_path / "whole", unpack=False)
    assert fused.config.quantization == CheckpointConfig.read(sources[base] / "config.json").quantization
    assert bits_per_weight(fused.model) == before
    one, two = (read_tensors(p / "model.safetensors") for p in (sources[base], tmp_path / "whole"))
    assert {n: (t.stored, t.shape) for n, t in one.items()} == {n: (t.stored, t.shape) for n, t in two.items()}
    layers, whole = adapters(model), dict(fused.model.named_modules())
    for path, layer in layers.items():
        exact = layer.change(dequantized(layer.linear, mx.float32))  # type: ignore[arg-type]
        error = np.abs(np.array(dequantized(whole[path], mx.float32) - exact))
        assert error.mean() < 0.2 * np.abs(np.array(exact)).mean(), path


@pytest.mark.parametrize("base", ["q4", "mxfp4"])
@CONFIGS
def test_a_quantized_base_can_be_made_float(
    config: AdapterConfig, base: str, sources: dict[str, Path], tmp_path: Path
) -> None:
    model = trained(sources[base], tmp_path / "anna", config, unpack=False)

    report = fuse_checkpoint(sources[base], tmp_path / "anna", tmp_path / "whole", dequantize=True)

    fused = load_checkpoint(tmp_path / "whole")
    assert (report.quantization, fused.config.quantization, report.dtype) == (None, None, "bfloat16")
    assert {t.stored for t in read_tensors(tmp_path / "whole" / "model.safetensors").values()} == {"BF16"}
    error = np.abs(np.array(answers(fused.model) - answers(model)))
    assert error.mean() < 0.02 * np.abs(np.array(answers(model))).mean()
    convert(tmp_path / "whole", tmp_path / "q8", quantization=Quantization(recipe="q8"))  # as any float checkpoint


def test_a_fused_layout_of_others_is_ours(sources: dict[str, Path], tmp_path: Path) -> None:
    expected = answers(trained(sources["float"], tmp_path / "anna"))
    layouts.write_transformers(tmp_path / "foreign", layouts.make_tiny())

    fuse_checkpoint(tmp_path / "foreign", tmp_path / "anna", tmp_path / "whole")

    assert largest(answers(load_checkpoint(tmp_path / "whole").model) - expected) < 1e-4


def test_fusing_on_disk_is_fusing_in_memory(sources: dict[str, Path], tmp_path: Path) -> None:
    model = trained(sources["q4"], tmp_path / "anna", unpack=False)
    fuse_model(model, dequantize=True)

    fuse_checkpoint(sources["q4"], tmp_path / "anna", tmp_path / "whole", dequantize=True)

    fused = named_parameters(load_checkpoint(tmp_path / "whole").model)
    for path in adapters(adapted(sources["q4"])):
        exact = named_parameters(model)[f"{path}.weight"]
        assert largest(fused[f"{path}.weight"] - exact) <= 2**-8 * largest(exact)


def test_a_model_trained_whole_becomes_a_checkpoint(sources: dict[str, Path], tmp_path: Path) -> None:
    model = load_checkpoint(sources["q4"], unpack=True).model
    model.projection.weight = model.projection.weight + 1

    write_full(tmp_path / "whole", sources["q4"], model, dtype=mx.float32, summary={"steps": 9})
    write_full(tmp_path / "whole", sources["float"], model, force=True)

    whole = load_checkpoint(tmp_path / "whole")
    assert all(mx.array_equal(w, named_parameters(whole.model)[n]).item() for n, w in named_parameters(model).items())
    assert whole.config.quantization is None
    write_full(tmp_path / "half", sources["q4"], model)
    assert {t.stored for t in read_tensors(tmp_path / "half" / "model.safetensors").values()} == {"BF16"}
    for unfit in (adapted(sources["float"]), load_checkpoint(sources["q4"], unpack=False).model):
        with pytest.raises(ConfigError, match="is quantized or has an adapter, which is no whole training"):
            write_full(tmp_path / "other", sources["float"], unfit)


# --- what does not fit ---------------------------------------------------------------------------------------------


@pytest.fixture
def anna(sources: dict[str, Path], tmp_path: Path) -> Path:
    trained(sources["float"], tmp_path / "anna")
    return tmp_path / "anna"


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


def test_an_interrupted_fusion_leaves_nothing_behind(sources: dict[str, Path], anna: Path, tmp_path: Path) -> None:
    def stop(_: str, done: int, __: int) -> None:
        if done == 40:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fuse_checkpoint(sources["float"], anna, tmp_path / "whole", on_tensor=stop)
    assert [p.name for p in tmp_path.iterdir()] == ["anna"]
