"""Every published layout loads to the same bits; whatever is broken is named."""

import json
import shutil
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten
from support import layouts

from csm_mlx.checkpoint.detect import csm_layout, mimi_layout
from csm_mlx.checkpoint.load import load_checkpoint
from csm_mlx.checkpoint.source import open_source
from csm_mlx.errors import CheckpointError, ConfigError, CsmError, TokenizerError
from csm_mlx.models.csm import CsmModel
from csm_mlx.quantize import dequantized

TINY_HF = Path(__file__).parents[2].parent / "shared" / "csm-tiny-hf"


@pytest.fixture(scope="module")
def tiny() -> layouts.Tiny:
    return layouts.make_tiny()


def parameters(module: nn.Module) -> dict[str, mx.array]:
    return dict(tree_flatten(module.parameters()))


def assert_same(module: nn.Module, expected: layouts.Weights) -> None:
    found = parameters(module)
    assert set(found) == set(expected)
    differing = [name for name, w in expected.items() if not np.array_equal(np.asarray(found[name]), w)]
    assert not differing


def read(path: Path) -> dict[str, mx.array]:
    loaded = mx.load(str(path))
    assert isinstance(loaded, dict)
    return loaded


@pytest.mark.parametrize("layout", layouts.LAYOUTS)
def test_every_layout_loads_to_the_same_bits(layout: str, tiny: layouts.Tiny, tmp_path: Path) -> None:
    layouts.LAYOUTS[layout](tmp_path / "source", tiny)

    loaded = load_checkpoint(tmp_path / "source")

    assert_same(loaded.model, tiny.model)
    assert_same(loaded.codec, tiny.codec)
    assert loaded.config.csm == layouts.CONFIG.csm
    assert loaded.config.codec == layouts.CONFIG.codec
    assert loaded.tokenizer.encode("[0]a")[0] == 0


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16])
def test_stored_types_load_as_float32_on_the_cpu(dtype: mx.Dtype, tiny: layouts.Tiny, tmp_path: Path) -> None:
    layouts.write_own(tmp_path, tiny)
    layouts.save(tmp_path / "model.safetensors", tiny.model, dtype)

    loaded = load_checkpoint(tmp_path)

    expected = {name: np.asarray(mx.array(w).astype(dtype).astype(mx.float32)) for name, w in tiny.model.items()}
    assert_same(loaded.model, expected)


def test_a_given_type_is_taken_for_the_model_and_not_for_the_codec(tiny: layouts.Tiny, tmp_path: Path) -> None:
    layouts.write_own(tmp_path, tiny)

    loaded = load_checkpoint(tmp_path, dtype=mx.bfloat16)

    assert {p.dtype for p in parameters(loaded.model).values()} == {mx.bfloat16}
    assert {p.dtype for p in parameters(loaded.codec).values()} == {mx.float32}


def test_mlx_communitys_quantized_weights_are_kept_and_their_head_padded(tiny: layouts.Tiny, tmp_path: Path) -> None:
    layouts.write_mlx_community_quantized(tmp_path, tiny)

    model = load_checkpoint(tmp_path, unpack=False).model

    vocab, rows = layouts.CONFIG.csm.audio_vocab_size, layouts.CONFIG.csm.head_rows
    head: Any = model.codebook0_head
    weights = dequantized(head)
    assert weights.shape == (rows, layouts.CONFIG.csm.backbone.dim)
    assert not weights[vocab:].any().item()
    source = read(tmp_path / "model.safetensors")
    packed, scales, biases = (source[f"model.codebook0_head.{p}"] for p in ("weight", "scales", "biases"))
    scales, biases = scales.astype(mx.float32), biases.astype(mx.float32)
    assert mx.array_equal(weights[:vocab], mx.dequantize(packed, scales, biases, bits=8))
    assert isinstance(model.audio_head[0], nn.Linear)
    assert isinstance(model.text_embeddings, nn.QuantizedEmbedding)
    assert np.array_equal(np.asarray(model.audio_head[1].weight), tiny.model["audio_head.1.weight"])


