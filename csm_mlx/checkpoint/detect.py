"""Recognises a layout by the names of its tensors, never by the name of its file or folder."""

from collections.abc import Iterable

from csm_mlx.checkpoint.names import (
    kyutai_lm_slices,
    kyutai_lm_torch,
    kyutai_lm_transformers,
    llama,
    mimi_kyutai,
    mimi_transformers,
    own,
    torchtune,
    transformers,
)

CSM_LAYOUTS = {
    "own": own.is_csm,
    "transformers": transformers.is_layout,
    "torchtune": torchtune.is_layout,
    "llama": llama.is_layout,
}
"""csm-mlx's own; Hugging Face's; Sesame's; senstella's and mlx-community's."""

MIMI_LAYOUTS = {
    "own": own.is_mimi,
    "transformers": mimi_transformers.is_layout,
    "kyutai": mimi_kyutai.is_layout,
}

MOSHI_LAYOUTS = {
    "own": own.is_moshi,
    "kyutai": kyutai_lm_torch.is_layout,
    "kyutai-slices": kyutai_lm_slices.is_layout,
    "kyutai-transformers": kyutai_lm_transformers.is_layout,
}
"""Kyutai's language models: csm-mlx's own; PyTorch's; MLX's and candle's; Hugging Face's."""


def csm_layout(names: Iterable[str]) -> str | None:
    """Which of `CSM_LAYOUTS` the tensors of a model are in; None for anything else."""
    found = set(names)
    return next((layout for layout, fits in CSM_LAYOUTS.items() if fits(found)), None)


def mimi_layout(names: Iterable[str]) -> str | None:
    """Which of `MIMI_LAYOUTS` a codec's tensors are in, `codec_model.` before their names or not."""
    found = {name.removeprefix(transformers.CODEC_PREFIX) for name in names}
    return next((layout for layout, fits in MIMI_LAYOUTS.items() if fits(found)), None)


def moshi_layout(names: Iterable[str]) -> str | None:
    """Which of `MOSHI_LAYOUTS` the tensors of a language model are in; None for anything else."""
    found = set(names)
    return next((layout for layout, fits in MOSHI_LAYOUTS.items() if fits(found)), None)
