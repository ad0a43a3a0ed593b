"""Checkpoints of released sizes with random weights, and processes whose memory is measured."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import mlx.core as mx

from csm_mlx.checkpoint.save import SafetensorsWriter

ROOT = Path(__file__).parents[2]


def write_random(path: Path, shapes: Mapping[str, tuple[int, ...]], dtype: mx.Dtype = mx.float32) -> None:
    """Weights of a trained model's size, in blocks."""
    with SafetensorsWriter(path, {name: (dtype, shape) for name, shape in shapes.items()}) as writer:
        for name, shape in shapes.items():
            for first in range(0, shape[0], 4096):
                block = (min(4096, shape[0] - first), *shape[1:])
                is_norm = "norm" in name or name.endswith("_scale")
                rows = mx.ones(block) if is_norm else 0.03 * mx.random.normal(block)
                writer.write_rows(name, first, rows.astype(dtype))
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
import atexit, resource, sys
from csm_mlx_app.cli import main
unit = 1 if sys.platform == "darwin" else 1024
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
atexit.register(lambda: print(f"peak_rss={peak()}", file=sys.stderr))
main()
"""


def folder_bytes(folder: Path) -> int:
    return sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
