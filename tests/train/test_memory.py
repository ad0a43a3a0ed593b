"""What is told before a training is what it takes."""

from dataclasses import replace

import mlx.core as mx
import pytest
from support.layouts import make_tiny, write_own
from support.memory import arrays_of_others
from support.models import csm_config, llama, random_csm
from support.training import byte_csm, random_examples

from csm_mlx.config import CsmConfig
from csm_mlx.generate.session import Csm
from csm_mlx.lora import AdapterConfig
from csm_mlx.quantize import Quantization, quantize_model
from csm_mlx.train import TrainConfig, estimate, train


def wide(dim: int, n_layers: int = 4, **changes) -> CsmConfig:
    backbone = llama(dim, n_layers=n_layers, n_heads=dim // 16, n_kv_heads=dim // 32)
    depth = llama(dim // 2, n_heads=dim // 32, n_kv_heads=dim // 64)
    return csm_config(backbone=backbone, depth=depth, max_positions=1024, **changes)


def quantized(config: CsmConfig) -> Csm:
    csm = random_csm(config)
    quantize_model(csm.model, Quantization(recipe="q4"))
    mx.eval(csm.model.parameters())
    return csm


@pytest.mark.parametrize(
    ("make", "lengths", "config"),
    [
        (lambda: random_csm(wide(128)), (240,) * 4, TrainConfig()),
        (lambda: random_csm(wide(128)), (240, 3, 240), TrainConfig(checkpoint_blocks=True, accumulate=2)),
        (lambda: random_csm(wide(128, audio_vocab_size=512)), (40,) * 4, TrainConfig(method="dora", depth_share=1.0)),
        (lambda: quantized(wide(256, 2)), (200,), TrainConfig(batch=1, adapter=AdapterConfig(rank=32))),
    ],
    ids=["lora", "recomputed", "dora, all codebooks", "q4"],
)
def test_the_estimate_is_near_the_peak(make, lengths, config: TrainConfig, tmp_path) -> None:
    csm = make()
    examples = random_examples(csm.config.csm, lengths)
    told = estimate(csm, config, examples)
    others = arrays_of_others() - told.weights_bytes
    result = train(csm, replace(config, steps=1), examples, tmp_path / "out")
    assert result.n_trainable == told.n_trainable
    assert told.total_bytes / 1.5 < result.peak_bytes - others < told.total_bytes * 1.5


def test_the_estimate_of_a_whole_model(tmp_path) -> None:
    write_own(tmp_path / "base", make_tiny())
    csm = byte_csm(tmp_path / "base")
    examples = random_examples(csm.config.csm, (60, 60))
    config = TrainConfig(method="full", steps=1)
    told = estimate(csm, config, examples)
    others = arrays_of_others() - told.weights_bytes
    result = train(csm, config, examples, tmp_path / "out")
    assert result.n_trainable == told.n_trainable
    assert told.total_bytes / 1.5 < result.peak_bytes - others < told.total_bytes * 1.5


def test_advice_names_what_makes_it_smaller() -> None:
    csm = random_csm(wide(128))
    told = estimate(csm, TrainConfig(), random_examples(csm.config.csm, (240,) * 4))
    assert told.advice(told.total_bytes) is None
    advice = told.advice(told.total_bytes // 2)
    assert advice is not None
    assert "--checkpoint-grads (" in advice
    assert "--batch 1 --accumulate 4 (" in advice
    assert "shorter clips" in advice
    assert dict(told.smaller)["--batch 1 --accumulate 4"] < told.total_bytes / 2
    whole = estimate(csm, TrainConfig(method="full"), random_examples(csm.config.csm, (3,)))
    assert "--method lora (" in (whole.advice(0) or "")
    assert whole.training_bytes > 12 * whole.n_trainable