def test_small_quantized_models_are_unpacked_on_the_cpu(tiny: layouts.Tiny, tmp_path: Path) -> None:
    layouts.write_mlx_community_quantized(tmp_path, tiny)

    unpacked, packed = load_checkpoint(tmp_path).model, load_checkpoint(tmp_path, unpack=False).model

    assert not any(isinstance(m, nn.QuantizedLinear | nn.QuantizedEmbedding) for m in unpacked.modules())
    layer, plain = packed.backbone.layers[0].self_attn.q_proj, unpacked.backbone.layers[0].self_attn.q_proj
    assert isinstance(layer, nn.QuantizedLinear)
    assert mx.array_equal(plain.weight, dequantized(layer))


def test_a_weight_file_loads_like_its_folder(tiny: layouts.Tiny, tmp_path: Path) -> None:
    layouts.write_senstella(tmp_path, tiny)
    shutil.copy(tmp_path / "mimi.safetensors", tmp_path / "elsewhere.bin")
    (tmp_path / "codec").mkdir()
    (tmp_path / "mimi.safetensors").rename(tmp_path / "codec" / "mimi.safetensors")

    assert_same(load_checkpoint(tmp_path / "ckpt.safetensors").codec, tiny.codec)


def test_codec_and_tokenizer_may_be_given(tiny: layouts.Tiny, tmp_path: Path) -> None:
    layouts.write_senstella(tmp_path / "model", tiny)
    for name in ("mimi.safetensors", "tokenizer.json"):
        (tmp_path / "model" / name).rename(tmp_path / name)

    loaded = load_checkpoint(
        tmp_path / "model", codec=tmp_path / "mimi.safetensors", tokenizer=tmp_path / "tokenizer.json"
    )

    assert_same(loaded.codec, tiny.codec)


def test_sesames_whole_repository_loads_though_it_holds_its_model_twice(tiny: layouts.Tiny, tmp_path: Path) -> None:
    layouts.write_transformers(tmp_path, tiny, n_shards=2)
    layouts.save(tmp_path / "model.safetensors", layouts.torchtune(tiny.model))
    (tmp_path / "ckpt.pt").write_bytes(b"PK\x03\x04")

    loaded = load_checkpoint(tmp_path)

    assert_same(loaded.model, tiny.model)
    assert_same(loaded.codec, tiny.codec)


def test_layouts_are_told_by_tensors_alone(tiny: layouts.Tiny) -> None:
    assert csm_layout(tiny.model) == "own"
    assert csm_layout(layouts.torchtune(tiny.model)) == "torchtune"
    assert csm_layout(layouts.senstella(tiny.model)) == "llama"
    assert csm_layout(layouts.transformers_csm(tiny.model)) == "transformers"
    assert csm_layout(["model.decoder.layers.0.self_attn.q_proj.weight"]) is None  # whisper, for one
    assert mimi_layout(tiny.codec) == "own"
    assert mimi_layout(layouts.kyutai_mimi(tiny)) == "kyutai"
    assert mimi_layout(layouts.transformers_mimi(tiny, "codec_model.")) == "transformers"
    assert mimi_layout(tiny.model) is None


@pytest.mark.skipif(not TINY_HF.is_dir(), reason="the transformers checkpoint is not on this machine")
def test_a_checkpoint_that_transformers_wrote_loads() -> None:
    loaded = load_checkpoint(TINY_HF)

    assert loaded.config.csm.n_codebooks == 4
    assert loaded.config.sampling.temperature == 0.6
    assert loaded.config.sampling.top_k == 20
    pcm, _ = loaded.codec.decode(mx.zeros((1, 2, 4), mx.int32))
    assert pcm.shape == (1, 3840, 1)


