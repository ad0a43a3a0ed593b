"""Checkpoints of released sizes with random weights, and processes whose memory is measured."""

import json
import math
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import mlx.core as mx
import numpy as np

from csm_mlx.checkpoint.save import SafetensorsWriter

ROOT = Path(__file__).parents[2]
_POOL = 1 << 25


def write_random(path: Path, shapes: Mapping[str, tuple[int, ...]], dtype: mx.Dtype = mx.float32) -> None:
    """Weights of a trained model's size, in blocks that begin anywhere in one pool: to draw billions takes minutes."""
    pool, rng = (0.03 * mx.random.normal((_POOL,))).astype(dtype), np.random.default_rng(0)
    with SafetensorsWriter(path, {name: (dtype, shape) for name, shape in shapes.items()}) as writer:
        for name, shape in shapes.items():
            n_rows = max(1, _POOL // 2 // math.prod(shape[1:]))
            for first in range(0, shape[0], n_rows):
                block = (min(n_rows, shape[0] - first), *shape[1:])
                size = math.prod(block)
                start = int(rng.integers(0, _POOL - size))
                is_norm = "norm" in name or name.endswith("_scale")
                rows = mx.ones(block, dtype) if is_norm else pool[start : start + size].reshape(block)
                writer.write_rows(name, first, rows)
    mx.clear_cache()


def csm(*args: str | Path) -> tuple[dict, int]:
    """The command line's `--json`, and the most memory (bytes) that the process held."""
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'app'}"}
    done = subprocess.run(
        [sys.executable, "-c", _MEASURED, *map(str, args), "--json"], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    *_, peak = done.stderr.strip().rpartition("peak_rss=")
    return json.loads(done.stdout), int(peak)


_MEASURED = """
import atexit, sys
from csm_mlx.checkpoint.convert import peak_resident_bytes
from csm_mlx_app.cli import main
atexit.register(lambda: print(f"peak_rss={peak_resident_bytes()}", file=sys.stderr))
main()
"""


def folder_bytes(folder: Path) -> int:
    return sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
