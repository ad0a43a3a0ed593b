"""Writes one tiny random checkpoint in every layout that is published, from its canonical weights.

Independent of `csm_mlx/checkpoint/names`: what those modules undo is done here from the descriptions of the layouts.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from support.models import csm_config, llama, mimi_config, mimi_transformer

from csm_mlx.config import MimiConfig, TransformerConfig
from csm_mlx.stored import CheckpointConfig

Weights = dict[str, np.ndarray]

TOKENIZER = {
    "version": "1.0",
    "truncation": None,
    "padding": None,
    "added_tokens": [
        {
            "id": i,
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for i, token in enumerate(["<|begin_of_text|>", "<|end_of_text|>"])
    ],
    "normalizer": None,
    "pre_tokenizer": {"type": "Split", "pattern": {"Regex": "."}, "behavior": "Isolated", "invert": False},
    "post_processor": None,
    "decoder": None,
    "model": {
        "type": "WordLevel",
        "vocab": {c: i for i, c in enumerate(["<|begin_of_text|>", "<|end_of_text|>", "?", *"[]0123456789 abcdefgh"])},
        "unk_token": "?",
    },
}
"""One token a character."""

CONFIG = CheckpointConfig(
    csm=csm_config(
        backbone=llama(128, n_layers=3, head_dim=32, ffn_dim=192),
        depth=llama(64, n_kv_heads=1),
        text_vocab_size=25,
        audio_vocab_size=19,
        codebook_size=16,
        max_positions=2048,
    ),
    codec=mimi_config(
        ratios=(4, 3, 2),
        dim=128,
        transformer=mimi_transformer(128, window=250, head_dim=64, ffn_dim=96),
        codebook_size=16,
        codebook_dim=8,
    ),
)


@dataclass(frozen=True)
class Tiny:
    """Canonical weights, float32, and the (sums, counts) behind the codebooks."""

    model: Weights
    codec: Weights
    sums: dict[str, tuple[np.ndarray, np.ndarray]]
    codec_config: MimiConfig


def make_tiny(seed: int = 0, codec_config: MimiConfig = CONFIG.codec) -> Tiny:
    """The same for the same seed and codec. Values are exact in bfloat16, so that float types can be compared too."""
    rng = np.random.default_rng(seed)

    def draw(*shape: int) -> np.ndarray:
        values = rng.normal(0, 0.1, shape).astype(np.float32)
        return (values.view(np.uint32) & 0xFFFF0000).view(np.float32)

    csm, mimi, model = CONFIG.csm, codec_config, {}
    dim, depth = csm.backbone.dim, csm.depth.dim
    model["text_embeddings.weight"] = draw(csm.text_vocab_size, dim)
    model["audio_embeddings.weight"] = draw(csm.n_codebooks * csm.audio_vocab_size, dim)
    model["projection.weight"] = draw(depth, dim)
    padding = ((0, csm.head_rows - csm.audio_vocab_size), (0, 0))
    model["codebook0_head.weight"] = np.pad(draw(csm.audio_vocab_size, dim), padding)
    for k in range(csm.n_codebooks - 1):
        model[f"audio_head.{k}.weight"] = np.pad(draw(csm.audio_vocab_size, depth), padding)
    for prefix, config in (("backbone", csm.backbone), ("depth_decoder", csm.depth)):
        model[f"{prefix}.norm.weight"] = draw(config.dim)
        for i in range(config.n_layers):
            model |= _layer(draw, f"{prefix}.layers.{i}", config)
    codec, sums = _codec(draw, rng, mimi)
    return Tiny(model, codec, sums, mimi)


def _layer(draw: Callable[..., np.ndarray], at: str, c: TransformerConfig) -> Weights:
    q, kv = c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim
    shapes = {
        "input_layernorm.weight": (c.dim,),
        "post_attention_layernorm.weight": (c.dim,),
        "self_attn.q_proj.weight": (q, c.dim),
        "self_attn.k_proj.weight": (kv, c.dim),
        "self_attn.v_proj.weight": (kv, c.dim),
        "self_attn.o_proj.weight": (c.dim, q),
        "mlp.up_proj.weight": (c.ffn_dim, c.dim),
        "mlp.down_proj.weight": (c.dim, c.ffn_dim),
    }
    if c.mlp == "swiglu":
        shapes["mlp.gate_proj.weight"] = (c.ffn_dim, c.dim)
    if c.norm == "layer":
        shapes |= {"input_layernorm.bias": (c.dim,), "post_attention_layernorm.bias": (c.dim,)}
    if c.layer_scale:
        shapes |= {"attention_scale": (c.dim,), "mlp_scale": (c.dim,)}
    return {f"{at}.{name}": draw(*shape) for name, shape in shapes.items()}


def _codec(
    draw: Callable[..., np.ndarray], rng: np.random.Generator, c: MimiConfig
) -> tuple[Weights, dict[str, tuple[np.ndarray, np.ndarray]]]:
    out: Weights = {}

    def conv(name: str, n_out: int, kernel: int, n_in: int) -> None:
        out[f"{name}.weight"], out[f"{name}.bias"] = draw(n_out, kernel, n_in), draw(n_out)

    def residual(name: str, width: int) -> None:
        conv(f"{name}.conv1", width // c.compress, c.residual_kernel_size, width)
        conv(f"{name}.conv2", width, 1, width // c.compress)

    width = c.n_filters
    conv("encoder.init_conv", width, c.kernel_size, 1)
    for i, ratio in enumerate(reversed(c.ratios)):
        for j in range(c.n_residual_layers):
            residual(f"encoder.blocks.{i}.residuals.{j}", width)
        conv(f"encoder.blocks.{i}.down", 2 * width, 2 * ratio, width)
        width *= 2
    conv("encoder.final_conv", c.dim, c.last_kernel_size, width)
    conv("decoder.init_conv", width, c.kernel_size, c.dim)
    for i, ratio in enumerate(c.ratios):
        out[f"decoder.blocks.{i}.up.weight"] = draw(width, 2 * ratio, width // 2)
        out[f"decoder.blocks.{i}.up.bias"] = draw(width // 2)
        width //= 2
        for j in range(c.n_residual_layers):
            residual(f"decoder.blocks.{i}.residuals.{j}", width)
    conv("decoder.final_conv", 1, c.last_kernel_size, width)
    for half in ("encoder", "decoder"):
        for i in range(c.transformer.n_layers):
            out |= _layer(draw, f"{half}_transformer.layers.{i}", c.transformer)
    out["downsample.weight"] = draw(c.dim, 2 * c.downsample_stride, c.dim)
    out["upsample.weight"] = draw(2 * c.downsample_stride, c.dim)
    sums = {}
    for half, n in (("semantic", c.n_semantic_codebooks), ("acoustic", c.n_codebooks - c.n_semantic_codebooks)):
        out[f"quantizer.{half}.input_proj.weight"] = draw(c.codebook_dim, c.dim)
        out[f"quantizer.{half}.output_proj.weight"] = draw(c.dim, c.codebook_dim)
        usage = rng.uniform(0.5, 9, (n, c.codebook_size)).astype(np.float32)
        usage[:, 0] = 0  # an entry that was never used: the floor under the count decides
        total = draw(n, c.codebook_size, c.codebook_dim)
        sums[half] = (total, usage)
        out[f"quantizer.{half}.codebooks"] = total / np.maximum(usage, np.float32(1e-5))[..., None]
    return out, sums


# --- writing -------------------------------------------------------------------------------------------------------


def save(path: Path, weights: dict[str, Any], dtype: mx.Dtype = mx.float32) -> None:
    """Floats as `dtype`; the folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {name: mx.array(value) for name, value in weights.items()}
    mx.save_safetensors(
        str(path), {n: a.astype(dtype) if mx.issubdtype(a.dtype, mx.floating) else a for n, a in arrays.items()}
    )