@pytest.mark.parametrize("spelling", ["weight_g", "parametrizations"])
def test_weight_norm_is_folded(spelling: str, tiny: layouts.Tiny, tmp_path: Path) -> None:
    layouts.write_torchtune(tmp_path, tiny)
    weights = layouts.kyutai_mimi(tiny)
    for name in [n for n in weights if n.endswith("conv.conv.weight") and n.startswith("encoder")]:
        direction = weights.pop(name)
        magnitude = np.sqrt((direction**2).sum(axis=(1, 2), keepdims=True))
        stem = name.removesuffix("weight")
        g, v = "weight_g", "weight_v"
        if spelling != "weight_g":
            g, v = "parametrizations.weight.original0", "parametrizations.weight.original1"
        weights |= {stem + g: magnitude, stem + v: 3 * direction}
    layouts.save(tmp_path / "tokenizer-e351c8d8-checkpoint125.safetensors", weights)

    codec = parameters(load_checkpoint(tmp_path).codec)

    assert all(np.allclose(np.asarray(codec[n]), w, rtol=1e-6, atol=0) for n, w in tiny.codec.items())


# --- what is refused -----------------------------------------------------------------------------------------------


def refused(error: type[CsmError], path: Path, *parts: str, **options: Any) -> None:
    """Loading fails with a message that has all `parts`, and leaves every file as it was."""
    before = {p: p.read_bytes() for p in path.rglob("*") if p.is_file()}
    with pytest.raises(error) as caught:
        load_checkpoint(path, **options)
    message = str(caught.value)
    assert not [part for part in parts if part not in message], message
    assert {p: p.read_bytes() for p in path.rglob("*") if p.is_file()} == before


def test_missing_extra_and_misshapen_tensors_are_named_with_both_shapes(tiny: layouts.Tiny, tmp_path: Path) -> None:
    layouts.write_own(tmp_path, tiny)
    weights = dict(tiny.model)
    del weights["backbone.layers.1.mlp.up_proj.weight"]
    weights["lora.weight"] = np.zeros((3, 2), np.float32)
    weights["projection.weight"] = weights["projection.weight"].T
    layouts.save(tmp_path / "model.safetensors", weights)

    refused(
        CheckpointError,
        tmp_path,
        "missing 'backbone.layers.1.mlp.up_proj.weight' [192, 128]",
        "extra 'lora.weight' [3, 2]",
        "misshapen 'projection.weight' is [128, 64], expected [64, 128]",
        "fetch both again",
    )


def test_a_misshapen_foreign_tensor_has_its_foreign_name(tiny: layouts.Tiny, tmp_path: Path) -> None:
    layouts.write_transformers(tmp_path, tiny)
    config = layouts.transformers_config()
    config["depth_decoder_config"]["intermediate_size"] = 96
    layouts.write_json(tmp_path / "config.json", config)

    refused(
        CheckpointError, tmp_path, "'depth_decoder.model.layers.0.mlp.gate_proj.weight' is [128, 64], expected [96, 64]"
    )


def test_missing_codec_tensors_are_named(tiny: layouts.Tiny, tmp_path: Path) -> None:
    layouts.write_own(tmp_path, tiny)
    weights = {name: w for name, w in tiny.codec.items() if name != "decoder.final_conv.bias"}
    layouts.save(tmp_path / "codec.safetensors", weights)

    refused(CheckpointError, tmp_path, "the codec", "missing 'decoder.final_conv.bias' [1]")


def test_a_codebook_without_its_counts_is_named(tiny: layouts.Tiny, tmp_path: Path) -> None:
    layouts.write_torchtune(tmp_path, tiny)
    weights = layouts.kyutai_mimi(tiny)
    del weights["quantizer.rvq_rest.vq.layers.1._codebook.cluster_usage"]
    layouts.save(tmp_path / "tokenizer-e351c8d8-checkpoint125.safetensors", weights)

    refused(CheckpointError, tmp_path, "codebook 1", "incomplete", "cluster_usage")


@pytest.mark.parametrize(("value", "counted"), [(np.nan, "1 NaN and 0 infinite"), (-np.inf, "0 NaN and 1 infinite")])
def test_weights_that_are_no_numbers_are_refused(
    value: float, counted: str, tiny: layouts.Tiny, tmp_path: Path
) -> None:
    layouts.write_transformers(tmp_path, tiny)
    weights = {**layouts.transformers_csm(tiny.model), **layouts.transformers_mimi(tiny, "codec_model.")}
    name = "backbone_model.layers.0.mlp.up_proj.weight"
    weights[name] = weights[name].copy()
    weights[name][3, 4] = value
    layouts.save(tmp_path / "model.safetensors", weights)

    refused(CheckpointError, tmp_path, name, "model.safetensors", counted, "expected none")


