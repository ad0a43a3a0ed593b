"""Measure frames of csm-1b's true dimensions, with random weights made in memory, on a GPU that MLX can use.

    make bench-gpu                                                  # into docs/benchmarks-gpu.{md,json}
    python tests/bench/gpu.py --formats q4 --batches 1 --peers ""   # a part of it
    python tests/bench/gpu.py --device cpu --size small --frames 5  # try the script itself anywhere

Of bfloat16, q8 and q4 weights, at batches of 1 and 8: a prefill of 100 rows of text, then frames, each waited for and
with the next one built meanwhile; Python's share, the operations of the graph, and the floor: the time that reading a
frame's weights takes at the speed at which this device copies memory. mlx-audio and transformers draw the same frames
in the same run, one utterance at a time in bfloat16, where this Python can import them.

A Linux machine with an NVIDIA GPU needs the wheels `mlx` and `mlx-cuda-13` for its Python, and CUDA 13's libraries.
Where only files of the working tree travel there, 64 MiB a call (the device tool of this workplace, whose README has
the command that fetches wheels into .whl), the larger wheel goes in halves, in two calls that follow at once:

    echo '/.whl*/' >> .git/info/exclude; mkdir .whl1 .whl2; mv .whl/mlx_cuda_13-*.whl .
    split -b 48M mlx_cuda_13-*.whl half.; mv half.aa .whl1/; mv half.ab .whl2/    # NAME: what the wheel was called

    carry .whl and .whl1:    mkdir /tmp/w; cp .whl/*.whl .whl1/half.aa /tmp/w
    carry .whl2:             cat /tmp/w/half.aa .whl2/half.ab > /tmp/w/NAME &&
        python3 -m pip install -q --no-index --no-deps --target /tmp/site /tmp/w/*.whl &&
        nvidia=$(python3 -c 'import nvidia; print(list(nvidia.__path__)[0])') &&
        export PYTHONPATH=/tmp/site LD_LIBRARY_PATH=$(ls -d $nvidia/*/lib | paste -sd:) &&
        python3 tests/bench/gpu.py --out $OUT

`mlx` and `mlx-cuda-13` of one version. Its CUDA libraries are those that PyTorch brought (`nvidia/*/lib`). Peers that
are not there, mlx-audio among them, are told as missing.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import report
from run import HERE, ROOT, PeerError, Worker, say
from worker import TEMPERATURE, TOP_K

sys.path.insert(0, str(ROOT))
from csm_mlx.benchmark import BatchLoop, FrameLoop, count_nodes, frame_bytes, times
from csm_mlx.checkpoint import kernels
from csm_mlx.config import CsmConfig, SamplingConfig, TransformerConfig
from csm_mlx.generate.context import Context
from csm_mlx.models.csm import CsmModel
from csm_mlx.quantize import Quantization, dequantize_model, quantize_model
from csm_mlx.stored import preset

NAME = "benchmarks-gpu"
PROMPT_ROWS, WARM_FRAMES, BUILDS, PREFILLS, COPIES = 100, 5, 10, 5, 5
COPY_BYTES = {"gpu": 2_000_000_000, "cpu": 64_000_000}
FORMATS = {"bfloat16": None, "q8": Quantization(recipe="q8"), "q4": Quantization(recipe="q4")}
PEERS = {"mlx-audio": ("peer_mlx_audio.py", "bench"), "transformers": ("peer_transformers.py", "parity")}
"""Script and environment; see `rows.PEERS`."""
PEER_ROWS = {"csm-1b": "csm_frame", "small": "overhead_frame"}
SAMPLING = SamplingConfig(temperature=TEMPERATURE, top_k=TOP_K)
FRAME_MS = 80.0
COLUMNS = (
    ("batch", "n"), ("frame_ms", "frame (ms)"), ("p99_ms", "99 % below"), ("pipelined_ms", "pipelined"),
    ("pipelined_p99_ms", "99 % below"), ("streams", "streams in real time"), ("build_ms", "building the graph"),
    ("nodes", "operations"), ("prefill_ms", "prefill"), ("gigabytes", "GB read a frame"), ("floor_ms", "floor"),
    ("share", "floor / pipelined"),
)  # fmt: skip


def narrow(stack: TransformerConfig) -> TransformerConfig:
    return replace(stack, dim=64, n_heads=4, n_kv_heads=2, head_dim=16, ffn_dim=128)


def dimensions(size: str) -> CsmConfig:
    csm = preset("csm-1b").csm
    if size == "csm-1b":
        return csm
    return replace(csm, backbone=narrow(csm.backbone), depth=narrow(csm.depth), text_vocab_size=4096)


def random_model(config: CsmConfig, quantization: Quantization | None) -> tuple[CsmModel, list[str]]:
    """In bfloat16, quantized; and the layers that had to stay float, as at loading, because no kernel takes them."""
    model = CsmModel(config)
    model.set_dtype(mx.bfloat16)
    if quantization is not None:
        quantize_model(model, quantization)
    for _, layer in model.named_modules():
        if not layer.children():  # one after the other: their float32 originals would fill the memory
            mx.eval(layer.parameters())
    lacking = kernels.lacking(model) if quantization is not None else []
    dequantize_model(model, model.dtype, lacking)
    mx.eval(model.parameters())
    mx.clear_cache()
    return model, lacking


def copy_gb_per_s(n_bytes: int) -> float:
    """Bytes read and written a second by a copy of so many bytes, the best of several."""
    x = mx.zeros((n_bytes // 4096, 1024), mx.float32)
    mx.eval(x)
    spent_ms = times(lambda: mx.eval(x + 1), 1 + COPIES)[1:]
    return 2 * x.nbytes / min(spent_ms) / 1e6


def pipelined_ms(loop: FrameLoop | BatchLoop, n_frames: int) -> list[float]:
    """Milliseconds from frame to frame, when the next is built and queued before one is waited for."""
    running = loop.build()
    mx.async_eval(*running)
    spent = []
    for _ in range(n_frames):
        started = time.perf_counter()
        following = loop.build()
        mx.async_eval(*following)
        mx.eval(*running)
        running = following
        spent.append(1000 * (time.perf_counter() - started))
    loop.finish()
    return spent


def measure(model: CsmModel, batch: int, n_frames: int, gb_per_s: float) -> dict[str, float]:
    """One line of the table."""
    prompt = tuple(int(i) for i in np.random.default_rng(0).integers(0, model.config.text_vocab_size, PROMPT_ROWS))
    prefill = times(lambda: mx.eval(Context(model).open_turn(prompt)), 1 + PREFILLS)[1:]
    single = batch == 1
    loop = FrameLoop(model, SAMPLING, PROMPT_ROWS) if single else BatchLoop(model, SAMPLING, batch, PROMPT_ROWS)
    times(loop.run, WARM_FRAMES)
    waited, pipelined = times(loop.run, n_frames), pipelined_ms(loop, WARM_FRAMES + n_frames)[WARM_FRAMES:]
    builds = times(loop.build, BUILDS, after=loop.finish)
    floor_ms = frame_bytes(model) / gb_per_s / 1e6
    median = float(np.median(pipelined))
    return {
        "batch": batch,
        "frame_ms": float(np.median(waited)),
        "p99_ms": float(np.percentile(waited, 99)),
        "pipelined_ms": median,
        "pipelined_p99_ms": float(np.percentile(pipelined, 99)),
        "streams": batch * FRAME_MS / median,
        "build_ms": float(np.median(builds)),
        "nodes": count_nodes(*loop.build()),
        "prefill_ms": float(np.median(prefill)),
        "gigabytes": frame_bytes(model) / 1e9,
        "floor_ms": floor_ms,
        "share": floor_ms / median,
    }


def measure_ours(arguments: argparse.Namespace, gb_per_s: float) -> Iterator[dict[str, Any]]:
    for name in chosen(arguments.formats):
        say(f"making {arguments.size} in {name}")
        model, lacking = random_model(dimensions(arguments.size), FORMATS[name])
        for batch in map(int, chosen(arguments.batches)):
            say(f"{name}, batch {batch}: {arguments.frames} frames")
            figures = measure(model, batch, arguments.frames, gb_per_s)
            yield {"name": f"csm-mlx {name}", "dequantized": lacking} | figures


def measure_peers(arguments: argparse.Namespace, cache: Path) -> Iterator[dict[str, Any]]:
    """Lines of the peers: the time of a frame, or why there is none."""
    os.environ |= {"BENCH_DEVICE": arguments.device, "BENCH_DTYPE": "bfloat16"}
    os.environ |= {name: os.environ.get(name, sys.executable) for name in ("BENCH_PYTHON", "PARITY_PYTHON")}
    for name in chosen(arguments.peers):
        say(f"{name}: {arguments.frames} frames")
        script, environment = PEERS[name]
        worker = Worker(script, environment, cache, cache)
        try:
            worker.ask(PEER_ROWS[arguments.size], WARM_FRAMES)
            spent = [sample["wall_ms"] for sample in worker.ask(PEER_ROWS[arguments.size], arguments.frames)]
        except PeerError as error:
            yield {"name": name, "missing": str(error)}
        else:
            median, p99 = np.percentile(spent, (50, 99))
            figures = {"frame_ms": float(median), "p99_ms": float(p99), "streams": FRAME_MS / float(median)}
            yield {"name": name, "batch": 1, "versions": worker.versions} | figures
        worker.stop()


def write_configs(cache: Path) -> None:
    """The peers' `config.json`, by the environment that has their library; without it they say so themselves."""
    python = os.environ.get("PARITY_PYTHON", sys.executable)
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    command = [python, str(HERE / "write_weights.py"), str(cache), "--configs"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        say(f"no configs for the peers: {done.stderr.strip().splitlines()[-1]}")


def chosen(names: str) -> list[str]:
    return [name for name in names.split(",") if name]


def cell(value: float | None) -> str:
    return "" if value is None else f"{value:,}" if isinstance(value, int) else report.digits(value)


def markdown(result: dict[str, Any]) -> str:
    lines = [
        f"# Frames of {result['size']} on {result['device']}",
        "",
        f"Taken on {result['date']} by `{result['command']}`, Python {result['python']}, "
        + ", ".join(f"{name} {number}" for name, number in result["versions"].items())
        + f". Random weights, {result['frames']} frames after a prompt of {PROMPT_ROWS} rows, top-k {TOP_K}, no codec; "
        "medians by the clock in milliseconds. A copy on the device read and wrote "
        f"{result['copy_gb_per_s']:,.0f} GB/s; the floor is a frame's weights at that speed.",
        "",
        "| | " + " | ".join(title for _, title in COLUMNS) + " |",
        "|" + "---|" * (1 + len(COLUMNS)),
    ]
    for line in result["lines"]:
        if "missing" not in line:
            lines.append("| " + " | ".join([line["name"], *(cell(line.get(name)) for name, _ in COLUMNS)]) + " |")
    for line in result["lines"]:
        if "missing" in line:
            lines += ["", f"{line['name']} has no figure: {line['missing']}"]
    for name, lacking in {line["name"]: line.get("dequantized") for line in result["lines"]}.items():
        if lacking:
            lines += ["", f"{name}: {len(lacking)} layers were dequantized, for want of a kernel: {', '.join(lacking)}"]
    return "\n".join(lines) + "\n"


def installed(*packages: str) -> dict[str, str]:
    found = {}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("gpu", "cpu"), default="gpu")
    parser.add_argument("--size", choices=tuple(PEER_ROWS), default="csm-1b", help="small: every width tiny")
    parser.add_argument("--formats", default=",".join(FORMATS), help="with commas between (default: %(default)s)")
    parser.add_argument("--batches", default="1,8", help="with commas between (default: %(default)s)")
    parser.add_argument("--peers", default=",".join(PEERS), help="with commas between (default: %(default)s)")
    parser.add_argument("--frames", type=int, default=50, help="that count (default: 50)")
    parser.add_argument("--out", type=Path, help="folder of the results (default: docs; for a CPU none)")
    arguments = parser.parse_args()
    for flag, known in (("formats", FORMATS), ("peers", PEERS)):
        for name in chosen(getattr(arguments, flag)):
            if name not in known:
                parser.error(f"--{flag} names {name!r}, expected some of {','.join(known)}")
    if arguments.frames < 1 or any(not name.isdigit() or int(name) < 1 for name in chosen(arguments.batches)):
        parser.error("--frames and --batches are 1 or more")
    return arguments


