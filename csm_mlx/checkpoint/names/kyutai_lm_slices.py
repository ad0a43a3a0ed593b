"""Kyutai's MLX layout (`kyutai/moshiko-mlx-q4`) and candle's of Moshi: one slice of the depth decoder per codebook,
each with its embedding, its projections and a transformer."""

import re
from collections.abc import Mapping
from typing import Any

from csm_mlx.checkpoint.names import kyutai_lm
from csm_mlx.checkpoint.read import Tensor

_SLICE = re.compile(r"depformer\.(?:slices\.)?(\d+)\.(.+)")


def is_layout(names: set[str]) -> bool:
    sliced = any(_SLICE.match(name) for name in names)
    return "text_emb.weight" in names and ("audio_embs.0.weight" in names or ("emb.0.weight" in names and sliced))


def map_lm(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """Canonical names and layouts of all tensors. Of slices that share their weights the first one's are taken."""
    config = kyutai_lm.with_defaults(config)
    is_mlx = "audio_embs.0.weight" in tensors
    out, rest = kyutai_lm.map_audio_tables(tensors, "audio_embs" if is_mlx else "emb")
    conditions, rest = kyutai_lm.map_conditions(rest, config)
    out |= conditions
    schedule = kyutai_lm.schedule(config)
    for name, tensor in rest.items():
        if (match := _SLICE.fullmatch(name)) and int(match[1]) < len(schedule):
            mapped = _map_slice(int(match[1]), match[2], tensor, config, schedule)
        else:
            mapped = kyutai_lm.map_shared(name, tensor, config)
        out |= {name: tensor} if mapped is None else mapped
    return out


def _map_slice(
    codebook: int, rest: str, tensor: Tensor, config: Mapping[str, Any], schedule: tuple[int, ...]
) -> dict[str, Tensor] | None:
    """One tensor of a slice: nothing for a copy of what another slice brings, None for one that no slice has."""
    weights = schedule[codebook]
    if match := re.fullmatch(r"(emb|emb\.low_rank|linear_out)\.(\w+)", rest):
        ours = {
            "emb": f"depth_embeddings.{codebook}.table",
            "emb.low_rank": f"depth_embeddings.{codebook}.projection",
            "linear_out": f"audio_heads.{codebook}",
        }
        return {f"{ours[match[1]]}.{match[2]}": tensor}
    if match := re.fullmatch(r"linear_in\.(\w+)", rest):
        inputs = schedule if config.get("depformer_multi_linear") else (0,) * len(schedule)
        is_copy = inputs.index(inputs[codebook]) < codebook
        return {} if is_copy else {f"depth_projections.{inputs[codebook]}.{match[1]}": tensor}
    if match := re.fullmatch(r"transformer\.layers\.(\d+)\.(.+)", rest):
        layer = f"depth_decoders.{weights}.layers.{match[1]}"
        mapped = kyutai_lm.map_layer(layer, match[2], tensor, kyutai_lm.depth_heads(config))
        is_copy = schedule.index(weights) < codebook
        return {} if is_copy and mapped else mapped
    return None
