"""The MLX layouts: `senstella/csm-1b-mlx` (Llama's names) and mlx-community's (`model.` before them, also quantized).

Rotary positions in adjacent pairs, as in Sesame's own.
"""

import re
from collections.abc import Mapping
from typing import Any

from csm_mlx.checkpoint.names import flavors
from csm_mlx.checkpoint.names.heads import map_heads
from csm_mlx.checkpoint.read import Tensor
from csm_mlx.config import CsmConfig, MimiConfig
from csm_mlx.errors import ConfigError

_PREFIX = "model."


def is_layout(names: set[str]) -> bool:
    return any(re.match(r"(model\.)?decoder\.layers\.\d+\.self_attn\.q_proj\.", name) for name in names) and bool(
        names & {"audio_head", "model.audio_head"}
    )


def map_csm(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:  # noqa: ARG001
    """Canonical names and layouts of all tensors, packed quantized ones included."""
    return map_heads({_name(name): tensor for name, tensor in tensors.items()})


def _name(name: str) -> str:
    name = name.removeprefix(_PREFIX)
    return re.sub(r"^decoder\.(?=layers\.|norm\.)", "depth_decoder.", name)


def map_config(tensors: Mapping[str, Tensor], config: Mapping[str, Any], codec: MimiConfig) -> CsmConfig:
    """Sizes from the canonical tensors, heads from the config; `ConfigError` where both are silent."""
    return flavors.infer_config(tensors, config, codec)


def map_quantization(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Any] | None:
    """Ours from theirs: the defaults, and false for each layer that has no scales. None when nothing is quantized."""
    if not any(name.endswith(".scales") for name in tensors):
        return None
    given = config.get("quantization") or config.get("quantization_config")
    if not (isinstance(given, dict) and {"group_size", "bits"} <= set(given)):
        raise ConfigError(
            "the weights are quantized, but config.json has no quantization with group_size and bits; "
            "fetch the config.json that belongs to them"
        )
    ours: dict[str, Any] = {
        "group_size": given["group_size"],
        "bits": given["bits"],
        "mode": given.get("mode", "affine"),
    }
    for name in sorted(tensors):
        path = name.removesuffix(".weight")
        if path == name or len(tensors[name].shape) != 2:
            continue
        if f"{path}.scales" not in tensors:
            ours[path] = False
        elif isinstance(override := _override(given, path), dict):
            ours[path] = override
    return ours


def _override(given: Mapping[str, Any], path: str) -> Any:
    foreign = re.sub(r"^depth_decoder\.", "decoder.", path)
    return given.get(_PREFIX + foreign, given.get(foreign))
