"""What `csm bench` does between its flags and its table."""

from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlx.core as mx

import csm_mlx
from csm_mlx.benchmark import Benchmark, benchmark, plot
from csm_mlx_app import console, loading, machine


@dataclass(frozen=True)
class Run:
    """What was measured, and on what."""

    benchmark: Benchmark
    model: str

    def to_dict(self) -> dict[str, Any]:
        """JSON-like data."""
        versions = {"csm-mlx": csm_mlx.__version__, "mlx": version("mlx")}
        where = {"chip": machine.chip(), "device": mx.default_device().type.name, "versions": versions}
        return {"model": self.model, **where, **self.benchmark.to_dict()}


def run(*, model: str | None, adapter: Path | None, n_frames: int, seed: int) -> Run:
    """Load and time a checkpoint, with a bar of its frames."""
    csm = loading.load(model, adapter=adapter)
    with console.progress("{task.completed:.0f}/{task.total:.0f} frames") as show:
        result = benchmark(
            csm, n_frames=n_frames, seed=seed, on_frames=lambda done, total: show(completed=done, total=total)
        )
    return Run(result, model or csm.path.name)


def draw(result: Run, path: Path) -> None:
    plot(result.benchmark, path, f"{result.model} on {machine.chip()}")
    console.talk(f"picture -> {path}")


def show(result: Run) -> None:
    """One figure a line."""
    b = result.benchmark
    figures = [
        ("first audio", f"{1000 * b.first_audio_s:.0f} ms", f"{1000 * b.first_audio_cold_s:.0f} ms after loading"),
        ("frame, median", f"{b.frame_p50_ms:.1f} ms", f"of {b.frame_budget_ms:.0f} ms"),
        ("frame, 99 % below", f"{b.frame_p99_ms:.1f} ms", f"of {len(b.frame_ms)} frames"),
        ("real-time factor", f"{b.real_time_factor:.2f}", "keeps up" if b.real_time_factor < 1 else "too slow"),
        ("prefill", f"{1000 * b.prefill_s_per_100_rows:.0f} ms", "per 100 rows"),
        ("codec, encode", f"{b.encode_ms:.1f} ms", "per frame"),
        ("codec, decode", f"{b.decode_ms:.1f} ms", "per frame"),
        ("graph", f"{b.graph_build_ms:.1f} ms", f"to queue {b.graph_nodes} operations per frame"),
        ("floor", f"{b.floor_ms:.1f} ms", f"{console.size(b.frame_bytes)} of weights, {b.floor_gb_per_s:.1f} GB/s"),
        ("floor / frame", f"{100 * b.floor_share:.0f} %", "of the median"),
        ("bandwidth", f"{b.bandwidth_ms:.1f} ms", f"the same at the memory's {b.memory_gb_per_s:.1f} GB/s"),
        ("peak memory", console.size(b.peak_bytes), ""),
    ]
    console.table((result.model, "", ""), figures)
