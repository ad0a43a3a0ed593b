"""Kyutai's language models as each of its packages writes them, and what is said of those that do not fit."""

import json
import re
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from support.moshi import (
    greedy_session,
    moshi_config,
    random_frames,
    random_moshi,
    share_norms,
    stt_config,
    write_kyutai,
)

from csm_mlx.checkpoint.moshi import load_lm, open_lm
from csm_mlx.config import MoshiConfig
from csm_mlx.errors import CheckpointError, ConfigError
from csm_mlx.models.moshi import ZERO_TOKEN, MoshiModel
from csm_mlx.quantize import dequantize_model

CONDITIONS = {"description": ["very_bad", "very_good"]}
CONFIGS = {
    "moshi": moshi_config(depth_embedding_rank=None),
    "hibiki": moshi_config(conditions=CONDITIONS),
    "stt": stt_config(),
}


@pytest.fixture(scope="module", params=CONFIGS)
def model(request: pytest.FixtureRequest) -> MoshiModel:
    model = random_moshi(CONFIGS[request.param])
    return share_norms(model) if model.config.depth else model


def edited(folder: Path, **changes: Any) -> Path:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    return folder


@pytest.mark.parametrize("layout", ["torch", "mlx", "candle"])
def test_every_layout_loads_to_equal_weights(model: MoshiModel, tmp_path: Path, layout: str) -> None:
    folder = write_kyutai(model, tmp_path / layout, layout)
    loaded = load_lm(folder)
    assert loaded.config == model.config
    expected, found = dict(tree_flatten(model.parameters())), dict(tree_flatten(loaded.parameters()))
    assert expected.keys() == found.keys()
    for name, weight in expected.items():
        assert mx.array_equal(weight, found[name]).item(), name
    assert load_lm(folder / "model.safetensors").config == model.config
    sliced = layout == "mlx" or (layout == "candle" and model.config.depth is not None)
    assert open_lm(folder).layout == ("kyutai-slices" if sliced else "kyutai")


def test_quantized_ones_load_packed(model: MoshiModel, tmp_path: Path) -> None:
    folder = write_kyutai(model, tmp_path / "q4", "mlx-q4")
    floats = {f"conditions.{name}": False for name in model.config.conditions}
    assert open_lm(folder).quantization == {"group_size": 32, "bits": 4, "mode": "affine"} | floats
    packed = load_lm(folder)
    assert packed.text_head["weight"].dtype == mx.uint32
    conditions = dict.fromkeys(model.config.conditions, "very_good")
    session = greedy_session(packed, conditions=conditions)
    text = np.concatenate([np.array(session.step(frame).text) for frame in random_frames(model.config, 5)])
    assert 0 <= text.min() <= text.max() < model.config.text_head_size
    # The same numbers as floats: rows were cut and joined where they belong.
    unpacked = load_lm(folder)
    dequantize_model(unpacked, mx.float32)
    tokens = mx.array(np.random.default_rng(0).integers(0, 40, (1, 12, 1 + model.config.n_codebooks)).astype(np.int32))
    a, b = (m(tokens, m.make_state(1, chunk_frames=12))[0] for m in (packed, unpacked))
    np.testing.assert_allclose(np.array(a), np.array(b), atol=1e-3)


def test_nothing_is_zero_in_quantized_tables_too(tmp_path: Path) -> None:
    model = share_norms(random_moshi())
    for m in (model, load_lm(write_kyutai(model, tmp_path / "q4", "mlx-q4"))):
        nothing = mx.full((1, 1, 9), ZERO_TOKEN, mx.int32)
        assert mx.abs(m.embed(nothing)).max().item() == 0
        one = mx.concatenate([nothing[..., :3], mx.array([[[7]]], mx.int32), nothing[..., 4:]], axis=-1)
        row = m.audio_embeddings(mx.array([2 * 41 + 7]))
        np.testing.assert_allclose(np.array(m.embed(one))[0, 0], np.array(row)[0])


