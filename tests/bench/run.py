"""Measure csm-mlx and its rivals at the same work, interleaved, and write docs/benchmarks.{json,md,png}.

    python tests/bench/run.py                               # all of it: `make bench`, half an hour on a quiet machine
    python tests/bench/run.py --stages mimi --peers csm-mlx,rustymimi --rounds 1 --out /tmp/bench

Each peer is a process of its own in its own environment and stays alive through a stage; in each round every row is
measured on all peers in turn, so that what disturbs the machine disturbs all of them. One thread each, on one core:
MLX's own two threads wake each other every few operations, which between idle cores of a virtual machine costs a tenth
of a small frame's processor time and says nothing about the code. `--cores 2` measures that too.
"""

import argparse
import json
import os
import platform
import select
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import report
import startup
from rows import PEERS, SLOW_MS, STAGES, Peer, Row, Stage

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
START_S, ROW_S = 300, 1800
"""How long a worker may take to start, and a row to be measured once."""
ONE_THREAD = dict.fromkeys(
    ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"), "1"
)


class PeerError(Exception):
    """Why a peer has no figure."""


def pythons() -> dict[str, Path]:
    """The interpreter of each environment; `BENCH_PYTHON` and `PARITY_PYTHON` name others than make's."""
    return {
        "ours": Path(sys.executable),
        "bench": Path(os.environ.get("BENCH_PYTHON", ROOT / ".bench" / "bin" / "python")),
        "parity": Path(os.environ.get("PARITY_PYTHON", ROOT / ".parity" / "bin" / "python")),
    }


class Worker:
    """The process of one script; started when first asked, ended by `stop`."""

    def __init__(self, script: str, environment: str, cache: Path, logs: Path, cores: set[int] | None = None):
        self._command = [str(pythons()[environment]), str(HERE / script), str(cache)]
        self._log = logs / f"{script}.log"
        env = os.environ | ONE_THREAD
        if environment == "parity":
            env.pop("LD_PRELOAD", None)  # for MLX, whose Linux wheel carries slow BLAS; PyTorch brings its own
        self._env, self._cores = env, cores
        self._process: subprocess.Popen[str] | None = None
        self.versions: dict[str, str] = {}
        self.rows: list[str] = []
        self.failure: str | None = None

    def ask(self, row: str, n: int) -> list[dict[str, float]]:
        """`n` samples of a row; PeerError says why there are none."""
        process = self._started()
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps({"row": row, "n": n}) + "\n")
            process.stdin.flush()
        except BrokenPipeError:
            raise self._dead() from None
        answer = self._read(process, ROW_S)
        if "error" in answer:
            raise PeerError(answer["error"])
        return answer["samples"]

    def has(self, row: str) -> bool:
        self._started()
        return row in self.rows

    def stop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            assert process.stdin is not None
            process.stdin.close()
            process.wait()

    def _started(self) -> "subprocess.Popen[str]":
        if self.failure is not None:
            raise PeerError(self.failure)
        if self._process is None:
            if not Path(self._command[0]).exists():
                self.failure = f"{self._command[0]} is not there; `make bench` makes it"
                raise PeerError(self.failure)
            with self._log.open("w") as log:
                pipe = subprocess.PIPE
                self._process = subprocess.Popen(
                    self._command, stdin=pipe, stdout=pipe, stderr=log, env=self._env, text=True, cwd=HERE
                )
            if self._cores:
                os.sched_setaffinity(self._process.pid, self._cores)  # and so are the threads that it will start
            hello = self._read(self._process, START_S)
            self.versions, self.rows = hello["versions"], hello["rows"]
        return self._process

    def _read(self, process: "subprocess.Popen[str]", timeout_s: float) -> dict[str, Any]:
        assert process.stdout is not None
        if not select.select([process.stdout], [], [], timeout_s)[0]:
            process.kill()
            self.failure = f"no answer in {timeout_s:.0f} s"
            raise PeerError(self.failure)
        line = process.stdout.readline()
        if not line:
            raise self._dead()
        return json.loads(line)

    def _dead(self) -> PeerError:
        lines = self._log.read_text(errors="replace").strip().splitlines()
        self.failure = f"its process ended: {lines[-1] if lines else 'without a word'}"
        return PeerError(self.failure)


class Table:
    """Samples, and reasons where there are none, by row and peer."""

    def __init__(self) -> None:
        self.samples: dict[str, dict[str, list[dict[str, float]]]] = {}
        self.missing: dict[str, dict[str, str]] = {}

    def measure(self, row: Row, peer: Peer, worker: Worker, n: int, *, counts: bool) -> None:
        if peer.name in self.missing.get(row.name, {}):
            return
        try:
            if worker.has(peer.prefix + row.name):
                samples = worker.ask(peer.prefix + row.name, n)
                if counts:
                    self.samples.setdefault(row.name, {}).setdefault(peer.name, []).extend(samples)
        except PeerError as error:
            self.missing.setdefault(row.name, {})[peer.name] = str(error)

    def is_slow(self, row: Row, peer: Peer) -> bool:
        samples = self.samples.get(row.name, {}).get(peer.name, [])
        return bool(samples) and samples[-1].get("wall_ms", 0) > SLOW_MS


