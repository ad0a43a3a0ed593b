"""Kyutai's speech-to-text and Moshi at their true dimensions with random weights: convert to q4, load, step.

`make slow` prints what each step took: about 22 GB of disk, minutes of work. The figures are this machine's, whose CPU
multiplies quantized weights slowly; what a step reads is the same on every machine.
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten
from support.moshi import write_spm
from support.training import python
from support.true_size import csm, folder_bytes, write_random

from csm_mlx.checkpoint import files
from csm_mlx.config import MoshiConfig, TransformerConfig
from csm_mlx.models.mimi import Mimi
from csm_mlx.stored import MoshiCheckpointConfig, any_preset

pytestmark = pytest.mark.slow

M3_BYTES_PER_S = 100e9
STEPS_PER_S = 12.5
MOSHI_PEAK_BYTES = 6.5e9
"""What Moshi at 4 bits may take while it is loaded."""

Shapes = dict[str, tuple[int, ...]]


def released(name: str) -> MoshiCheckpointConfig:
    config = any_preset(name)
    assert isinstance(config, MoshiCheckpointConfig)
    return config


def stack_shapes(place: str, c: TransformerConfig, n_sets: int | None) -> Shapes:
    """As Kyutai's PyTorch files have them; n_sets: of depth weights, None for the temporal transformer."""
    n, rows, shapes = n_sets or 1, c.n_heads * c.head_dim, Shapes()
    for i in range(c.n_layers):
        at = f"{place}.layers.{i}"
        gates = [f"{at}.gating"] if n_sets is None else [f"{at}.gating.{k}" for k in range(n)]
        shapes |= {f"{at}.norm{j}.alpha": (1, 1, c.dim) for j in (1, 2)}
        shapes |= {f"{at}.self_attn.in_proj_weight": (n * 3 * rows, c.dim)}
        shapes |= {f"{at}.self_attn.out_proj.weight": (n * c.dim, rows)}
        shapes |= {f"{gate}.linear_in.weight": (2 * c.ffn_dim, c.dim) for gate in gates}
        shapes |= {f"{gate}.linear_out.weight": (c.dim, c.ffn_dim) for gate in gates}
    return shapes


def lm_shapes(c: MoshiConfig) -> Shapes:
    dim, shapes = c.temporal.dim, stack_shapes("transformer", c.temporal, None)
    shapes |= {"text_emb.weight": (c.text_vocab_size + 1, dim), "text_linear.weight": (c.text_head_size, dim)}
    shapes |= {f"emb.{i}.weight": (c.codebook_size + 1, dim) for i in range(c.n_codebooks)}
    shapes |= {"out_norm.alpha": (1, 1, dim)}
    shapes |= {f"extra_heads.{i}.weight": (c.extra_head_size, dim) for i in range(c.n_extra_heads)}
    if c.depth is not None:
        shapes |= stack_shapes("depformer", c.depth, c.n_depth_sets)
        shapes |= {f"depformer_in.{k}.weight": (c.depth.dim, dim) for k in range(c.n_depth_sets)}
        shapes |= {f"linears.{k}.weight": (c.codebook_size, c.depth.dim) for k in range(c.n_generated)}
        shapes |= {"depformer_text_emb.weight": (c.text_vocab_size + 1, c.depth.dim)}
        shapes |= {f"depformer_emb.{k}.weight": (c.codebook_size + 1, c.depth.dim) for k in range(c.n_generated - 1)}
    return shapes


def foreign_config(config: MoshiCheckpointConfig) -> dict[str, Any]:
    c = config.moshi
    said: dict[str, Any] = {
        "dim": c.temporal.dim, "num_heads": c.temporal.n_heads, "num_layers": c.temporal.n_layers,
        "context": c.temporal.window, "max_period": c.temporal.rope_base, "text_card": c.text_vocab_size,
        "card": c.codebook_size, "n_q": c.n_codebooks, "dep_q": c.n_generated, "delays": list(c.delays),
        "extra_heads_num_heads": c.n_extra_heads, "tokenizer_name": "spm.model",
    }  # fmt: skip
    if c.depth is not None:
        said |= {"depformer_dim": c.depth.dim, "depformer_num_heads": c.depth.n_heads}
        said |= {"depformer_num_layers": c.depth.n_layers, "depformer_multi_linear": True}
        said |= {"depformer_weights_per_step": True, "depformer_pos_emb": "none"}
    if config.stt is not None:
        said["stt_config"] = {"audio_delay_seconds": config.stt.delay_s}
    return said


