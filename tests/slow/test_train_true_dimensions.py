"""One LoRA step of csm-1b at 4 bits, at its true dimensions with random weights: what it takes on this machine.

`make slow` prints the figures. No disk but for the adapter and its state; minutes of work.
"""

import json
from pathlib import Path

import pytest
from support.training import python

pytestmark = pytest.mark.slow

LIMIT_BYTES = 16e9

PROGRAM = """
import json, sys, time
from pathlib import Path
import mlx.core as mx
from support.models import ByteTokenizer
from support.training import random_examples
from csm_mlx.checkpoint.convert import peak_resident_bytes
from csm_mlx.stored import preset
from csm_mlx.generate.session import Csm
from csm_mlx.models.csm import CsmModel
from csm_mlx.models.mimi import Mimi
from csm_mlx.quantize import Quantization, bits_per_weight, quantize_model
from csm_mlx.train import TrainConfig, estimate, train

out, n_frames = Path(sys.argv[1]), int(sys.argv[2])
config = preset("csm-1b")
started = time.perf_counter()
model, codec = CsmModel(config.csm), Mimi(config.codec)
quantize_model(model, Quantization(recipe="q4"))
for layer in [layer for _, layer in model.named_modules() if not layer.children()]:
    mx.eval(layer.parameters())
    mx.clear_cache()
mx.eval(codec.parameters())
made_s = time.perf_counter() - started
csm = Csm(model, codec, ByteTokenizer(), config, Path("csm-1b-q4"))
examples = random_examples(config.csm, (n_frames,))
training = TrainConfig(batch=1, steps=1, checkpoint_blocks=sys.argv[3] == "recomputed")
told = estimate(csm, training, examples)
reports = []
result = train(csm, training, examples, out, on_step=reports.append)
json.dump({
    "bits_per_weight": bits_per_weight(model), "made_s": made_s, "step_s": reports[0].seconds,
    "n_trainable": result.n_trainable, "peak_bytes": result.peak_bytes, "told_bytes": told.total_bytes,
    "rss_bytes": peak_resident_bytes(), "n_rows": sum(examples[0].turn_rows),
    "loss": result.losses.total, "norm": reports[0].grad_norm,
}, sys.stdout)
"""


@pytest.mark.parametrize("blocks", ["kept", "recomputed"])
def test_a_lora_step_fits(blocks: str, tmp_path: Path) -> None:
    done = python(PROGRAM, tmp_path / "out", 125, blocks, timeout_s=3000)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    print(
        f"\ncsm-1b at {figures['bits_per_weight']:.2f} bits, LoRA of {figures['n_trainable'] / 1e6:.2f} million ",
        end="",
    )
    print(f"weights, one clip of 10 s ({figures['n_rows']} rows), activations {blocks}: ", end="")
    print(f"step {figures['step_s']:.0f} s, peak {figures['peak_bytes'] / 1e9:.2f} GB by MLX, ", end="")
    print(f"{figures['rss_bytes'] / 1e9:.2f} GB resident, told {figures['told_bytes'] / 1e9:.2f} GB")
    assert figures["rss_bytes"] < LIMIT_BYTES
    assert figures["told_bytes"] / 1.5 < figures["peak_bytes"] < figures["told_bytes"] * 1.5
    assert figures["loss"] > 0
    assert figures["norm"] > 0
