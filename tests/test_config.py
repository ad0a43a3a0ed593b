"""Configurations read what they wrote and refuse everything else by name."""

import json
from pathlib import Path

import pytest
from support.models import csm_config, mimi_config

from csm_mlx.config import CheckpointConfig, preset, preset_names
from csm_mlx.errors import ConfigError


@pytest.fixture
def data() -> dict:
    return CheckpointConfig(csm=csm_config(), codec=mimi_config()).to_dict()


def changed(data: dict, path: str, value: object) -> dict:
    *parents, last = path.split(".")
    at = data
    for name in parents:
        at = at[name]
    at[last] = value
    return data


def test_round_trip_through_json(data: dict) -> None:
    config = CheckpointConfig.from_dict(data)
    assert CheckpointConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert config.codec.frame_size == 1920
    assert config.codec.frame_rate_hz == 12.5
    assert config.csm.head_rows == 64


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("csm.n_codebook", 4, "config.csm has the unknown field 'n_codebook'; did you mean 'n_codebooks'?"),
        ("csm.backbone.dim", "64", "config.csm.backbone.dim is str '64', expected int"),
        ("csm.backbone.dim", True, "config.csm.backbone.dim is bool True, expected int"),
        ("csm.backbone.norm", "batch", "expected one of 'rms', 'layer'"),
        ("csm.backbone.n_kv_heads", 3, "n_heads 4 must be a multiple of n_kv_heads 3"),
        ("csm.backbone.head_dim", 15, "expected an even number"),
        ("csm.n_codebooks", 5, "csm.n_codebooks is 5, but the codec has 4 codebooks"),
        ("csm.codebook_size", 60, "csm.codebook_size is 60, but codec.codebook_size 61"),
        ("csm.codebook_size", 70, "expected at most audio_vocab_size 64"),
        ("codec.ratios", 8, "config.codec.ratios is 8, expected a list"),
        ("codec.transformer", None, "config.codec.transformer is NoneType None, expected an object"),
        ("codec.dim", 64, "transformer.dim 32 must equal the latents' dim 64"),
        ("codec.n_semantic_codebooks", 4, "fewer than n_codebooks 4"),
        ("format_version", 99, "format_version is 99, this csm-mlx reads 1; update csm-mlx"),
        ("sampling", {"temperature": -1}, "temperature is -1"),
    ],
)
def test_what_does_not_fit_is_named(data: dict, path: str, value: object, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        CheckpointConfig.from_dict(changed(data, path, value))
    assert message in str(caught.value)


def test_missing_field_is_named(data: dict) -> None:
    del data["csm"]["depth"]["ffn_dim"]
    with pytest.raises(ConfigError, match=r"config\.csm\.depth lacks the field 'ffn_dim'"):
        CheckpointConfig.from_dict(data)


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        CheckpointConfig.read(tmp_path / "config.json")
    (tmp_path / "config.json").write_text('{"csm": ')
    with pytest.raises(ConfigError, match="is not JSON"):
        CheckpointConfig.read(tmp_path / "config.json")


def test_presets_are_the_published_sizes() -> None:
    assert {"csm-1b", "csm-3b", "csm-8b", "csm-tiny"} <= set(preset_names())
    one = preset("csm-1b").csm
    assert (one.backbone.dim, one.backbone.n_layers, one.depth.dim, one.depth.n_layers) == (2048, 16, 1024, 4)
    assert (one.n_codebooks, one.audio_vocab_size, one.codebook_size, one.head_rows) == (32, 2051, 2048, 2056)
    assert (preset("csm-3b").csm.backbone.dim, preset("csm-3b").csm.backbone.n_layers) == (3072, 28)
    assert (preset("csm-8b").csm.backbone.dim, preset("csm-8b").csm.backbone.ffn_dim) == (4096, 14336)
    with pytest.raises(ConfigError, match="no preset 'csm-2b'; known are csm-1b"):
        preset("csm-2b")
