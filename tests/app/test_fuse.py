"""`csm fuse`, and `--adapter` where it speaks: one voice, beside its base or in it."""

import json
import shutil
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

import csm_mlx
from csm_mlx.checkpoint.adapter import write_adapter
from csm_mlx.checkpoint.convert import convert
from csm_mlx.lora import AdapterConfig, adapters, attach
from csm_mlx.quantize import Quantization

BASE = csm_mlx.default_checkpoint()
RANDOM = Path(__file__).parents[1] / "golden" / "random"
SENTENCE = "The quick brown fox jumps over the lazy dog."
SAYING = ("say", SENTENCE, "--temp", "0")


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    """Of the embedded voice, large enough to be heard."""
    model, config = csm_mlx.load().model, AdapterConfig(rank=4)
    attach(model, config)
    for number, layer in enumerate(adapters(model).values()):
        layer.lora_b = 0.1 * mx.random.normal(layer.lora_b.shape, key=mx.random.key(number))
    folder = tmp_path_factory.mktemp("adapters") / "anna"
    write_adapter(folder, model, config, base=BASE.name, summary={"clips": 3})
    return folder


def test_fused_speaks_as_the_adapter_does(call, tmp_path, adapter, load_codes, greedy_codes):
    fused = call("fuse", adapter, "-o", "weights/anna", "--json")
    assert fused.code == 0, fused.err
    assert json.loads(fused.text)["out"] == "weights/anna"
    assert 'next: csm say "Hello there." --model weights/anna' in fused.err
    assert not (tmp_path / "weights" / "anna" / "adapter_config.json").exists()
    ways = {
        "beside": ("--adapter", adapter),
        "fused": ("--model", "anna"),
    }
    codes = {}
    for name, flags in ways.items():
        result = call(*SAYING, "--codes", f"{name}.safetensors", *flags)
        assert result.code == 0, result.err
        codes[name] = load_codes(f"{name}.safetensors")
    assert np.array_equal(codes["beside"], codes["fused"])
    assert not np.array_equal(codes["beside"], greedy_codes(SENTENCE))


def test_a_quantized_base_stays_quantized_unless_asked(call, tmp_path, adapter):
    convert(BASE, tmp_path / "q8", quantization=Quantization(recipe="q8"))
    made = call("fuse", adapter, "-o", "small", "--model", "q8", "--json")
    plain = call("fuse", adapter, "-o", "plain", "--model", "q8", "--dequantize", "--json")
    assert (made.code, plain.code) == (0, 0), made.err + plain.err
    assert json.loads(made.text)["bits_per_weight"] < 9
    assert json.loads(plain.text)["bits_per_weight"] >= 16
    before = (tmp_path / "small" / "model.safetensors").read_bytes()
    again = call("fuse", adapter, "-o", "small", "--model", "q8", "--dequantize")
    assert again.code == 1
    assert "small exists; choose another place, or replace it with --force" in again.err
    assert (tmp_path / "small" / "model.safetensors").read_bytes() == before
    assert call("fuse", adapter, "-o", "small", "--model", "q8", "--dequantize", "--force").code == 0
    assert (tmp_path / "small" / "model.safetensors").read_bytes() != before


def test_an_adapter_goes_with_its_base_only(call, tmp_path, adapter):
    shutil.copytree(adapter, tmp_path / "moved")
    data = json.loads((adapter / "adapter_config.json").read_text())
    data["base"]["name"] = "csm-lost"
    (tmp_path / "moved" / "adapter_config.json").write_text(json.dumps(data))
    lost = call("say", "Hi.", "-o", "a.wav", "--adapter", "moved")
    assert lost.code == 1
    assert "moved was trained on csm-lost, which is neither here nor in ./weights; name its folder" in lost.err
    assert call("say", "Hi.", "-o", "a.wav", "--adapter", "moved", "--model", BASE).code == 0
    for command in (("say", "Hi.", "-o", "b.wav", "--adapter", adapter), ("fuse", adapter, "-o", "out")):
        other = call(*command, "--model", RANDOM)
        assert other.code == 1
        assert f"was trained on {BASE.name} with" in other.err
    (tmp_path / "a.txt").write_text("Hi.")
    judged = call("evaluate", "a.txt", "--adapter", "a.wav")
    assert judged.code == 1
    assert "a.wav is no folder; give the folder of an adapter" in judged.err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.txt", "a.wav", "moved"]
