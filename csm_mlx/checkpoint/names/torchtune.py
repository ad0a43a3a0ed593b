"""Sesame's own layout (`sesame/csm-1b`, `model.safetensors`): torchtune's names, rotary positions in adjacent pairs."""

import re
from collections.abc import Mapping
from typing import Any

from csm_mlx.checkpoint.names import flavors
from csm_mlx.checkpoint.names.heads import map_heads
from csm_mlx.checkpoint.read import Tensor
from csm_mlx.config import CsmConfig, MimiConfig

_LAYER = {
    "sa_norm.scale": "input_layernorm.weight",
    "attn.q_proj.weight": "self_attn.q_proj.weight",
    "attn.k_proj.weight": "self_attn.k_proj.weight",
    "attn.v_proj.weight": "self_attn.v_proj.weight",
    "attn.output_proj.weight": "self_attn.o_proj.weight",
    "mlp_norm.scale": "post_attention_layernorm.weight",
    "mlp.w1.weight": "mlp.gate_proj.weight",
    "mlp.w3.weight": "mlp.up_proj.weight",
    "mlp.w2.weight": "mlp.down_proj.weight",
}
_STACKS = {"backbone": "backbone", "decoder": "depth_decoder"}


def is_layout(names: set[str]) -> bool:
    return any(re.match(r"(backbone|decoder)\.layers\.\d+\.(attn\.q_proj|sa_norm)\.", name) for name in names)


def map_csm(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:  # noqa: ARG001
    """Canonical names and layouts of all tensors."""
    return map_heads({_name(name): tensor for name, tensor in tensors.items()})


def _name(name: str) -> str:
    if match := re.fullmatch(r"(backbone|decoder)\.layers\.(\d+)\.(.+)", name):
        stack, i, rest = match.groups()
        return f"{_STACKS[stack]}.layers.{i}.{_LAYER[rest]}" if rest in _LAYER else name
    if match := re.fullmatch(r"(backbone|decoder)\.norm\.scale", name):
        return f"{_STACKS[match[1]]}.norm.weight"
    return name


def map_config(tensors: Mapping[str, Tensor], config: Mapping[str, Any], codec: MimiConfig) -> CsmConfig:
    """Sizes from the canonical tensors, heads from the config; `ConfigError` where both are silent."""
    return flavors.infer_config(tensors, config, codec)
