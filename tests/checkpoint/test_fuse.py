"""Fused checkpoints answer as base and adapter together; nothing is lost on the way."""

from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from support import layouts
from support.adapters import CONFIGS, adapted, answers, trained
from support.models import largest

import csm_mlx
from csm_mlx.checkpoint.adapter import write_adapter
from csm_mlx.checkpoint.convert import convert
from csm_mlx.checkpoint.fuse import fuse_checkpoint, write_full
from csm_mlx.checkpoint.load import load_checkpoint
from csm_mlx.checkpoint.read import read_tensors
from csm_mlx.errors import ConfigError
from csm_mlx.frames import Turn
from csm_mlx.lora import AdapterConfig, adapters, attach, fuse_model
from csm_mlx.quantize import Quantization, bits_per_weight, dequantized, named_parameters
from csm_mlx.stored import CheckpointConfig


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


def test_an_interrupted_fusion_leaves_nothing_behind(sources: dict[str, Path], anna: Path, tmp_path: Path) -> None:
    def stop(_: str, done: int, __: int) -> None:
        if done == 40:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fuse_checkpoint(sources["float"], anna, tmp_path / "whole", on_tensor=stop)
    assert [p.name for p in tmp_path.iterdir()] == ["anna"]
