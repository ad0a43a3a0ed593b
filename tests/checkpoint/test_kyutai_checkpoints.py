"""Whole checkpoints of Kyutai's language models, with codec and tokenizer: loaded, converted, quantized, fetched."""

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from support import layouts
from support.kyutai import write_checkpoint

from csm_mlx.checkpoint import files, hub
from csm_mlx.checkpoint.convert import convert
from csm_mlx.checkpoint.load import load_checkpoint, load_moshi_checkpoint
from csm_mlx.config import SamplingConfig
from csm_mlx.errors import CheckpointError, ConfigError, QuantizationError, TokenizerError
from csm_mlx.models.moshi import ZERO_TOKEN, MoshiModel
from csm_mlx.quantize import Quantization, named_parameters, plan, quantize_model
from csm_mlx.stored import SttConfig, any_preset

KINDS = ("stt", "moshi")


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture(scope="module")
def folder(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp(kind) / "model", kind)


def arrays(module: nn.Module) -> dict[str, np.ndarray]:
    return {name: np.array(p.astype(mx.float32)) for name, p in named_parameters(module).items()}


def require_equal(a: nn.Module, b: nn.Module) -> None:
    first, second = arrays(a), arrays(b)
    assert first.keys() == second.keys()
    for name, weight in first.items():
        np.testing.assert_array_equal(weight, second[name], err_msg=name)


@pytest.mark.parametrize("layout", ["mlx", "candle"])
def test_every_layout_is_one_checkpoint(kind: Any, folder: Path, tmp_path: Path, layout: str) -> None:
    one, other = (
        load_moshi_checkpoint(folder, kind),
        load_moshi_checkpoint(write_checkpoint(tmp_path / "x", kind, layout), kind),
    )
    require_equal(one.model, other.model)
    require_equal(one.codec, other.codec)
    assert one.config.moshi == other.config.moshi
    assert other.config.source == {"name": "x", "layout": other.config.source["layout"]} if other.config.source else 0


def test_what_its_config_says_of_text_and_sampling(kind: Any, folder: Path, tmp_path: Path) -> None:
    config = load_moshi_checkpoint(folder, kind).config
    greedy = {"temp": 0.0, "temp_text": 0.25, "top_k": 5, "top_k_text": 9}
    told = load_moshi_checkpoint(write_checkpoint(tmp_path / "x", kind, lm_gen_config=greedy), kind).config
    assert told.text_sampling == SamplingConfig(temperature=0.25, top_k=9)
    assert told.audio_sampling == SamplingConfig(temperature=0.0, top_k=5)
    if kind == "stt":
        assert config.stt == SttConfig(delay_s=0.16, prefix_s=0.08)
        assert config.text_sampling.temperature == 0
    else:
        assert config.stt is None
        assert config.text_sampling == SamplingConfig(temperature=0.7, top_k=25)
        assert config.audio_sampling == SamplingConfig(temperature=0.8, top_k=250)


def test_converting_loses_nothing(kind: Any, folder: Path, tmp_path: Path) -> None:
    report = convert(folder, tmp_path / "own", dtype="float32")
    assert (report.kind, report.layout) == (kind, "kyutai")
    assert {p.name for p in (tmp_path / "own").iterdir()} == {files.CONFIG, files.MODEL, files.CODEC, files.SPM}
    before, after = load_moshi_checkpoint(folder, kind), load_moshi_checkpoint(tmp_path / "own", kind)
    require_equal(before.model, after.model)
    require_equal(before.codec, after.codec)
    assert before.config == after.config
    assert after.tokenizer.encode("How are you?") == before.tokenizer.encode("How are you?")
    again = convert(tmp_path / "own", tmp_path / "again", dtype="float32")
    assert again.layout == "own"
    for name in (files.MODEL, files.CODEC, files.SPM):
        assert (tmp_path / "own" / name).read_bytes() == (tmp_path / "again" / name).read_bytes(), name


def test_a_quantized_one_loads_as_it_was_planned(kind: Any, folder: Path, tmp_path: Path) -> None:
    convert(folder, tmp_path / "q4", dtype="float32", quantization=Quantization(recipe="q4"))
    loaded = load_moshi_checkpoint(tmp_path / "q4", kind, unpack=False)
    expected = load_moshi_checkpoint(folder, kind).model
    quantize_model(expected, Quantization(recipe="q4"))
    require_equal(expected, loaded.model)
    nothing = mx.full((1, 1, 1 + loaded.config.moshi.n_codebooks), ZERO_TOKEN, mx.int32)
    assert mx.abs(loaded.model.embed(nothing)).max().item() == 0
    with pytest.raises(QuantizationError, match="quantized already"):
        convert(tmp_path / "q4", tmp_path / "twice", quantization=Quantization())
    passed = convert(tmp_path / "q4", tmp_path / "copy")
    assert passed.quantization == "4 bits, as it was"
    require_equal(loaded.model, load_moshi_checkpoint(tmp_path / "copy", kind, unpack=False).model)


def test_kyutais_own_quantization_passes_through(kind: Any, tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "q4", kind, "mlx-q4")
    convert(source, tmp_path / "own")
    before, after = (load_moshi_checkpoint(p, kind, unpack=False) for p in (source, tmp_path / "own"))
    require_equal(before.model, after.model)
    assert after.model["text_head"].group_size == 32


