"""What a process holds."""

import gc
import os
import subprocess
from pathlib import Path

import mlx.core as mx


def arrays_of_others() -> int:
    """Bytes of MLX's arrays that other tests in this process keep, to be subtracted from what MLX tells later.

    What they left in cycles (a model is one) goes now; freed in the middle of a measurement, it would falsify it.
    """
    gc.collect()
    mx.clear_cache()
    return mx.get_active_memory()


def resident_bytes() -> int:
    """Of this process, now, shared libraries included."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmRSS:"))
        return int(line.split()[1]) * 1024
    answer = subprocess.run(["ps", "-o", "rss=", "-p", str(os.getpid())], capture_output=True, text=True, check=True)
    return int(answer.stdout) * 1024