def test_wrong_types_are_refused(tiny: layouts.Tiny, tmp_path: Path) -> None:
    layouts.write_own(tmp_path, tiny)
    weights: dict[str, Any] = dict(tiny.model)
    weights["projection.weight"] = mx.zeros((64, 128), mx.int32)
    layouts.save(tmp_path / "model.safetensors", weights)

    refused(CheckpointError, tmp_path, "'projection.weight' in model.safetensors is stored as I32, expected F32")


def test_packed_weights_must_be_unsigned(tiny: layouts.Tiny, tmp_path: Path) -> None:
    layouts.write_mlx_community_quantized(tmp_path, tiny)
    weights: dict[str, Any] = read(tmp_path / "model.safetensors")
    weights["model.projection.weight"] = weights["model.projection.weight"].view(mx.int32)
    layouts.save(tmp_path / "model.safetensors", weights, mx.bfloat16)

    refused(CheckpointError, tmp_path, "'model.projection.weight'", "I32, expected U32")


def test_two_audio_tables_that_differ_are_refused(tiny: layouts.Tiny, tmp_path: Path) -> None:
    layouts.write_transformers(tmp_path, tiny)
    weights = {**layouts.transformers_csm(tiny.model), **layouts.transformers_mimi(tiny, "codec_model.")}
    name = "backbone_model.embed_tokens.embed_audio_tokens.weight"
    weights[name] = weights[name] + 1
    layouts.save(tmp_path / "model.safetensors", weights)

    refused(CheckpointError, tmp_path, name, "depth_decoder.model.embed_tokens.weight", "differ", "tied")


def test_a_missing_shard_is_named(tiny: layouts.Tiny, tmp_path: Path) -> None:
    layouts.write_transformers(tmp_path, tiny, n_shards=3)
    (tmp_path / "transformers-00002-of-00003.safetensors").unlink()

    refused(CheckpointError, tmp_path, "lacks transformers-00002-of-00003.safetensors", "fetch it again")
    (tmp_path / "transformers.safetensors.index.json").unlink()
    refused(CheckpointError, tmp_path, "lacks transformers-00002-of-00003.safetensors", "fetch it again")


def test_an_index_may_not_point_outside(tiny: layouts.Tiny, tmp_path: Path) -> None:
    layouts.write_transformers(tmp_path, tiny, n_shards=2)
    layouts.write_json(
        tmp_path / "transformers.safetensors.index.json", {"weight_map": {"a": "../../secret.safetensors"}}
    )

    refused(CheckpointError, tmp_path, "'../../secret.safetensors'", "do not trust it")


@pytest.mark.parametrize("name", ["ckpt.pt", "pytorch_model.bin", "model.pth"])
def test_pickles_are_refused_with_the_reason_and_the_way_round(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"\x80\x02}q\x00.")
    way = ("can run any program", "weights_only=True", "save_file")

    refused(CheckpointError, tmp_path, "only a pickle", name, *way)
    with pytest.raises(CheckpointError, match=f"{name} is a pickle; a pickle can run any program"):
        load_checkpoint(tmp_path / name)


def test_a_pickle_under_a_safetensors_name_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"PK\x03\x04" + bytes(100))

    refused(CheckpointError, tmp_path, "is a pickle or zip archive under a safetensors name", "can run any program")


def test_other_folders_are_told_apart(tiny: layouts.Tiny, tmp_path: Path) -> None:
    refused(CheckpointError, tmp_path, "holds nothing, expected a safetensors file; give the folder of a saved model")
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    refused(CheckpointError, tmp_path, "only model.gguf, which is not read")
    layouts.save(tmp_path / "mimi.safetensors", layouts.kyutai_mimi(tiny))
    refused(CheckpointError, tmp_path, "a Mimi codec and no CSM")
    (tmp_path / "mimi.safetensors").unlink()
    layouts.save(tmp_path / "bert.safetensors", {"bert.pooler.weight": np.zeros((2, 2), np.float32)})
    refused(CheckpointError, tmp_path, "no known layout of CSM", "bert.pooler.weight")


