"""Kyutai's PyTorch layout (`kyutai/moshiko-pytorch-bf16`, `kyutai/stt-1b-en_fr`, and the `-candle` ones of
speech-to-text, which add the pause heads): the depth decoder's layers hold all sets of weights."""

import re
from collections.abc import Mapping
from typing import Any

from csm_mlx.checkpoint.names import kyutai_lm
from csm_mlx.checkpoint.read import Tensor

_DEPTH = {
    r"depformer_in\.(\d+)\.weight": "depth_projections.{}.weight",
    r"linears\.(\d+)\.weight": "audio_heads.{}.weight",
}


def is_layout(names: set[str]) -> bool:
    sliced = any(re.match(r"depformer\.(slices\.)?\d+\.", name) for name in names)
    return "text_emb.weight" in names and "emb.0.weight" in names and not sliced


def map_lm(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """Canonical names and layouts of all tensors."""
    config = kyutai_lm.with_defaults(config)
    out, rest = kyutai_lm.map_audio_tables(tensors, "emb")
    conditions, rest = kyutai_lm.map_conditions(rest, config)
    out |= conditions
    n_sets = 1 + max(kyutai_lm.schedule(config), default=-1)
    for name, tensor in rest.items():
        if not n_sets and name.startswith("depformer_in."):
            continue  # written also where there is no depth decoder to take it
        mapped = kyutai_lm.map_shared(name, tensor, config) or _map_depth(name, tensor, config, n_sets)
        out |= mapped or {name: tensor}
    return out


def _map_depth(name: str, tensor: Tensor, config: Mapping[str, Any], n_sets: int) -> dict[str, Tensor] | None:
    for pattern, ours in _DEPTH.items():
        if match := re.fullmatch(pattern, name):
            return {ours.format(match[1]): tensor}
    if match := re.fullmatch(r"depformer_(text_emb|emb\.(\d+))\.(low_rank\.)?weight", name):
        k = 0 if match[2] is None else int(match[2]) + 1
        return {f"depth_embeddings.{k}.{'projection' if match[3] else 'table'}.weight": tensor}
    if match := re.fullmatch(r"depformer\.layers\.(\d+)\.(.+)", name):
        return _map_layer(match[1], match[2], tensor, config, n_sets)
    return None


def _map_layer(i: str, rest: str, tensor: Tensor, config: Mapping[str, Any], n_sets: int) -> dict[str, Tensor] | None:
    """One tensor of a depth layer, for all sets or for the one that its name says."""
    heads, out = kyutai_lm.depth_heads(config), {}
    if match := re.fullmatch(r"gating\.(\d+)\.(.+)|self_attn\.((?:in|out)_proj)s\.(\d+)\.weight", rest):
        weights = match[1] or match[4]
        rest = f"gating.{match[2]}" if match[1] else f"self_attn.{match[3]}.weight"
        return kyutai_lm.map_layer(f"depth_decoders.{weights}.layers.{i}", rest, tensor, heads)
    stacked = re.fullmatch(r"self_attn\.(in_proj_weight|(in|out)_proj\.weight)", rest)
    if stacked and tensor.shape[0] % n_sets:
        return None
    n = tensor.shape[0] // n_sets
    for weights in range(n_sets):
        part = tensor.rows(weights * n, (weights + 1) * n) if stacked else tensor
        mapped = kyutai_lm.map_layer(f"depth_decoders.{weights}.layers.{i}", rest, part, heads)
        if mapped is None:
            return None
        out |= mapped
    return out
