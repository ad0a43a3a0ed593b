"""Small random models for the laws: every flavour that a config can ask for, in milliseconds."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten, tree_map

from csm_mlx.config import CsmConfig, Llama3Rope, MimiConfig, SamplingConfig, TransformerConfig
from csm_mlx.generate.session import Csm
from csm_mlx.models.csm import CsmModel
from csm_mlx.models.mimi import Mimi
from csm_mlx.stored import CheckpointConfig

LLAMA3 = Llama3Rope(factor=32.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_positions=8192)


def llama(dim: int = 64, n_layers: int = 2, n_heads: int = 4, n_kv_heads: int = 2, **changes) -> TransformerConfig:
    """A small transformer of the kind that CSM has two of."""
    values: dict[str, Any] = {
        "dim": dim,
        "n_layers": n_layers,
        "n_heads": n_heads,
        "n_kv_heads": n_kv_heads,
        "head_dim": 16,
        "ffn_dim": 2 * dim,
        "norm": "rms",
        "norm_eps": 1e-5,
        "mlp": "swiglu",
        "layer_scale": False,
        "final_norm": True,
        "rope_base": 500000.0,
        "rope_scaling": LLAMA3,
    }
    return TransformerConfig(**{**values, **changes})


def mimi_transformer(dim: int = 32, window: int = 10, **changes) -> TransformerConfig:
    """A small transformer of the kind that Mimi has two of."""
    flavour: dict[str, Any] = {"norm": "layer", "mlp": "gelu", "layer_scale": True, "final_norm": False}
    values = {"n_heads": 2, "n_kv_heads": 2, "rope_base": 10000.0, "rope_scaling": None, **flavour, **changes}
    return llama(dim, window=window, **values)


def mimi_config(**changes) -> MimiConfig:
    """A small Mimi with every part of the large one; its window is shorter than the tests' sounds."""
    values: dict[str, Any] = {
        "sample_rate_hz": 24000,
        "n_filters": 4,
        "ratios": (8, 6, 5, 4),
        "dim": 32,
        "kernel_size": 7,
        "last_kernel_size": 3,
        "residual_kernel_size": 3,
        "n_residual_layers": 1,
        "dilation_base": 2,
        "compress": 2,
        "downsample_stride": 2,
        "transformer": mimi_transformer(),
        "codebook_size": 61,
        "codebook_dim": 16,
        "n_codebooks": 4,
        "n_semantic_codebooks": 1,
    }
    return MimiConfig(**{**values, **changes})


def csm_config(**changes) -> CsmConfig:
    """A small CSM whose codes are those of `mimi_config()`."""
    values: dict[str, Any] = {
        "backbone": llama(64),
        "depth": llama(32, n_heads=2, n_kv_heads=1),
        "text_vocab_size": 256,
        "audio_vocab_size": 64,
        "codebook_size": 61,
        "n_codebooks": 4,
        "max_positions": 512,
    }
    return CsmConfig(**{**values, **changes})


def random_mimi(config: MimiConfig | None = None, seed: int = 0) -> Mimi:
    """Weights with layer scales that matter: at their initial 0.01 a broken transformer would go unseen."""
    mx.random.seed(seed)
    codec = Mimi(config or mimi_config())
    for layer in (*codec.encoder_transformer.layers, *codec.decoder_transformer.layers):
        layer.attention_scale = mx.random.uniform(0.1, 0.6, layer.attention_scale.shape)
        layer.mlp_scale = mx.random.uniform(0.1, 0.6, layer.mlp_scale.shape)
    mx.eval(codec.parameters())
    return codec


def random_csm_model(config: CsmConfig | None = None, seed: int = 0) -> CsmModel:
    """Weights large enough that greedy codes vary from frame to frame."""
    mx.random.seed(seed)
    model = CsmModel(config or csm_config())
    model.update(tree_map(lambda w: mx.random.normal(w.shape) * (3 / w.shape[-1] ** 0.5), model.parameters()))
    mx.eval(model.parameters())
    return model


class ByteTokenizer:
    """One id per byte between a begin (1) and an end (2)."""

    def encode(self, text: str) -> list[int]:
        return [1, *text.encode(), 2]


def random_csm(csm: CsmConfig | None = None, codec: MimiConfig | None = None, seed: int = 0) -> Csm:
    """A model, a codec and a tokenizer that never were on disk."""
    model, mimi = random_csm_model(csm, seed), random_mimi(codec, seed + 1)
    config = CheckpointConfig(csm=model.config, codec=mimi.config, sampling=SamplingConfig(temperature=0.9, top_k=20))
    return Csm(model, mimi, ByteTokenizer(), config, Path("random"))


def that_always_says(frame: list[int], strength: float = 10.0) -> Csm:
    """A CSM whose logits depend on nothing: blocks that add nothing, equal embeddings, heads with one row each."""
    csm = random_csm(csm_config(n_codebooks=len(frame)))
    model = csm.model
    for layer in (*model.backbone.layers, *model.depth_decoder.layers):
        for linear in (layer.self_attn.o_proj, layer.mlp.down_proj):
            linear.weight = mx.zeros_like(linear.weight)
    for embedding in (model.text_embeddings, model.audio_embeddings):
        embedding.weight = mx.ones_like(embedding.weight)
    for norm in (model.backbone.norm, model.depth_decoder.norm):
        norm.weight = mx.ones_like(norm["weight"])
    model.projection.weight = mx.ones_like(model.projection.weight)
    for head, code in zip([model.codebook0_head, *model.audio_head], frame, strict=True):
        rows, dim = head.weight.shape
        head.weight = mx.where(mx.arange(rows)[:, None] == code, strength / dim, mx.zeros((rows, dim)))
    return csm


def greedy(csm: Csm) -> SamplingConfig:
    return replace(csm.config.sampling, temperature=0.0)


def largest(x: mx.array) -> float:
    """The largest absolute value."""
    return float(np.abs(np.array(x)).max())


def n_bytes(tree: Any) -> int:
    """Of all arrays in a tree."""
    return sum(leaf.nbytes for _, leaf in tree_flatten(tree) if isinstance(leaf, mx.array))