def write_json(path: Path, data: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data))


def write_tokenizer(folder: Path) -> None:
    write_json(folder / "tokenizer.json", TOKENIZER)


def heads_to_foreign(model: Weights, n_codebooks: int = CONFIG.csm.n_codebooks) -> Weights:
    """Heads without padding; the audio heads as one (K - 1, in, V)."""
    vocab = CONFIG.csm.audio_vocab_size
    out = {name: w for name, w in model.items() if not name.startswith("audio_head.")}
    out["codebook0_head.weight"] = model["codebook0_head.weight"][:vocab]
    out["audio_head"] = np.stack([model[f"audio_head.{k}.weight"][:vocab].T for k in range(n_codebooks - 1)])
    return out


def torchtune(model: Weights) -> Weights:
    """Sesame's names."""
    renames = {
        "depth_decoder.": "decoder.",
        "input_layernorm.weight": "sa_norm.scale",
        "post_attention_layernorm.weight": "mlp_norm.scale",
        "self_attn.o_proj": "attn.output_proj",
        "self_attn.": "attn.",
        "mlp.gate_proj": "mlp.w1",
        "mlp.down_proj": "mlp.w2",
        "mlp.up_proj": "mlp.w3",
        ".norm.weight": ".norm.scale",
    }
    return _renamed(heads_to_foreign(model), renames)


