"""Adapters as a training could have made them, and what models answer with them."""

from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from csm_mlx.checkpoint.adapter import write_adapter
from csm_mlx.checkpoint.load import load_checkpoint
from csm_mlx.lora import AdapterConfig, adapters, attach
from csm_mlx.models.csm import CsmModel

CONFIG = AdapterConfig(rank=4, targets=("backbone.*_proj", "projection", "*head*"))
DORA = AdapterConfig(method="dora", rank=4, alpha=6.0, targets=("backbone.*_proj", "projection", "*head*"))
CONFIGS = pytest.mark.parametrize("config", [CONFIG, DORA], ids=["lora", "dora"])


def adapted(base: Path, config: AdapterConfig = CONFIG, *, unpack: bool | None = None, seed: int = 1) -> CsmModel:
    """A base with what a training could have made."""
    model = load_checkpoint(base, unpack=unpack).model
    attach(model, config, seed=seed)
    mx.random.seed(seed)
    for layer in adapters(model).values():
        layer.lora_b = 0.2 * mx.random.normal(layer.lora_b.shape)
        if "magnitude" in layer:
            layer["magnitude"] = layer["magnitude"] * mx.random.uniform(0.7, 1.3, layer["magnitude"].shape)
    return model


def trained(base: Path, folder: Path, config: AdapterConfig = CONFIG, **options: Any) -> CsmModel:
    model = adapted(base, config, **options)
    write_adapter(folder, model, config, base=base.name, summary={"steps": 30})
    return model


def answers(model: CsmModel) -> mx.array:
    hidden, _ = model.backbone(
        model.embed_text(mx.array([[1, 5, 7, 9, 11, 2]])), model.backbone.make_state(1, model.dtype, 8)
    )
    return model.frame_logits(hidden[0], mx.array([[3, 1, 4, 1]] * 6))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
