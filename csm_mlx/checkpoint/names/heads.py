"""What the layouts of CSM share: the heads, and sizes that show in the shapes."""

import re
from collections.abc import Mapping

from csm_mlx.checkpoint.read import Tensor
from csm_mlx.config import padded_rows

QUANTIZED_PARTS = ("weight", "scales", "biases")


def map_heads(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """`codebook0_head` padded, quantized or not, and the one `audio_head` (K - 1, in, V) as K - 1 linear layers."""
    out = dict(tensors)
    for part in QUANTIZED_PARTS:
        name = f"codebook0_head.{part}"
        if name in out and len(out[name].shape) == 2:
            out[name] = out[name].padded(padded_rows(out[name].shape[0]))
    stacked = out.get("audio_head")
    if stacked is not None and len(stacked.shape) == 3:
        del out["audio_head"]
        n_heads, dim, vocab = stacked.shape
        for k in range(n_heads):
            out[f"audio_head.{k}.weight"] = (
                stacked.row(k).changed(lambda x: x.T, (vocab, dim)).padded(padded_rows(vocab))
            )
    return out


def n_layers(tensors: Mapping[str, Tensor], prefix: str) -> int:
    """How many `{prefix}.layers.N` there are."""
    found = {m[1] for name in tensors if (m := re.match(rf"{re.escape(prefix)}\.layers\.(\d+)\.", name))}
    return len(found)


def rows_of(tensors: Mapping[str, Tensor], name: str) -> int | None:
    """The length of a tensor's first axis, the one that quantization leaves as it is; None without the tensor."""
    tensor = tensors.get(name)
    return tensor.shape[0] if tensor is not None and tensor.shape else None