def senstella(model: Weights) -> Weights:
    """Llama's names, nothing before them."""
    return _renamed(heads_to_foreign(model), {"depth_decoder.": "decoder."})


def _renamed(weights: Weights, renames: dict[str, str]) -> Weights:
    out = {}
    for name, w in weights.items():
        for ours, theirs in renames.items():
            name = name.replace(ours, theirs)
        out[name] = w
    return out


def halves(weight: np.ndarray, head_dim: int) -> np.ndarray:
    """Rows of adjacent rotary pairs, reordered head by head to even ones first, then odd ones."""
    heads = weight.reshape(-1, head_dim, weight.shape[1])
    return np.concatenate([heads[:, 0::2], heads[:, 1::2]], axis=1).reshape(weight.shape)


def transformers_csm(model: Weights, *, tied_missing: bool = False) -> Weights:
    """Hugging Face's names, the audio table under both of its names or under one."""
    csm, foreign = CONFIG.csm, heads_to_foreign(model)
    table = foreign["audio_embeddings.weight"]
    out: Weights = {
        "embed_text_tokens.weight": foreign["text_embeddings.weight"],
        "lm_head.weight": foreign["codebook0_head.weight"],
        "depth_decoder.model.embed_tokens.weight": table,
        "depth_decoder.model.inputs_embeds_projector.weight": foreign["projection.weight"],
        "depth_decoder.codebooks_head.weight": foreign["audio_head"],
    }
    if not tied_missing:
        out["backbone_model.embed_tokens.embed_audio_tokens.weight"] = table
    for ours, theirs, config in (
        ("backbone.", "backbone_model.", csm.backbone),
        ("depth_decoder.", "depth_decoder.model.", csm.depth),
    ):
        for name, w in foreign.items():
            if name.startswith((f"{ours}layers.", f"{ours}norm.")):
                rotary = name.endswith(("q_proj.weight", "k_proj.weight"))
                out[theirs + name.removeprefix(ours)] = halves(w, config.head_dim) if rotary else w
    return out


