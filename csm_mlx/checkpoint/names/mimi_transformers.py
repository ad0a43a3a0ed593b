"""Mimi as transformers saves it: `kyutai/mimi`, and under `codec_model.` inside a CSM."""

import math
import re
from collections.abc import Mapping
from typing import Any

from csm_mlx.checkpoint.names import mimi
from csm_mlx.checkpoint.names.transformers import rope, unpermuted, with_defaults
from csm_mlx.checkpoint.read import Tensor
from csm_mlx.config import MimiConfig
from csm_mlx.errors import ConfigError

_HALVES = {"semantic_residual_vector_quantizer": "semantic", "acoustic_residual_vector_quantizer": "acoustic"}
_LAYER = {
    "mlp.fc1.weight": "mlp.up_proj.weight",
    "mlp.fc2.weight": "mlp.down_proj.weight",
    "self_attn_layer_scale.scale": "attention_scale",
    "mlp_layer_scale.scale": "mlp_scale",
}
_DEFAULTS: dict[str, Any] = {
    "sampling_rate": 24_000,
    "hidden_size": 512,
    "num_filters": 64,
    "num_residual_layers": 1,
    "upsampling_ratios": [8, 6, 5, 4],
    "kernel_size": 7,
    "last_kernel_size": 3,
    "residual_kernel_size": 3,
    "dilation_growth_rate": 2,
    "compress": 2,
    "codebook_size": 2048,
    "codebook_dim": 256,
    "vector_quantization_hidden_dimension": 256,
    "num_quantizers": 32,
    "num_semantic_quantizers": 1,
    "num_hidden_layers": 8,
    "intermediate_size": 2048,
    "num_attention_heads": 8,
    "norm_eps": 1e-5,
    "sliding_window": 250,
}
"""What transformers assumes for fields that a config.json leaves out (`configuration_mimi.py`, 5.23)."""

_REQUIRED = {
    "audio_channels": 1,
    "use_causal_conv": True,
    "pad_mode": "constant",
    "trim_right_ratio": 1.0,
    "use_conv_shortcut": False,
    "hidden_act": "gelu",
    "attention_bias": False,
}


def is_layout(names: set[str]) -> bool:
    return any(name.startswith("quantizer.semantic_residual_vector_quantizer.") for name in names)


def map_mimi(tensors: Mapping[str, Tensor], head_dim: int) -> dict[str, Tensor]:
    """Canonical names and layouts of all tensors, whose names must have lost `codec_model.`."""
    rest = mimi.map_seanet(mimi.fold_weight_norm(tensors))
    out: dict[str, Tensor] = {}
    for theirs, ours in _HALVES.items():
        pattern = rf"quantizer\.{theirs}\.layers\.(\d+)\.codebook\.(\w+)"
        rest, pairs = mimi.map_codebooks(rest, pattern, ("embed_sum",), ("cluster_usage",))
        if pairs:
            out[f"quantizer.{ours}.codebooks"] = mimi.stacked_codebooks(pairs)
    for name, tensor in rest.items():
        ours, mapped = _mapped(name, tensor, head_dim)
        out[ours] = mapped
    return out


def _mapped(name: str, tensor: Tensor, head_dim: int) -> tuple[str, Tensor]:
    if match := re.fullmatch(r"((?:encoder|decoder)_transformer\.layers\.\d+)\.(.+)", name):
        layer, rest = match.groups()
        if rest in ("self_attn.q_proj.weight", "self_attn.k_proj.weight"):
            tensor = unpermuted(tensor, head_dim)
        return f"{layer}.{_LAYER.get(rest, rest)}", tensor
    if match := re.fullmatch(r"quantizer\.(\w+)\.(input_proj|output_proj)\.weight", name):
        half = _HALVES.get(match[1], match[1])
        return f"quantizer.{half}.{match[2]}.weight", mimi.squeezed(tensor)
    if name == "downsample.conv.weight":
        return "downsample.weight", mimi.swapped(tensor)
    if name == "upsample.conv.weight":
        return "upsample.weight", mimi.tap_major(tensor)
    return name, tensor


def map_config(config: Mapping[str, Any]) -> MimiConfig:
    """Ours from a `MimiConfig` of transformers. `ConfigError` for what this package cannot run."""
    given = with_defaults(config, _DEFAULTS, "codec_config")
    if not all(type(ratio) is int and ratio > 0 for ratio in given["upsampling_ratios"]):
        raise ConfigError(f"codec_config says upsampling_ratios {given['upsampling_ratios']}, expected whole numbers")
    for name, wanted in _REQUIRED.items():
        if given.get(name, wanted) != wanted:
            raise ConfigError(
                f"codec_config says {name} {given[name]!r}, expected {wanted!r}: this package runs no other"
            )
    dim, n_heads = given["hidden_size"], given["num_attention_heads"]
    head_dim = given.get("head_dim", dim // n_heads)
    for name, wanted in (
        ("num_key_value_heads", n_heads),
        ("upsample_groups", dim),
        ("codebook_dim", given["vector_quantization_hidden_dimension"]),
    ):
        if given.get(name, wanted) != wanted:
            raise ConfigError(f"codec_config says {name} {given[name]!r}, expected {wanted}")
    if head_dim * n_heads != dim:
        raise ConfigError(f"codec_config says {n_heads} heads of {head_dim}, expected them to make hidden_size {dim}")
    base, _ = rope(given, "codec_config", default_base=10_000.0)
    return MimiConfig(
        sample_rate_hz=given["sampling_rate"],
        n_filters=given["num_filters"],
        ratios=tuple(given["upsampling_ratios"]),
        dim=dim,
        kernel_size=given["kernel_size"],
        last_kernel_size=given["last_kernel_size"],
        residual_kernel_size=given["residual_kernel_size"],
        n_residual_layers=given["num_residual_layers"],
        dilation_base=given["dilation_growth_rate"],
        compress=given["compress"],
        downsample_stride=_stride(given),
        transformer=mimi.transformer(
            dim=dim,
            n_layers=given["num_hidden_layers"],
            head_dim=head_dim,
            ffn_dim=given["intermediate_size"],
            norm_eps=given["norm_eps"],
            window=given["sliding_window"],
            rope_base=base,
        ),
        codebook_size=given["codebook_size"],
        codebook_dim=given["codebook_dim"],
        n_codebooks=given["num_quantizers"],
        n_semantic_codebooks=given["num_semantic_quantizers"],
    )


def _stride(config: Mapping[str, Any]) -> int:
    """Latents per frame: 2, unless an older config states another `frame_rate`."""
    frame_rate_hz = config.get("frame_rate", config.get("_frame_rate"))
    if frame_rate_hz is None:
        return 2
    return round(config["sampling_rate"] / math.prod(config["upsampling_ratios"]) / frame_rate_hz)