def measure_stage(stage: Stage, peers: list[Peer], workers: dict[str, Worker], rounds: int, table: Table) -> None:
    for row in stage.rows:
        for peer in peers:
            if row.warm:
                say(f"{stage.name}: warming {row.title} on {peer.name}")
                table.measure(row, peer, workers[peer.script], row.warm, counts=False)
    for number in range(rounds):
        for row in stage.rows:
            if number >= row.max_rounds:
                continue
            for turn in range(row.turns):
                first = (number * row.turns + turn) % len(peers)  # each turn begins with another
                for peer in peers[first:] + peers[:first]:
                    if turn == 0 or not table.is_slow(row, peer):
                        say(f"{stage.name}: round {number + 1} of {rounds}, {row.title} on {peer.name}")
                        table.measure(row, peer, workers[peer.script], row.per_round, counts=True)
    for worker in workers.values():
        worker.stop()


def say(message: str) -> None:
    print(f"{time.strftime('%H:%M:%S')}  load {os.getloadavg()[0]:4.1f}  {message}", file=sys.stderr, flush=True)


def machine() -> dict[str, Any]:
    """What the figures belong to."""
    sys.path.insert(0, str(ROOT / "app"))
    from csm_mlx_app.machine import chip, memory_bytes

    return {
        "chip": chip(),
        "cores": os.cpu_count(),
        "memory_gb": round(memory_bytes() / 1e9),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "blas": Path(os.environ.get("LD_PRELOAD") or "MLX's own").name,
    }


def bench_embedded() -> dict[str, Any]:
    """`csm bench` on the embedded voice."""
    env = os.environ | ONE_THREAD | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'app'}"}
    done = subprocess.run(
        [sys.executable, "-m", "csm_mlx_app", "bench", "--json"], env=env, capture_output=True, text=True, check=False
    )
    if done.returncode:
        return {"error": done.stderr.strip().splitlines()[-1]}
    figures = json.loads(done.stdout)
    del figures["frame_ms"]
    return figures


def some_cores(n: int) -> set[int]:
    """The last `n` of those that this process may run on; none where a system does not say."""
    if n < 1:
        sys.exit(f"--cores is {n}, expected 1 or more")
    if not hasattr(os, "sched_getaffinity"):
        return set()
    return set(sorted(os.sched_getaffinity(0))[-n:])


def lacks_memory(stage: Stage, peers: list[Peer]) -> str | None:
    """Why a stage would push the machine into swapping, which measures the disk; None where it fits."""
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():
        return None
    free_mb = next(int(line.split()[1]) for line in meminfo.read_text().splitlines() if "MemAvailable" in line) / 1000
    needed_mb = stage.worker_mb * len({peer.script for peer in peers})
    if free_mb >= needed_mb:
        return None
    return (
        f"needs {needed_mb / 1000:.0f} GB of memory for these peers at once, {free_mb / 1000:.0f} GB were free; "
        "end other programs, or name fewer with --peers"
    )


def write_weights(cache: Path) -> None:
    if not cache.exists():
        say(f"writing random weights into {cache} (once, 6 GB)")
        env = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
        cache.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run([str(pythons()["parity"]), str(HERE / "write_weights.py"), str(cache)], env=env, check=True)


def chosen(names: str, known: list[str], flag: str) -> list[str]:
    wanted = names.split(",")
    if unknown := [name for name in wanted if name not in known]:
        sys.exit(f"{flag} names {unknown[0]!r}, expected some of {','.join(known)}")
    return wanted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    stages, peers = [*(stage.name for stage in STAGES), startup.STAGE], [peer.name for peer in PEERS]
    parser.add_argument("--stages", default=",".join(stages), help="which, with commas between (default: %(default)s)")
    parser.add_argument("--peers", default=",".join(peers), help="which, with commas between (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="repetitions of everything quick (default: 5)")
    parser.add_argument("--cores", type=int, default=1, help="that each peer may run on, Linux only (default: 1)")
    parser.add_argument("--out", type=Path, default=ROOT / "docs", help="folder of the results (default: docs)")
    parser.add_argument("--cache", type=Path, default=ROOT / ".bench" / "weights", help="folder of the weights")
    arguments = parser.parse_args()
    wanted = chosen(arguments.peers, peers, "--peers")
    wanted_stages = chosen(arguments.stages, stages, "--stages")
    write_weights(arguments.cache.resolve())
    cores = some_cores(arguments.cores)
    table, versions, loads = Table(), {}, [os.getloadavg()[0]]
    with tempfile.TemporaryDirectory() as logs:
        for stage in STAGES:
            if stage.name not in wanted_stages:
                continue
            here = [p for p in PEERS if p.name in wanted and stage.name in p.stages]
            if reason := lacks_memory(stage, here):
                table.missing |= {row.name: dict.fromkeys((p.name for p in here), reason) for row in stage.rows}
                continue
            workers = {
                p.script: Worker(p.script, p.environment, arguments.cache.resolve(), Path(logs), cores) for p in here
            }
            measure_stage(stage, here, workers, arguments.rounds, table)
            for worker in workers.values():
                versions |= worker.versions
            loads.append(os.getloadavg()[0])
    result = {
        "date": time.strftime("%Y-%m-%d"),
        "command": " ".join(["make bench"] if len(sys.argv) == 1 else ["python tests/bench/run.py", *sys.argv[1:]]),
        "machine": machine(),
        "cores_each": len(cores) or None,
        "load_average": [round(load, 1) for load in loads],
        "versions": versions,
        "embedded": bench_embedded(),
        "startup": startup.measure(arguments.rounds, say) if startup.STAGE in wanted_stages else {},
        "samples": table.samples,
        "missing": table.missing,
    }
    report.write(result, arguments.out)


if __name__ == "__main__":
    main()
