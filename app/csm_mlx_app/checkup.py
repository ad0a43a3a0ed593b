"""The findings of `csm doctor`, each with its cure."""

import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from csm_mlx_app import console, machine

TIMED_S = 1.0
_OPENBLAS = "/usr/lib/*/openblas-pthread/libopenblas.so.0"


@dataclass(frozen=True)
class Finding:
    """One line of the report. `cure` says what to do, where there is something to do."""

    name: str
    status: Literal["ok", "warning", "problem"]
    detail: str
    cure: str | None = None
    numbers: dict[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if value is not None}


def checkup() -> Iterator[Finding]:
    """Every finding, as it is made. A check that itself breaks is a problem found, and the others go on."""
    checks: list[Callable[[], Finding]] = [
        _platform, _chip, _memory, _mlx, _packages, _loudspeaker, _microphone, _checkpoints, _speed,
    ]  # fmt: skip
    for check in checks:
        try:
            yield check()
        except Exception as error:
            name = check.__name__.removeprefix("_")
            yield Finding(name, "problem", f"{type(error).__name__}: {error}", "install csm-mlx again, or report this")


def _platform() -> Finding:
    detail = f"{platform.platform()}, Python {platform.python_version()}"
    numbers = {"system": platform.system(), "machine": platform.machine(), "python": platform.python_version()}
    if sys.platform == "darwin" and platform.machine() != "arm64":
        cure = "MLX needs an Apple chip and a native Python: install the arm64 build from python.org or Homebrew"
        return Finding("platform", "problem", detail, cure, numbers)
    return Finding("platform", "ok", detail, None, numbers)


def _chip() -> Finding:
    name = machine.chip()
    return Finding("chip", "ok", f"{name}, {os.cpu_count()} cores", None, {"name": name, "cores": os.cpu_count()})


def _memory() -> Finding:
    total, usable = machine.memory_bytes(), machine.usable_bytes()
    detail = f"{console.size(total)}, of which models may use {console.size(usable)}"
    numbers = {"total_bytes": total, "usable_bytes": usable}
    if usable < 4e9:
        return Finding("memory", "warning", detail, "csm-1b fits as q4 only: csm convert unsloth/csm-1b -q", numbers)
    return Finding("memory", "ok", detail, None, numbers)


def _mlx() -> Finding:
    import mlx.core as mx

    device = mx.default_device()
    detail = f"mlx {version('mlx')} on {device.type.name}"
    numbers = {"version": version("mlx"), "device": device.type.name}
    if sys.platform == "darwin" and device.type != mx.DeviceType.gpu:
        return Finding("mlx", "warning", detail, "the GPU is not used: update macOS and pip install -U mlx", numbers)
    if device.type == mx.DeviceType.cpu and sys.platform == "linux" and not _openblas_loaded():
        return Finding("mlx", "warning", f"{detail}, with the slow BLAS of its Linux wheel", _openblas_cure(), numbers)
    return Finding("mlx", "ok", detail, None, numbers)


def _openblas_loaded() -> bool:
    return "openblas" in Path("/proc/self/maps").read_text()


def _openblas_cure() -> str:
    found = sorted(Path("/").glob(_OPENBLAS.lstrip("/")))
    install = "" if found else "apt-get install libopenblas0-pthread, then "
    path = found[0] if found else "/usr/lib/x86_64-linux-gnu/openblas-pthread/libopenblas.so.0"
    return f"{install}export LD_PRELOAD={path} (float32 products run 35 times faster)"


def _packages() -> Finding:
    needed = ("numpy", "tokenizers", "huggingface-hub", "soundfile", "soxr", "pysbd", "num2words")
    missing = [name for name in needed if not _installed(name)]
    if missing:
        return Finding("packages", "problem", f"missing: {', '.join(missing)}", f"pip install {' '.join(missing)}")
    if not _installed("matplotlib"):
        return Finding("packages", "ok", "all there; plots (--plot) also need: pip install 'csm-mlx[plots]'")
    return Finding("packages", "ok", "all there")


def _installed(name: str) -> bool:
    try:
        version(name)
    except PackageNotFoundError:
        return False
    return True


def _loudspeaker() -> Finding:
    from csm_mlx.errors import DeviceError
    from csm_mlx_app.sound.devices import find_device

    try:
        device = find_device("output")
    except DeviceError as error:
        return Finding("loudspeaker", "warning", "none: csm say writes files", str(error))
    numbers = {"name": device.name, "sample_rate_hz": device.rate_hz}
    return Finding("loudspeaker", "ok", f"{device.name}, {device.rate_hz} Hz", None, numbers)


def _microphone() -> Finding:
    from csm_mlx.errors import DeviceError
    from csm_mlx_app.sound.devices import find_device

    try:
        device = find_device("input")
    except DeviceError as error:
        return Finding("microphone", "warning", "none: csm talk --text reads what is typed", str(error))
    numbers = {"name": device.name, "sample_rate_hz": device.rate_hz}
    return Finding("microphone", "ok", f"{device.name}, {device.rate_hz} Hz", None, numbers)


def _checkpoints() -> Finding:
    from csm_mlx_app.checkpoints import find_checkpoints

    found, broken = find_checkpoints()
    embedded = [checkpoint for checkpoint in found if checkpoint.where == "embedded"]
    numbers = {"found": [str(checkpoint.path) for checkpoint in found], "broken": broken}
    detail = ", ".join(f"{c.name} ({console.size(c.size_bytes)})" for c in found) or "none"
    if not embedded:
        cure = (
            "the embedded voice is missing: install csm-mlx again, or in a checkout run git checkout weights/csm-tiny"
        )
        return Finding("checkpoints", "problem", detail, cure, numbers)
    if broken:
        return Finding("checkpoints", "warning", detail, f"cannot be read: {'; '.join(broken)}", numbers)
    if len(found) == 1:
        cure = "for Sesame's own voice: csm convert unsloth/csm-1b weights/csm-1b-q4 -q"
        return Finding("checkpoints", "ok", f"{detail}, the small embedded voice only", cure, numbers)
    return Finding("checkpoints", "ok", detail, None, numbers)


def _speed() -> Finding:
    import csm_mlx

    started = time.perf_counter()
    csm = csm_mlx.load()
    load_s = time.perf_counter() - started
    speech = csm.session(seed=0).speak("This is how fast I can speak on this machine.", max_seconds=TIMED_S)
    for _ in speech:
        pass
    stats = speech.stats
    factor = stats.real_time_factor or 0.0
    numbers = {"load_s": load_s, "first_audio_s": stats.first_audio_s, "real_time_factor": factor}
    detail = f"{csm.path.name}: loaded in {load_s:.2f} s, real-time factor {factor:.2f}, " + (
        "no sound" if stats.first_audio_s is None else f"first audio after {stats.first_audio_s:.2f} s"
    )
    if stats.first_audio_s is None:
        return Finding("speed", "problem", detail, "the embedded voice made no sound: install csm-mlx again", numbers)
    if factor > 1:
        cure = "slower than real time: close what else computes, and see mlx above; files (-o) are not affected"
        return Finding("speed", "warning", detail, cure, numbers)
    return Finding("speed", "ok", detail, None, numbers)
