"""Measure how long somebody waits for `csm say` with the embedded voice: real processes, watched from outside.

    make bench                                         # as a part of it
    python tests/bench/startup.py                      # alone: Markdown on stdout
    python tests/bench/startup.py --runs 9 --json startup.json

Each round starts the command twice per circumstance: once with the sound going to a pipe, timed from the start of the
process to the first sample behind the header, and once with `--json` for what only the program knows. Circumstances
take turns. "From the disk" drops the files of the environment and the checkpoint from the system's cache first; those
that another running program maps stay there.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import report
from rows import STARTUP

ROOT = Path(__file__).parents[2]
CSM = Path(sys.executable).with_name("csm")
STAGE = "startup"
"""What `run.py --stages` calls it."""
TEXT = "Hello there, how are you today?"
WAV_HEADER_BYTES = 44

Samples = list[dict[str, float]]


@dataclass(frozen=True)
class Circumstance:
    title: str
    prepare: Callable[[], None]
    environment: dict[str, str]


def measure(n_runs: int, say: Callable[[str], None] = lambda _: None) -> dict[str, Samples]:
    """`n_runs` samples of all figures per circumstance, by its title; a first round of each does not count."""
    samples: dict[str, Samples] = {}
    for number in range(n_runs + 1):
        for circumstance in circumstances():
            say(f"csm say, {circumstance.title}: run {number} of {n_runs}")
            taken = sample(circumstance)
            if number:
                samples.setdefault(circumstance.title, []).append(taken)
    return samples


def circumstances() -> list[Circumstance]:
    """Those that this system and this environment have; the first is the one that the goals are for."""
    preloaded = "LD_PRELOAD" in os.environ
    plain = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    found = [Circumstance("files in memory", lambda: None, dict(os.environ))]
    if hasattr(os, "posix_fadvise"):
        found.append(Circumstance("from the disk", drop_from_memory, dict(os.environ)))
    return found + [Circumstance("MLX's own BLAS", lambda: None, plain)] * preloaded


def sample(circumstance: Circumstance) -> dict[str, float]:
    circumstance.prepare()
    first_sound_s = watch(circumstance.environment)
    circumstance.prepare()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.wav"
        done = subprocess.run(
            [CSM, "say", TEXT, "-o", out, "--json"], env=circumstance.environment, capture_output=True, text=True
        )
    if done.returncode:
        sys.exit(f"csm say failed: {done.stderr.strip()}")
    told = json.loads(done.stdout)
    inside = [figure.name for figure in STARTUP if figure.name != "first_sound_s"]
    return {"first_sound_s": first_sound_s} | {name: told[name] for name in inside}


def watch(environment: dict[str, str]) -> float:
    """Seconds from the start of a process to the first sample that it hands out."""
    started, n_bytes = time.perf_counter(), 0
    with subprocess.Popen(
        [CSM, "say", TEXT, "-o", "-"], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        while n_bytes <= WAV_HEADER_BYTES and (block := os.read(process.stdout.fileno(), 1 << 16)):
            n_bytes += len(block)
        spent_s = time.perf_counter() - started
        process.stdout.read()
        error = process.stderr.read().decode()
    if process.returncode or n_bytes <= WAV_HEADER_BYTES:
        sys.exit(f"csm say made no sound: {error.strip()}")
    return spent_s


def drop_from_memory() -> None:
    """Files of the environment, the program and its voice go from the system's cache, as after a restart."""
    for folder in (sys.prefix, Path(os.__file__).parent, ROOT / "csm_mlx", ROOT / "app", ROOT / "weights" / "csm-tiny"):
        for path in Path(folder).rglob("*"):
            if path.is_file():
                with path.open("rb") as file:
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5, help="processes of each kind that count (default: 5)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all samples there, too")
    arguments = parser.parse_args()
    if arguments.runs < 1:
        parser.error("--runs is below 1")
    samples = measure(arguments.runs, lambda message: print(message, file=sys.stderr))
    print("\n".join(report.startup_lines(samples)))
    if arguments.json:
        arguments.json.write_text(json.dumps(samples, indent=1) + "\n")


if __name__ == "__main__":
    main()