def _torch_convs(tiny: Tiny, stem: str, transposed: str, plain: str) -> Weights:
    """SEANet as torch numbers and lays it out; `stem` is `model` or `layers`."""
    c, codec, out = tiny.codec_config, tiny.codec, {}
    n_blocks, n_res = len(c.ratios), c.n_residual_layers
    step = n_res + 2
    places = {"encoder.init_conv": f"encoder.{stem}.0.{plain}", "decoder.init_conv": f"decoder.{stem}.0.{plain}"}
    for i in range(n_blocks):
        places[f"encoder.blocks.{i}.down"] = f"encoder.{stem}.{1 + i * step + n_res + 1}.{plain}"
        places[f"decoder.blocks.{i}.up"] = f"decoder.{stem}.{1 + i * step + 1}.{transposed}"
        for j in range(n_res):
            for ours, theirs in (("conv1", 1), ("conv2", 3)):
                encoder, decoder = 1 + i * step + j, 1 + i * step + 2 + j
                places[f"encoder.blocks.{i}.residuals.{j}.{ours}"] = f"encoder.{stem}.{encoder}.block.{theirs}.{plain}"
                places[f"decoder.blocks.{i}.residuals.{j}.{ours}"] = f"decoder.{stem}.{decoder}.block.{theirs}.{plain}"
    last = 1 + n_blocks * step + 1
    places |= {f"{half}.final_conv": f"{half}.{stem}.{last}.{plain}" for half in ("encoder", "decoder")}
    for ours, theirs in places.items():
        out[f"{theirs}.weight"] = codec[f"{ours}.weight"].swapaxes(1, 2)
        out[f"{theirs}.bias"] = codec[f"{ours}.bias"]
    return out


def kyutai_mimi(tiny: Tiny) -> Weights:
    """As in `tokenizer-e351c8d8-checkpoint125.safetensors`."""
    codec, out = tiny.codec, _torch_convs(tiny, "model", "convtr.convtr", "conv.conv")
    for half in ("encoder", "decoder"):
        for i in range(CONFIG.codec.transformer.n_layers):
            ours, theirs = f"{half}_transformer.layers.{i}.", f"{half}_transformer.transformer.layers.{i}."
            out[theirs + "self_attn.in_proj_weight"] = np.concatenate(
                [codec[f"{ours}self_attn.{p}_proj.weight"] for p in "qkv"]
            )
            for a, b in (
                ("self_attn.o_proj.weight", "self_attn.out_proj.weight"),
                ("input_layernorm.weight", "norm1.weight"),
                ("input_layernorm.bias", "norm1.bias"),
                ("post_attention_layernorm.weight", "norm2.weight"),
                ("post_attention_layernorm.bias", "norm2.bias"),
                ("mlp.up_proj.weight", "linear1.weight"),
                ("mlp.down_proj.weight", "linear2.weight"),
                ("attention_scale", "layer_scale_1.scale"),
                ("mlp_scale", "layer_scale_2.scale"),
            ):
                out[theirs + b] = codec[ours + a]
    for ours, theirs in (("semantic", "rvq_first"), ("acoustic", "rvq_rest")):
        for proj in ("input_proj", "output_proj"):
            out[f"quantizer.{theirs}.{proj}.weight"] = codec[f"quantizer.{ours}.{proj}.weight"][..., None]
        for i, (total, usage) in enumerate(zip(*tiny.sums[ours], strict=True)):
            at = f"quantizer.{theirs}.vq.layers.{i}._codebook."
            out |= {
                f"{at}embedding_sum": total,
                f"{at}cluster_usage": usage,
                f"{at}_initialized": np.ones(1, np.float32),
            }
    out["downsample.conv.conv.conv.weight"] = codec["downsample.weight"].swapaxes(1, 2)
    out["upsample.convtr.convtr.convtr.weight"] = codec["upsample.weight"].T[:, None]
    return out


def transformers_mimi(tiny: Tiny, prefix: str = "") -> Weights:
    """As in `kyutai/mimi`, or with `codec_model.` before the names inside a CSM."""
    codec, out = tiny.codec, _torch_convs(tiny, "layers", "conv", "conv")
    renames = {
        "mlp.up_proj": "mlp.fc1",
        "mlp.down_proj": "mlp.fc2",
        "attention_scale": "self_attn_layer_scale.scale",
        "mlp_scale": "mlp_layer_scale.scale",
    }
    for name, w in codec.items():
        if "_transformer." in name:
            rotary = name.endswith(("q_proj.weight", "k_proj.weight"))
            w = halves(w, CONFIG.codec.transformer.head_dim) if rotary else w
            out |= _renamed({name: w}, renames)
    for ours in ("semantic", "acoustic"):
        theirs = f"quantizer.{ours}_residual_vector_quantizer"
        for proj in ("input_proj", "output_proj"):
            out[f"{theirs}.{proj}.weight"] = codec[f"quantizer.{ours}.{proj}.weight"][..., None]
        for i, (total, usage) in enumerate(zip(*tiny.sums[ours], strict=True)):
            at = f"{theirs}.layers.{i}.codebook."
            out |= {f"{at}embed_sum": total, f"{at}cluster_usage": usage, f"{at}initialized": np.ones(1, np.float32)}
    out["downsample.conv.weight"] = codec["downsample.weight"].swapaxes(1, 2)
    out["upsample.conv.weight"] = codec["upsample.weight"].T[:, None]
    return {prefix + name: w for name, w in out.items()}


