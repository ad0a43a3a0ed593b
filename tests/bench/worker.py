"""What a peer's process runs: it is asked for rows on stdin, measures them, and answers; a JSON object a line each way.

Standard library only: each peer imports it in an environment of its own.
"""

import ctypes
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

CACHE = Path(sys.argv[1]) if len(sys.argv) > 1 else Path()
"""The folder that `write_weights.py` filled: `csm-1b/`, `narrow/` and `mimi-kyutai.safetensors`."""

DEVICE, DTYPE = os.environ.get("BENCH_DEVICE", "cpu"), os.environ.get("BENCH_DTYPE", "float32")
"""`cpu` or `gpu`, and the type of the weights where the folder holds a config alone and they are drawn here."""

N_CODEBOOKS, N_CODES, FRAME_SIZE, CLIP_FRAMES = 32, 2048, 1920, 125
TEXT_ROWS, AUDIO_ROWS = 64, 500
TEMPERATURE, TOP_K = 0.9, 50

Sample = dict[str, float]
"""`cpu_ms` and `wall_ms` of one repetition, or `value`, a count or a size."""
Measure = Callable[[int], list[Sample]]
"""`measure(n)`: n repetitions."""


def nothing() -> None:
    pass


def repeated(
    step: Callable[[], object],
    *,
    before: Callable[[], object] = nothing,
    after: Callable[[], object] = nothing,
    clock: Callable[[], float] = time.process_time,
) -> Measure:
    """Times `step` alone; `clock` is the processor's, of all threads by default."""

    def measure(n: int) -> list[Sample]:
        samples = []
        for _ in range(n):
            before()
            cpu, wall = clock(), time.perf_counter()
            step()
            samples.append({"cpu_ms": 1000 * (clock() - cpu), "wall_ms": 1000 * (time.perf_counter() - wall)})
            after()
        return samples

    return measure


def peak_above(step: Callable[[], object], *, before: Callable[[], object] = nothing) -> Measure:
    """The most memory that the process holds during `step` beyond what it held before, in MB. Linux only."""

    def measure(n: int) -> list[Sample]:
        samples = []
        for _ in range(n):
            before()
            ctypes.CDLL(None).malloc_trim(0)  # else what was freed and kept would count as held
            Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew from what is held now
            held = _status("VmRSS")
            step()
            samples.append({"value": (_status("VmHWM") - held) / 1000})
        return samples

    return measure


def counted(count: Callable[[], float]) -> Measure:
    """A number that does not vary."""
    return lambda _: [{"value": count()}]


def _status(field: str) -> float:
    """Kilobytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith(f"{field}:")))


def serve(packages: Sequence[str], rows: Mapping[str, Callable[[], Measure]]) -> None:
    """Answers until stdin ends. A row's maker runs once, at the row's first request: it loads what the row needs."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what a library prints is no answer
    answers.write(json.dumps({"versions": {name: version(name) for name in packages}, "rows": list(rows)}) + "\n")
    ready: dict[str, Measure] = {}
    for line in sys.stdin:
        request = json.loads(line)
        row = request["row"]
        try:
            if row not in ready:
                ready[row] = rows[row]()
            answer = {"samples": ready[row](request["n"])}
        except Exception as error:  # a peer that fails is a cell of the table
            answer = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"}
        answers.write(json.dumps(answer) + "\n")
