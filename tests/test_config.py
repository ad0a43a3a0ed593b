"""Configurations read what they wrote and refuse everything else by name."""

import json
from pathlib import Path

import pytest
from support.models import csm_config, mimi_config

from csm_mlx.errors import ConfigError
from csm_mlx.stored import CheckpointConfig, preset, preset_names


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
        ("codec.ratios", [8, 0, 5, 4], "ratios is [8, 0, 5, 4], expected one or more whole numbers above 0"),
        ("codec.ratios", [], "ratios is [], expected one or more"),
        ("codec.compress", 0, "compress is 0, expected a number above 0"),
        ("codec.kernel_size", 0, "kernel_size is 0, expected a number above 0"),
        ("codec.n_residual_layers", -1, "n_residual_layers is -1, expected 0 or more"),
        ("codec.transformer.window", None, "transformer.window is missing; a stream without an end needs one"),
        ("csm.backbone.window", 600, "backbone.window is 600, expected none"),
        ("csm.speaker_format", "speaker", "expected it to hold '{speaker}'"),
        ("csm.speaker_format", "[{speaker}] {", "expected it to hold '{speaker}' and no other brace"),
        ("csm.speaker_format", "{speaker}{x}", "expected it to hold '{speaker}' and no other brace"),
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


def test_another_version_is_told_before_its_fields(data: dict) -> None:
    with pytest.raises(ConfigError, match=r"config\.format_version is 2, this csm-mlx reads 1; update csm-mlx"):
        CheckpointConfig.from_dict(data | {"format_version": 2, "new": 1})


def test_a_file_is_utf_8_whatever_the_locale(data: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text(json.dumps(data | {"notice": "fürs Üben"}, ensure_ascii=False), "utf-8")
    read_text, encodings = Path.read_text, []
    monkeypatch.setattr(
        Path, "read_text", lambda self, encoding: encodings.append(encoding) or read_text(self, encoding)
    )
    assert CheckpointConfig.read(tmp_path / "config.json").notice == "fürs Üben"
    assert encodings == ["utf-8"]