def test_a_path_that_is_not_there_says_what_is(tmp_path: Path) -> None:
    (tmp_path / "csm-1b-q4").mkdir()

    with pytest.raises(CheckpointError, match=r"csm-2b does not exist; .* holds csm-1b-q4; give a folder"):
        load_checkpoint(tmp_path / "csm-2b")
    with pytest.raises(CheckpointError, match=r"csm does not exist.*; give a folder, or a repository"):
        load_checkpoint("csm")


def test_a_local_folder_is_not_looked_up_in_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "weights" / "csm-1b-q4").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)

    with pytest.raises(CheckpointError, match="weights/csm-1b does not exist; weights holds csm-1b-q4"):
        load_checkpoint("weights/csm-1b")


def test_a_codec_of_another_size_is_refused(tiny: layouts.Tiny, tmp_path: Path) -> None:
    layouts.write_senstella(tmp_path, tiny)
    weights = layouts.transformers_mimi(tiny)
    for name in [n for n in weights if "acoustic" in n and ".layers." in n]:
        del weights[name]
    layouts.save(tmp_path / "mimi.safetensors", weights)

    refused(CheckpointError, tmp_path, "'quantizer.acoustic.codebooks' is missing")
    refused(CheckpointError, tmp_path, "holds no Mimi codec", codec=tmp_path / "ckpt.safetensors")


# --- configs -------------------------------------------------------------------------------------------------------


def with_config(folder: Path, changes: dict[str, Any]) -> None:
    config = json.loads((folder / "config.json").read_text())
    for path, value in changes.items():
        *parents, last = path.split("/")
        at = config
        for parent in parents:
            at = at[parent]
        at[last] = value
    layouts.write_json(folder / "config.json", config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"csm/n_codebook": 4}, "unknown field 'n_codebook'; did you mean 'n_codebooks'?"),
        ({"format_version": 9}, "format_version is 9, this csm-mlx reads 1"),
        ({"csm/n_codebooks": 8}, "csm.n_codebooks is 8, but the codec has 4 codebooks"),
        ({"csm/backbone/n_kv_heads": 3}, "n_heads 4 must be a multiple of n_kv_heads 3"),
        ({"csm/backbone/norm": "batch"}, "'batch', expected one of 'rms', 'layer'"),
        ({"quantization": {"group_size": 64, "bits": 7}}, "7 bits were asked for, expected one of 2, 3, 4"),
        ({"quantization": {"group_size": 64, "bits": 4, "nope": False}}, "quantization names 'nope'"),
    ],
)
def test_our_own_config_is_strict(changes: dict[str, Any], message: str, tiny: layouts.Tiny, tmp_path: Path) -> None:
    layouts.write_own(tmp_path, tiny)
    with_config(tmp_path, changes)

    refused(ConfigError, tmp_path, message)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_codebooks": 5}, "num_codebooks 5, but depth_decoder_config.num_codebooks 4"),
        ({"vocab_size": 20}, "vocab_size 20, but depth_decoder_config.vocab_size 19"),
        (
            {"depth_decoder_config/backbone_hidden_size": 64},
            "hidden_size 128, but depth_decoder_config.backbone_hidden_size 64",
        ),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu', expected 'silu'"),
        ({"attention_bias": True}, "attention_bias True, expected False"),
        ({"tie_codebooks_embeddings": False}, "tie_codebooks_embeddings false, expected true"),
        ({"codebook_eos_token_id": 2}, "codebook_eos_token_id 2, expected 0"),
        ({"hidden_size": "wide"}, "hidden_size 'wide', expected a int"),
        ({"rope_theta": 10000.0}, "rope_theta 500000.0 in rope_parameters, but 10000.0 in rope_scaling or rope_theta"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope_type 'yarn', expected 'llama3' or 'default'"),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 2}}, "'llama3' without low_freq_factor"),
        ({"codec_config/use_causal_conv": False}, "use_causal_conv False, expected True"),
        ({"codec_config/num_attention_heads": 3}, "num_key_value_heads 2, expected 3"),
        ({"codec_config/upsample_groups": 1}, "upsample_groups 1, expected 128"),
    ],
)
def test_a_transformers_config_that_clashes_is_refused(
    changes: dict[str, Any], message: str, tiny: layouts.Tiny, tmp_path: Path
) -> None:
    layouts.write_transformers(tmp_path, tiny)
    with_config(tmp_path, changes)

    refused(ConfigError, tmp_path, message)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backbone": {}}, 'write "backbone": {"head_dim": N} into config.json'),
        ({"backbone": {"head_dim": 48}}, "q_proj has 128 rows and k_proj 64, expected multiples of head_dim 48"),
        ({"audio_num_codebooks": 32}, "audio_num_codebooks 32, the tensors show 4"),
        ({"text_vocab_size": 128256}, "text_vocab_size 128256, the tensors show 25"),
        ({"backbone_flavor": "llama-1B"}, "backbone is llama-1B (16 layers of 2048), the tensors show 3 layers of 128"),
    ],
)
def test_a_sesame_config_that_clashes_is_refused(
    changes: dict[str, Any], message: str, tiny: layouts.Tiny, tmp_path: Path
) -> None:
    layouts.write_torchtune(tmp_path, tiny)
    with_config(tmp_path, changes)

    refused(ConfigError, tmp_path, message)