def test_weights_that_do_not_fit_are_named(tmp_path: Path) -> None:
    model = share_norms(random_moshi())
    folder = write_kyutai(model, tmp_path / "torch", "torch")
    with pytest.raises(CheckpointError, match=r"missing 'temporal\.layers\.2\."):
        load_lm(edited(folder, num_layers=3))
    edited(folder, num_layers=2)
    tensors = mx.load(str(folder / "model.safetensors"))
    assert isinstance(tensors, dict)
    mx.save_safetensors(str(folder / "model.safetensors"), {**tensors, "transformer.layers.0.what": mx.zeros(1)})
    with pytest.raises(CheckpointError, match=r"extra 'transformer\.layers\.0\.what'"):
        load_lm(folder)
    table = tensors["emb.1.weight"]
    mx.save_safetensors(str(folder / "model.safetensors"), {**tensors, "emb.1.weight": table[:-1]})
    with pytest.raises(CheckpointError, match=r"'emb\.1\.weight' is F32 \[40, 64\]"):
        load_lm(folder)


def test_a_folder_without_one_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds nothing, expected a safetensors file"):
        load_lm(tmp_path)
    mx.save_safetensors(str(tmp_path / "what.safetensors"), {"a": mx.zeros(2)})
    with pytest.raises(CheckpointError, match=r"what\.safetensors"):
        load_lm(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"cross_attention": True},
        {"depformer_norm": "layer_norm"},
        {"positional_embedding": "sin"},
        {"norm": "layer_norm"},
        {"layer_scale": 0.01},
        {"depformer_pos_emb": "rope"},
        {"demux_second_stream": True},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_parts_that_are_not_there_are_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    folder = edited(write_kyutai(share_norms(random_moshi()), tmp_path / "torch", "torch"), **changes)
    name, value = next(iter(changes.items()))
    with pytest.raises(ConfigError, match=f"config.json says {name} {re.escape(repr(value))}, csm-mlx knows "):
        load_lm(folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"conditioners": {"speaker_wavs": {"type": "tensor", "tensor": {"dim": 512}}}},
        {"conditioners": {"cfg": {"type": "lut", "lut": {"possible_values": None, "tokenizer": "noop"}}}},
        {"fuser": {"cross": ["description"], "sum": []}},
    ],
    ids=["a tensor", "without values", "attended to"],
)
def test_other_conditions_are_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    model = share_norms(random_moshi(moshi_config(conditions=CONDITIONS)))
    folder = edited(write_kyutai(model, tmp_path / "torch", "torch"), **changes)
    with pytest.raises(ConfigError, match=r"config\.json says the condition '\w+' is .*knows only tables"):
        load_lm(folder)


def test_without_a_config_it_is_taken_for_moshiko(tmp_path: Path) -> None:
    folder = write_kyutai(share_norms(random_moshi()), tmp_path / "mlx", "mlx")
    (folder / "config.json").unlink()
    with pytest.raises((CheckpointError, ConfigError), match=r"\[64\], expected \[4096\]|fit"):
        load_lm(folder)


def test_a_config_without_its_sizes_is_refused(tmp_path: Path) -> None:
    folder = edited(write_kyutai(share_norms(random_moshi()), tmp_path / "mlx", "mlx"), context=None)
    with pytest.raises(ConfigError, match=r"config\.json lacks context"):
        load_lm(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"delays": (0, 0)}, r"delays is \[0, 0\], expected 9 from 0 on"),
        ({"delays": (1, 0, 2, 2, 2, 0, 2, 2, 2)}, r"delays\[0\] is 1, expected 0"),
        ({"depth_schedule": (0, 1, 2)}, r"depth_schedule is \[0, 1, 2\], expected 4 numbers"),
        ({"depth_schedule": (0, 2, 2, 2)}, "expected every set from 0 on to be used"),
        ({"n_generated": 9}, "n_generated is 9, expected 0 to n_codebooks 8"),
        ({"depth": None}, "n_generated is 4, which needs a depth"),
        ({"text_pad_id": 48}, "text_pad_id is 48, expected 0 to 47"),
    ],
)
def test_configs_that_make_no_sense_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        moshi_config(**changes)


def test_a_config_survives_json() -> None:
    for config in CONFIGS.values():
        assert MoshiConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
