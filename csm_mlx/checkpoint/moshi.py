"""Opens and loads Kyutai's language models, of any published layout, without their codec and tokenizer."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx

from csm_mlx.checkpoint.detect import moshi_layout
from csm_mlx.checkpoint.groups import found_files, groups_of
from csm_mlx.checkpoint.load import default_dtype, fill
from csm_mlx.checkpoint.read import Tensor
from csm_mlx.checkpoint.source import foreign_config, map_moshi
from csm_mlx.config import MoshiConfig
from csm_mlx.errors import CheckpointError
from csm_mlx.models.moshi import MoshiModel
from csm_mlx.quantize import apply_quantization


@dataclass(frozen=True)
class LmSource:
    """A recognised language model under our names, its weights still on disk."""

    layout: str
    config: MoshiConfig
    tensors: dict[str, Tensor] = field(repr=False)
    quantization: dict[str, Any] | None


def open_lm(path: str | Path) -> LmSource:
    """Recognise the language model in a folder or a weight file of Kyutai's.

    Raises CheckpointError or ConfigError.
    """
    path = Path(path).expanduser()
    groups = groups_of(found_files(path))
    for group in groups:
        layout = moshi_layout(group.tensors)
        if layout is not None and layout != "own":
            foreign = foreign_config(path if path.is_dir() else path.parent, layout)
            tensors, config, quantization = map_moshi(layout, group.tensors, foreign)
            return LmSource(layout, config, tensors, quantization)
    raise CheckpointError(
        f"{path} holds no language model of Kyutai's in a known layout (PyTorch, MLX, candle, transformers), only "
        f"{', '.join(group.name for group in groups[:3])}; give the folder of one, such as of stt-1b-en_fr"
    )


def load_lm(path: str | Path, *, dtype: mx.Dtype | None = None) -> MoshiModel:
    """The language model in a folder or a weight file, strictly.

    dtype: of float weights; None keeps what is stored, and on the CPU, where it is fastest, takes float32.

    Raises CheckpointError (a missing, extra, misshapen or broken tensor by name) or ConfigError.
    """
    source = open_lm(path)
    model = MoshiModel(source.config)
    if source.quantization:
        apply_quantization(model, source.quantization)
    fill(model, source.tensors, dtype or default_dtype(source.tensors), "the language model")
    return model