def main() -> None:
    arguments = parsed()
    if arguments.device == "gpu" and not mx.is_available(mx.gpu):
        sys.exit(
            f"MLX {version('mlx')} sees no GPU here, so there is nothing to measure; on Linux with an NVIDIA GPU "
            "install mlx-cuda-13 beside it (see --help), or try the script with --device cpu --size small"
        )
    device = mx.gpu if arguments.device == "gpu" else mx.cpu
    mx.set_default_device(device)
    gb_per_s = copy_gb_per_s(COPY_BYTES[arguments.device])
    lines = list(measure_ours(arguments, gb_per_s))
    mx.clear_cache()
    with tempfile.TemporaryDirectory() as folder:
        if arguments.peers:
            write_configs(Path(folder))
        lines += measure_peers(arguments, Path(folder))
    result = {
        "date": time.strftime("%Y-%m-%d"),
        "command": " ".join(["make bench-gpu"] if len(sys.argv) == 1 else ["python tests/bench/gpu.py", *sys.argv[1:]]),
        "size": arguments.size,
        "device": str(mx.device_info(device).get("device_name", device)),
        "python": platform.python_version(),
        "versions": installed("mlx", "mlx-cuda-13", "mlx-cpu"),
        "frames": arguments.frames,
        "copy_gb_per_s": gb_per_s,
        "lines": lines,
    }
    print(markdown(result))
    out = arguments.out or (ROOT / "docs" if arguments.device == "gpu" else None)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / f"{NAME}.json").write_text(json.dumps(result, indent=1) + "\n")
        (out / f"{NAME}.md").write_text(markdown(result))
        say(f"results -> {out}/{NAME}.md, .json")


if __name__ == "__main__":
    main()