@pytest.fixture(params=["stt-1b-en_fr", "moshi-7b"])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """As Kyutai's repositories hold it, in bfloat16, its Mimi beside it in our own names."""
    folder, config = tmp_path / request.param, released(request.param)
    folder.mkdir()
    write_random(folder / files.MODEL, lm_shapes(config.moshi), mx.bfloat16)
    parameters = tree_flatten(Mimi(config.codec).parameters())
    write_random(folder / files.CODEC, {name: p.shape for name, p in parameters if isinstance(p, mx.array)})
    (folder / files.CONFIG).write_text(json.dumps(foreign_config(config)))
    write_spm(folder / "spm.model")
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def stepped(folder: Path, kind: str, dtype: str, n_steps: int) -> dict[str, float]:
    """A fresh process that loads a checkpoint and takes some steps."""
    done = python(_STEPPED, folder, kind, dtype, str(n_steps), timeout_s=1200)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


_STEPPED = """
import json, sys, time
import mlx.core as mx
import numpy as np
import csm_mlx
from csm_mlx.benchmark import frame_bytes
from csm_mlx.checkpoint.convert import peak_memory_bytes as peak
from support.memory import resident_bytes

folder, kind, dtype, n_steps = sys.argv[1:]
load = csm_mlx.load_stt if kind == "stt" else csm_mlx.load_moshi
began = time.perf_counter()
model = load(folder, dtype=getattr(mx, dtype))
told = {"load_s": time.perf_counter() - began, "load_peak": peak(), "resident": resident_bytes()}
session = model.session()
frame = np.random.default_rng(0).normal(0, 0.1, model.frame_size).astype(np.float32)
session.step(frame)
times = []
for _ in range(int(n_steps)):
    began = time.perf_counter()
    session.step(frame)
    times.append(time.perf_counter() - began)
told |= {"step_s": float(np.median(times)), "peak": peak(), "bytes": frame_bytes(model.model)}
json.dump(told, sys.stdout)
"""


def test_convert_load_and_step(source: Path, tmp_path: Path) -> None:
    kind = "moshi" if released(source.name).moshi.n_generated else "stt"
    report, convert_peak = csm("convert", source, tmp_path / "q4", "-q")
    print(
        f"\n{source.name}: {folder_bytes(source) / 1e9:.2f} GB to {folder_bytes(tmp_path / 'q4') / 1e9:.2f} GB, ",
        end="",
    )
    print(f"{report['bits_per_weight']:.2f} bits a weight, {report['seconds']:.0f} s, peak {convert_peak / 1e9:.2f} GB")
    assert convert_peak < 2e9
    # Float32 takes more memory, and on a CPU an eighth of the time.
    cases = [("q4", tmp_path / "q4", "float32")]
    if kind == "stt":
        cases += [("q4", tmp_path / "q4", "bfloat16"), ("bfloat16", source, "bfloat16")]
    for name, folder, dtype in cases:
        told = stepped(folder, kind, dtype, 3)
        rate = told["bytes"] * STEPS_PER_S
        print(f"{name} in {dtype}: loaded in {told['load_s']:.1f} s, peak {told['load_peak'] / 1e9:.2f} GB, ", end="")
        print(f"resident {told['resident'] / 1e9:.2f} GB; {told['step_s']:.2f} s a step, ", end="")
        print(f"peak {told['peak'] / 1e9:.2f} GB; reads {told['bytes'] / 1e9:.2f} GB a step, ", end="")
        print(f"{rate / 1e9:.0f} GB/s: {rate / M3_BYTES_PER_S:.0%} of an M3's 100 GB/s")
        if kind == "moshi":
            assert told["load_peak"] < MOSHI_PEAK_BYTES
