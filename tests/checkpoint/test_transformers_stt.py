"""Speech-to-text as transformers saves it: the same model as in Kyutai's own layout, and what its files may say."""

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from support import layouts
from support.moshi import random_moshi, spm_tokenizer, stt_config, write_kyutai, write_spm

from csm_mlx.checkpoint import files, hub
from csm_mlx.checkpoint.convert import convert
from csm_mlx.checkpoint.load import load_moshi_checkpoint
from csm_mlx.errors import CheckpointError, ConfigError
from csm_mlx.models.moshi import MoshiModel
from csm_mlx.quantize import named_parameters
from csm_mlx.stored import SttConfig

TIMING = {"audio_delay_seconds": 0.16, "audio_silence_prefix_seconds": 0.08}


def transformers_config(model: MoshiModel) -> dict[str, Any]:
    c = model.config
    return {
        "model_type": "kyutai_speech_to_text",
        "vocab_size": c.text_vocab_size + 1,
        "codebook_vocab_size": c.codebook_size + 1,
        "num_codebooks": c.n_codebooks,
        "hidden_size": c.temporal.dim,
        "num_hidden_layers": c.temporal.n_layers,
        "num_attention_heads": c.temporal.n_heads,
        "num_key_value_heads": c.temporal.n_kv_heads,
        "head_dim": c.temporal.head_dim,
        "ffn_dim": 2 * c.temporal.ffn_dim,
        "sliding_window": c.temporal.window,
        "rms_norm_eps": c.temporal.norm_eps,
        "rope_parameters": {"rope_type": "default", "rope_theta": c.temporal.rope_base},
        "hidden_act": "silu",
        "codec_config": layouts.mimi_config(),
    }


def transformers_names(model: MoshiModel) -> dict[str, np.ndarray]:
    weights = {name: np.array(w) for name, w in named_parameters(model).items()}
    nothing = np.zeros((1, model.config.temporal.dim), np.float32)
    out = {
        "lm_head.weight": np.concatenate([weights["text_head.weight"], nothing]),
        "model.norm.weight": weights["temporal.norm.weight"],
        "model.embed_tokens.embed_tokens.weight": np.concatenate(
            [weights["text_embeddings.weight"], weights["audio_embeddings.weight"], nothing]
        ),
    }
    for i in range(model.config.temporal.n_layers):
        ours, theirs = f"temporal.layers.{i}", f"model.layers.{i}"
        for part in "qkvo":
            w = weights[f"{ours}.self_attn.{part}_proj.weight"]
            turned = layouts.halves(w, model.config.temporal.head_dim) if part in "qk" else w
            out[f"{theirs}.self_attn.{part}_proj.linear.weight"] = turned
        gate_up = [weights[f"{ours}.mlp.{part}_proj.weight"] for part in ("gate", "up")]
        out[f"{theirs}.mlp.fc1.weight"] = np.concatenate(gate_up)
        out[f"{theirs}.mlp.fc2.weight"] = weights[f"{ours}.mlp.down_proj.weight"]
        for norm in ("input_layernorm", "post_attention_layernorm"):
            out[f"{theirs}.{norm}.weight"] = weights[f"{ours}.{norm}.weight"]
    return out


@pytest.fixture(scope="module")
def model() -> MoshiModel:
    n_ids, codec = spm_tokenizer().vocab_size, layouts.CONFIG.codec
    return random_moshi(
        stt_config(
            n_extra_heads=0, text_vocab_size=n_ids, text_head_size=n_ids, codebook_size=codec.codebook_size
        )
    )  # fmt: skip


@pytest.fixture
def folder(model: MoshiModel, tmp_path: Path) -> Path:
    """As `KyutaiSpeechToTextForConditionalGeneration.save_pretrained` and its processor write it, with the tokenizer
    of Kyutai's own repository."""
    path = tmp_path / "trfs"
    codec = layouts.transformers_mimi(layouts.make_tiny(), "codec_model.")
    layouts.save(path / "model.safetensors", transformers_names(model) | codec)
    layouts.write_json(path / "config.json", transformers_config(model))
    layouts.write_json(path / "preprocessor_config.json", TIMING | {"feature_size": 1})
    write_spm(path / "tokenizer_en_fr_audio_8000.model")
    return path


def changed(folder: Path, name: str = "config.json", **values: Any) -> None:
    said = json.loads((folder / name).read_text())
    layouts.write_json(folder / name, {k: v for k, v in (said | values).items() if v is not None})


