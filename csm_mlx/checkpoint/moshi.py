"""Opens and loads Kyutai's language models, of any published layout, without their codec and tokenizer."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx

from csm_mlx.checkpoint import files
from csm_mlx.checkpoint.detect import moshi_layout
from csm_mlx.checkpoint.load import default_dtype, fill
from csm_mlx.checkpoint.names import kyutai_lm, kyutai_lm_slices, kyutai_lm_torch
from csm_mlx.checkpoint.read import Tensor, read_tensors
from csm_mlx.checkpoint.source import read_json
from csm_mlx.config import MoshiConfig
from csm_mlx.errors import CheckpointError
from csm_mlx.models.moshi import MoshiModel
from csm_mlx.quantize import apply_quantization

_NAMES = {"kyutai": kyutai_lm_torch, "kyutai-slices": kyutai_lm_slices}


@dataclass(frozen=True)
class MoshiSource:
    """A recognised language model under our names, its weights still on disk."""

    path: Path
    """Of its weight file."""
    layout: str
    config: MoshiConfig
    tensors: dict[str, Tensor] = field(repr=False)
    quantization: dict[str, Any] | None
    foreign: dict[str, Any] = field(repr=False)
    """The config.json beside it, empty where there is none."""


def open_moshi(path: str | Path) -> MoshiSource:
    """Recognise the language model in a folder or a weight file of Kyutai's.

    Raises CheckpointError or ConfigError.
    """
    path = Path(path).expanduser()
    folder = path if path.is_dir() else path.parent
    foreign = read_json(folder / files.CONFIG)
    paths = files.weight_files(path) if path.is_dir() else [path]
    for file in paths:
        tensors = read_tensors(file)
        layout = moshi_layout(tensors)
        if layout in _NAMES:
            mapped = _NAMES[layout].map_lm(tensors, foreign)
            config = kyutai_lm.map_config(mapped, foreign)
            return MoshiSource(file, layout, config, mapped, kyutai_lm.map_quantization(mapped, config), foreign)
    raise CheckpointError(
        f"{path} holds no language model of Kyutai's in a known layout (PyTorch, MLX, candle), only "
        f"{', '.join(p.name for p in paths[:3]) or 'no safetensors'}; give the folder of one, such as of stt-1b-en_fr"
    )


def load_moshi(path: str | Path, *, dtype: mx.Dtype | None = None) -> MoshiModel:
    """The language model in a folder or a weight file, strictly.

    dtype: of float weights; None keeps what is stored, and on the CPU, where it is fastest, takes float32.

    Raises CheckpointError (a missing, extra, misshapen or broken tensor by name) or ConfigError.
    """
    source = open_moshi(path)
    model = MoshiModel(source.config)
    if source.quantization:
        apply_quantization(model, source.quantization)
    fill(model, source.tensors, dtype or default_dtype(source.tensors), "the language model")
    return model