@pytest.mark.parametrize("recipe", ["q4", "mixed"])
def test_the_recipe_spares_heads_and_embeddings(recipe: str) -> None:
    """At the released sizes; nothing is computed."""
    bits: dict[str, Any] = {}
    for name in ("moshi-7b", "stt-1b-en_fr", "hibiki-2b"):
        config = any_preset(name)
        assert config.model_type == "moshi"
        model = MoshiModel(config.moshi)
        planned, _ = plan(model, Quantization(recipe=recipe))
        for path, module in model.named_modules():
            if hasattr(module, "to_quantized"):
                said = planned.get(path, {})
                bits[f"{name}:{path}"] = said and said.get("bits", planned["bits"]) if path in planned else 4
    wide = ("text_head", "audio_heads", "text_embeddings", "audio_embeddings", "depth_embeddings", "depth_projections")
    for path, n_bits in bits.items():
        name, _, place = path.partition(":")
        if place.startswith("extra_heads"):
            assert n_bits is False, path
        elif place.startswith(wide) or place.startswith("conditions"):
            assert n_bits == 8, path
        elif recipe == "q4":
            assert n_bits == 4, path
        else:
            last = {"temporal": {"moshi-7b": 31, "stt-1b-en_fr": 15, "hibiki-2b": 23}[name], "depth_decoders": 5}
            layer = int(place.split(".layers.")[1].split(".")[0])
            is_edge = layer in (0, last[place.split(".")[0]]) or place.endswith("down_proj")
            assert n_bits == (6 if is_edge else 4), path
    assert {"moshi-7b:depth_decoders.7.layers.5.mlp.up_proj", "moshi-7b:audio_heads.7"} <= bits.keys()


def test_presets_have_the_published_sizes() -> None:
    """Weights of Kyutai's checkpoints; its depth decoders keep one set of norms, ours one for each set of weights."""
    expected = {"stt-2.6b-en": 2_617_118_720, "moshi-7b": 7_687_729_152 + 7 * 6 * 2 * 1024}
    for name, n_weights in expected.items():
        config = any_preset(name)
        assert config.model_type == "moshi"
        found = sum(p.size for p in named_parameters(MoshiModel(config.moshi)).values())
        assert found == n_weights


def test_the_other_kind_is_said(kind: Any, folder: Path, tmp_path: Path) -> None:
    other = next(k for k in KINDS if k != kind)
    with pytest.raises(CheckpointError, match=r"holds a .*, expected a .*; csm (transcribe|duplex) takes this one"):
        load_moshi_checkpoint(folder, other)  # pyright: ignore[reportArgumentType]
    with pytest.raises(CheckpointError, match="expected a CSM; csm"):
        load_checkpoint(folder)
    layouts.write_own(tmp_path / "csm", layouts.make_tiny())
    with pytest.raises(CheckpointError, match=r"holds a CSM, expected .*; csm say takes this one"):
        load_moshi_checkpoint(tmp_path / "csm", kind)


def test_config_and_weights_of_two_kinds_are_refused(folder: Path, tmp_path: Path) -> None:
    convert(folder, tmp_path / "own")
    layouts.write_own(tmp_path / "csm", layouts.make_tiny())
    (tmp_path / "own" / files.CONFIG).write_bytes((tmp_path / "csm" / files.CONFIG).read_bytes())
    with pytest.raises(ConfigError, match=r"config\.json is of csm, its weights are of moshi"):
        load_checkpoint(tmp_path / "own")
    (tmp_path / "own" / files.CONFIG).write_text('{"model_type": "bark"}')
    with pytest.raises(ConfigError, match="model_type is 'bark', expected one of 'csm', 'moshi'"):
        load_checkpoint(tmp_path / "own")


def test_a_tokenizer_of_another_model_is_refused(kind: Any, tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "x", kind, n_ids=200)
    with pytest.raises(TokenizerError, match=r"has \d\d\d pieces, the model says 200"):
        load_moshi_checkpoint(source, kind)
    with pytest.raises(TokenizerError, match="pieces, the model says 200"):
        convert(source, tmp_path / "own")
    assert not (tmp_path / "own").exists()


def test_a_tokenizer_may_lie_elsewhere(kind: Any, folder: Path, tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "x", kind)
    (source / "tokenizer_spm_32k_3.model").rename(tmp_path / "moved.model")
    expected = load_moshi_checkpoint(folder, kind).tokenizer.encode("today")
    for place in (tmp_path / "moved.model", folder):
        assert load_moshi_checkpoint(source, kind, tokenizer=place).tokenizer.encode("today") == expected
    with pytest.raises(CheckpointError, match="holds no sentencepiece model; give its file"):
        load_moshi_checkpoint(source, kind, tokenizer=source)


def test_what_a_folder_lacks_is_named(kind: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    source = write_checkpoint(tmp_path / "x", kind)
    (source / "tokenizer_spm_32k_3.model").unlink()
    with pytest.raises(CheckpointError, match=r"holds no sentencepiece model \(\*\.model\); give one as tokenizer"):
        load_moshi_checkpoint(source, kind)
    if kind == "stt":
        config = json.loads((source / files.CONFIG).read_text())
        del config["stt_config"]
        (source / files.CONFIG).write_text(json.dumps(config))
        with pytest.raises(ConfigError, match=r"config\.json \(stt_config\).*says audio_delay_seconds"):
            load_moshi_checkpoint(source, kind)


def test_of_a_repository_what_is_needed_is_chosen() -> None:
    mlx = ["README.md", "model.q4.safetensors", files.MIMI_FILE, "tokenizer_spm_32k_3.model"]
    assert hub.needed_files(mlx, "checkpoint", "kyutai/moshiko-mlx-q4") == sorted(mlx[1:])
    stt = [files.CONFIG, files.MODEL, "mimi-pytorch-e351c8d8@125.safetensors", "tokenizer_en_fr_audio_8000.model"]
    assert hub.needed_files([*stt, ".gitattributes"], "checkpoint", "kyutai/stt-1b-en_fr") == sorted(stt)