def test_it_is_the_model_of_kyutais_layout(model: MoshiModel, folder: Path, tmp_path: Path) -> None:
    write_kyutai(model, tmp_path / "kyutai", "torch")
    layouts.save(tmp_path / "kyutai" / files.MIMI_FILE, layouts.kyutai_mimi(layouts.make_tiny()))
    write_spm(tmp_path / "kyutai" / "tokenizer.model")
    changed(tmp_path / "kyutai", stt_config=TIMING)
    one, other = (load_moshi_checkpoint(path, "stt") for path in (tmp_path / "kyutai", folder))
    for part in ("model", "codec"):
        expected, found = (named_parameters(getattr(checkpoint, part)) for checkpoint in (one, other))
        assert expected.keys() == found.keys()
        for name, w in expected.items():
            assert mx.array_equal(w, found[name]).item(), name
    assert one.config.moshi == other.config.moshi
    assert other.config.source == {"name": "trfs", "layout": "kyutai-transformers"}
    assert (other.config.stt, other.config.text_sampling) == (one.config.stt, one.config.text_sampling)


def test_converting_it_loses_nothing(folder: Path, tmp_path: Path) -> None:
    report = convert(folder, tmp_path / "own", dtype="float32")
    assert (report.kind, report.layout) == ("stt", "kyutai-transformers")
    before, after = (load_moshi_checkpoint(path, "stt") for path in (folder, tmp_path / "own"))
    for name, w in named_parameters(before.model).items():
        assert mx.array_equal(w, named_parameters(after.model)[name]).item(), name
    assert before.config == after.config


def test_its_timing_is_found_in_either_file(folder: Path) -> None:
    assert load_moshi_checkpoint(folder, "stt").config.stt == SttConfig(delay_s=0.16, prefix_s=0.08)
    newer = TIMING | {"audio_delay_seconds": 0.24}
    layouts.write_json(folder / "processor_config.json", {"feature_extractor": newer})
    assert load_moshi_checkpoint(folder, "stt").config.stt == SttConfig(delay_s=0.24, prefix_s=0.08)
    for name in files.PROCESSORS:
        (folder / name).unlink()
    with pytest.raises(ConfigError, match=r"preprocessor_config\.json"):
        load_moshi_checkpoint(folder, "stt")


def test_what_it_leaves_out_is_as_transformers_takes_it(folder: Path) -> None:
    expected = load_moshi_checkpoint(folder, "stt").config
    changed(
        folder, rope_parameters=None, rope_theta=10000.0, rms_norm_eps=None, num_key_value_heads=None, head_dim=None
    )
    assert load_moshi_checkpoint(folder, "stt").config == expected


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"hidden_act": "gelu"}, "hidden_act 'gelu', expected 'silu'"),
        ({"rms_norm_eps": 1e-6}, "rms_norm_eps 1e-06, expected 1e-08 or 1e-05"),
        ({"num_attention_heads": 5}, "num_attention_heads 5, expected a divisor of hidden_size 64"),
        ({"num_key_value_heads": 3}, "num_key_value_heads 3, expected a divisor of 4"),
        ({"num_key_value_heads": "4"}, "num_key_value_heads '4', expected a int"),
        ({"head_dim": 8}, "head_dim 8, expected 16"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings True, expected false"),
        ({"num_codebooks": 5}, "85 codes, and .* has .* rows, not one more than both"),
        ({"num_codebooks": "4"}, "num_codebooks '4', expected a int"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope_type 'yarn'"),
    ],
)
def test_what_cannot_be_run_is_said(folder: Path, values: dict[str, Any], message: str) -> None:
    changed(folder, **values)
    with pytest.raises(ConfigError, match=message):
        load_moshi_checkpoint(folder, "stt")


def test_an_unknown_or_missing_tensor_is_named(folder: Path) -> None:
    weights = mx.load(str(folder / "model.safetensors"))
    assert isinstance(weights, dict)
    moved = weights.pop("model.layers.0.mlp.fc2.weight")
    mx.save_safetensors(str(folder / "model.safetensors"), weights | {"model.layers.0.mlp.fc3.weight": moved})
    with pytest.raises(CheckpointError, match=r"layers\.0\.mlp\.(fc3|down_proj)"):
        load_moshi_checkpoint(folder, "stt")


def test_of_a_repository_its_timing_is_fetched_too() -> None:
    needed = [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "preprocessor_config.json",
        "tokenizer.json",
    ]
    others = [".gitattributes", "README.md", "special_tokens_map.json", "tokenizer_config.json"]
    assert hub.needed_files(needed + others, "checkpoint", "kyutai/stt-1b-en_fr-trfs") == needed