def test_heads_may_come_from_the_config_that_sesame_merged_into_its_own(tiny: layouts.Tiny, tmp_path: Path) -> None:
    layouts.write_torchtune(tmp_path, tiny)
    layouts.write_json(tmp_path / "config.json", layouts.transformers_config())

    assert load_checkpoint(tmp_path).config.csm == layouts.CONFIG.csm


def test_quantized_weights_need_their_config(tiny: layouts.Tiny, tmp_path: Path) -> None:
    layouts.write_mlx_community_quantized(tmp_path, tiny)
    layouts.write_json(tmp_path / "config.json", layouts.sesame_config())

    refused(ConfigError, tmp_path, "the weights are quantized, but config.json has no quantization")


def test_a_config_that_is_no_json_is_refused(tiny: layouts.Tiny, tmp_path: Path) -> None:
    for write in (layouts.write_own, layouts.write_transformers):
        write(tmp_path, tiny)
        (tmp_path / "config.json").write_text("<html>")
        refused(ConfigError, tmp_path, "config.json is not JSON")


def test_a_tokenizer_of_another_model_is_refused(tiny: layouts.Tiny, tmp_path: Path) -> None:
    layouts.write_own(tmp_path, tiny)
    tokenizer = json.loads((tmp_path / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"] |= {chr(200 + i): 24 + i for i in range(10)}
    layouts.write_json(tmp_path / "tokenizer.json", tokenizer)

    refused(TokenizerError, tmp_path, "tokenizer.json has 34 tokens, the model 25; give the tokenizer that the model")


def test_a_folder_has_no_revisions(tiny: layouts.Tiny, tmp_path: Path) -> None:
    layouts.write_own(tmp_path, tiny)

    refused(CheckpointError, tmp_path, "is on this disk and has no revision 'v1'", revision="v1")


def test_a_source_says_no_more_of_the_disk_than_its_name(tiny: layouts.Tiny, tmp_path: Path) -> None:
    layouts.write_torchtune(tmp_path / "secret" / "model", tiny)

    assert open_source(tmp_path / "secret" / "model").config.source == {"name": "model", "layout": "torchtune"}


def test_a_checkpoint_says_where_it_is(tiny: layouts.Tiny, tmp_path: Path) -> None:
    layouts.write_own(tmp_path, tiny)

    loaded = load_checkpoint(str(tmp_path))

    assert isinstance(loaded.model, CsmModel)
    assert loaded.path == tmp_path


@pytest.mark.parametrize("dtype", ["bfloat16", mx.int8])
def test_a_type_that_weights_cannot_have_is_refused(dtype: Any) -> None:
    with pytest.raises(ConfigError, match=r"dtype is .*(bfloat16|int8).*, expected mlx.core.float32, .* or None"):
        load_checkpoint("weights/csm-tiny", dtype=dtype)
