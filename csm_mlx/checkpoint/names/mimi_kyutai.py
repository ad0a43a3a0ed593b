"""Mimi as Kyutai publishes it (`tokenizer-e351c8d8-checkpoint125.safetensors`): names of PyTorch's `moshi`."""

import re
from collections.abc import Mapping

from csm_mlx.checkpoint.names import mimi
from csm_mlx.checkpoint.read import Tensor

_LAYER = {
    "self_attn.out_proj.weight": "self_attn.o_proj.weight",
    "self_attn.out_projs.0.weight": "self_attn.o_proj.weight",
    "norm1.weight": "input_layernorm.weight",
    "norm1.bias": "input_layernorm.bias",
    "norm2.weight": "post_attention_layernorm.weight",
    "norm2.bias": "post_attention_layernorm.bias",
    "linear1.weight": "mlp.up_proj.weight",
    "linear2.weight": "mlp.down_proj.weight",
    "layer_scale_1.scale": "attention_scale",
    "layer_scale_2.scale": "mlp_scale",
}
_HALVES = {"rvq_first": "semantic", "rvq_rest": "acoustic"}
_SUMS = ("embedding_sum", "embed_sum", "embed_avg")
_COUNTS = ("cluster_usage", "cluster_size")


def is_layout(names: set[str]) -> bool:
    return any(name.startswith("quantizer.rvq_first.") for name in names)


def map_mimi(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Canonical names and layouts of all tensors."""
    rest = mimi.map_seanet(mimi.fold_weight_norm(tensors))
    out: dict[str, Tensor] = {}
    for theirs, ours in _HALVES.items():
        pattern = rf"quantizer\.{theirs}\.vq\.layers\.(\d+)\._?codebook\.(\w+)"
        rest, pairs = mimi.map_codebooks(rest, pattern, _SUMS, _COUNTS)
        if pairs:
            out[f"quantizer.{ours}.codebooks"] = mimi.stacked_codebooks(pairs)
    for name, tensor in rest.items():
        out |= _mapped(name, tensor)
    return out


def _mapped(name: str, tensor: Tensor) -> dict[str, Tensor]:
    if match := re.fullmatch(r"(encoder|decoder)_transformer\.transformer\.layers\.(\d+)\.(.+)", name):
        half, i, rest = match.groups()
        layer = f"{half}_transformer.layers.{i}"
        if rest in ("self_attn.in_proj_weight", "self_attn.in_projs.0.weight") and tensor.shape[0] % 3 == 0:
            n = tensor.shape[0] // 3
            return {f"{layer}.self_attn.{p}_proj.weight": tensor.rows(k * n, (k + 1) * n) for k, p in enumerate("qkv")}
        return {f"{layer}.{_LAYER[rest]}" if rest in _LAYER else name: tensor}
    if match := re.fullmatch(r"quantizer\.(rvq_first|rvq_rest)\.(input_proj|output_proj)\.weight", name):
        return {f"quantizer.{_HALVES[match[1]]}.{match[2]}.weight": mimi.squeezed(tensor)}
    if name == "downsample.conv.conv.conv.weight":
        return {"downsample.weight": mimi.swapped(tensor)}
    if name == "upsample.convtr.convtr.convtr.weight":
        return {"upsample.weight": mimi.tap_major(tensor)}
    return {name: tensor}