# --- configs -------------------------------------------------------------------------------------------------------


def sesame_config(**extra: Any) -> dict[str, Any]:
    """Sesame's fields; heads, which its flavours would say, as the explicit numbers that a tiny model needs."""
    csm = CONFIG.csm
    return {
        "text_vocab_size": csm.text_vocab_size,
        "audio_vocab_size": csm.audio_vocab_size,
        "audio_num_codebooks": csm.n_codebooks,
        "backbone": {"head_dim": csm.backbone.head_dim},
        "decoder": {"head_dim": csm.depth.head_dim},
    } | extra


def _hf_stack(c: TransformerConfig) -> dict[str, Any]:
    return {
        "hidden_size": c.dim,
        "num_hidden_layers": c.n_layers,
        "num_attention_heads": c.n_heads,
        "num_key_value_heads": c.n_kv_heads,
        "head_dim": c.head_dim,
        "intermediate_size": c.ffn_dim,
    }


_HF_ROPE = {
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def transformers_config(*, old_rope: bool = False, codec: bool = True) -> dict[str, Any]:
    """Of transformers 5 (`rope_parameters`) or 4 (`rope_scaling`)."""
    csm = CONFIG.csm
    new = {"rope_parameters": _HF_ROPE | {"rope_type": "llama3", "rope_theta": 500000.0}}
    old = {"rope_scaling": _HF_ROPE | {"rope_type": "llama3"}, "rope_theta": 500000}
    common = (old if old_rope else new) | {
        "num_codebooks": csm.n_codebooks,
        "vocab_size": csm.audio_vocab_size,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
    }
    depth = _hf_stack(csm.depth) | common | {"backbone_hidden_size": csm.backbone.dim}
    config = _hf_stack(csm.backbone) | common | {"model_type": "csm", "depth_decoder_config": depth}
    config |= {"text_vocab_size": csm.text_vocab_size, "max_position_embeddings": csm.max_positions}
    return config | ({"codec_config": mimi_config()} if codec else {})


def mimi_config() -> dict[str, Any]:
    c = CONFIG.codec
    return {
        "model_type": "mimi",
        "hidden_size": c.dim,
        "num_filters": c.n_filters,
        "upsampling_ratios": list(c.ratios),
        "codebook_size": c.codebook_size,
        "codebook_dim": c.codebook_dim,
        "vector_quantization_hidden_dimension": c.codebook_dim,
        "num_quantizers": c.n_codebooks,
        "num_semantic_quantizers": c.n_semantic_codebooks,
        "num_hidden_layers": c.transformer.n_layers,
        "num_attention_heads": c.transformer.n_heads,
        "num_key_value_heads": c.transformer.n_kv_heads,
        "intermediate_size": c.transformer.ffn_dim,
        "upsample_groups": c.dim,
        "sliding_window": c.transformer.window,
        "rope_theta": 10000.0,
    }


# --- folders -------------------------------------------------------------------------------------------------------


def write_own(folder: Path, tiny: Tiny) -> None:
    save(folder / "model.safetensors", tiny.model)
    save(folder / "codec.safetensors", tiny.codec)
    write_json(folder / "config.json", CONFIG.to_dict())
    write_tokenizer(folder)


def write_torchtune(folder: Path, tiny: Tiny) -> None:
    save(folder / "model.safetensors", torchtune(tiny.model))
    save(folder / "tokenizer-e351c8d8-checkpoint125.safetensors", kyutai_mimi(tiny))
    write_json(folder / "config.json", sesame_config())
    write_tokenizer(folder)


def write_transformers(
    folder: Path, tiny: Tiny, *, tied_missing: bool = False, old_rope: bool = False, n_shards: int = 1
) -> None:
    weights = transformers_csm(tiny.model, tied_missing=tied_missing) | transformers_mimi(tiny, "codec_model.")
    write_json(folder / "config.json", transformers_config(old_rope=old_rope))
    write_tokenizer(folder)
    if n_shards == 1:
        save(folder / "model.safetensors", weights)
        return
    names, weight_map = sorted(weights), {}
    for i in range(n_shards):
        file = f"transformers-{i + 1:05d}-of-{n_shards:05d}.safetensors"
        part = names[i::n_shards]
        save(folder / file, {name: weights[name] for name in part})
        weight_map |= dict.fromkeys(part, file)
    write_json(folder / "transformers.safetensors.index.json", {"metadata": {}, "weight_map": weight_map})


def write_transformers_beside(folder: Path, tiny: Tiny) -> None:
    """The codec as a copy of kyutai/mimi in a folder of its own."""
    save(folder / "model.safetensors", transformers_csm(tiny.model))
    write_json(folder / "config.json", transformers_config(codec=False))
    save(folder / "mimi" / "model.safetensors", transformers_mimi(tiny))
    write_json(folder / "mimi" / "config.json", mimi_config())
    write_tokenizer(folder)


def write_senstella(folder: Path, tiny: Tiny) -> None:
    save(folder / "ckpt.safetensors", senstella(tiny.model))
    save(folder / "mimi.safetensors", transformers_mimi(tiny))
    write_json(folder / "config.json", sesame_config())
    write_tokenizer(folder)


def write_mlx_community(folder: Path, tiny: Tiny) -> None:
    save(folder / "model.safetensors", {f"model.{name}": w for name, w in senstella(tiny.model).items()})
    save(folder / "mimi.safetensors", kyutai_mimi(tiny))
    write_json(folder / "config.json", sesame_config(model_type="csm"))
    write_tokenizer(folder)


def write_mlx_community_quantized(folder: Path, tiny: Tiny, *, bits: int = 8, group_size: int = 64) -> None:
    """Linear layers and embeddings packed, heads unpadded, `audio_head` left float, as mlx-audio writes it."""
    weights: dict[str, Any] = {}
    for name, w in senstella(tiny.model).items():
        path, array = f"model.{name}", mx.array(w).astype(mx.bfloat16)
        if array.ndim != 2 or array.shape[1] % group_size:
            weights[path] = array
            continue
        parts = mx.quantize(array, group_size=group_size, bits=bits)
        weights |= {path.replace("weight", p): x for p, x in zip(("weight", "scales", "biases"), parts, strict=True)}
    save(folder / "model.safetensors", weights, mx.bfloat16)
    save(folder / "mimi.safetensors", kyutai_mimi(tiny))
    numbers = {"group_size": group_size, "bits": bits, "mode": "affine"}
    write_json(folder / "config.json", sesame_config(quantization=numbers, quantization_config=numbers))
    write_tokenizer(folder)


LAYOUTS: dict[str, Callable[[Path, Tiny], None]] = {
    "own": write_own,
    "torchtune": write_torchtune,
    "transformers": write_transformers,
    "transformers-sharded": lambda folder, tiny: write_transformers(folder, tiny, n_shards=3),
    "transformers-tied": lambda folder, tiny: write_transformers(folder, tiny, tied_missing=True),
    "transformers-4": lambda folder, tiny: write_transformers(folder, tiny, old_rope=True),
    "transformers-beside": write_transformers_beside,
    "senstella": write_senstella,
    "mlx-community": write_mlx_community,
}
"""Every float layout: all must load to the same bits."""


def copy_own(folder: Path, target: Path) -> Path:
    shutil.copytree(folder, target)
    return target
