"""What this machine is: chip and memory."""

import os
import platform
import subprocess
import sys
from pathlib import Path

USABLE_SHARE = 0.75
"""Of all memory, where the system names no limit: macOS gives the GPU about as much."""


def chip() -> str:
    """The processor's name, such as Apple M3 Pro."""
    if sys.platform == "darwin":
        answer = subprocess.run(
            ["sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True, check=False
        )
        return answer.stdout.strip() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def memory_bytes() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def usable_bytes() -> int:
    """What a model may take: the GPU's recommended working set, or a share of all memory."""
    import mlx.core as mx

    recommended = mx.device_info().get("max_recommended_working_set_size")
    return int(recommended) if recommended else int(memory_bytes() * USABLE_SHARE)
