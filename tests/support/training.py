"""Small things to train on."""

import os
import struct
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import numpy as np
from support.models import ByteTokenizer, random_mimi

from csm_mlx.checkpoint.load import load_checkpoint
from csm_mlx.config import CsmConfig
from csm_mlx.frames import TurnRows
from csm_mlx.generate.session import Csm
from csm_mlx.train import EncodedExample

ROOT = Path(__file__).parents[2]


def random_turn(rng: np.random.Generator, n_text: int, n_frames: int | None, config: CsmConfig) -> TurnRows:
    ids = tuple(rng.integers(3, config.text_vocab_size, n_text).tolist())
    if n_frames is None:
        return TurnRows(ids, None)
    return TurnRows(ids, rng.integers(1, config.codebook_size, (n_frames, config.n_codebooks)).astype(np.int32))


def random_examples(config: CsmConfig, lengths: tuple[int, ...] = (9, 4, 14, 6), seed: int = 0) -> list[EncodedExample]:
    """One per number of frames; every second one has a context."""
    rng, examples = np.random.default_rng(seed), []
    for i, n_frames in enumerate(lengths):
        context = (random_turn(rng, 4, 5, config), random_turn(rng, 3, None, config)) if i % 2 else ()
        examples.append(EncodedExample(f"random:{i + 1}", (*context, random_turn(rng, 5, n_frames, config))))
    return examples


def byte_csm(folder: Path, dtype: mx.Dtype | None = None) -> Csm:
    """A checkpoint folder's model, with a codec at 24 kHz and a tokenizer that knows every text."""
    held = load_checkpoint(folder, dtype=dtype)
    return Csm(held.model, random_mimi(), ByteTokenizer(), held.config, held.path)


def tone(n_samples: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    t = np.arange(n_samples) / 24000
    return (0.2 * np.sin(2 * np.pi * rng.uniform(100, 300) * t) + 0.02 * rng.normal(size=n_samples)).astype(np.float32)


def write_endless_wav(path: Path, seconds: int, rate_hz: int = 24000) -> None:
    """A long file that takes no disk: a header, and nothing where the sound would be."""
    n_bytes = 2 * seconds * rate_hz
    header = struct.pack("<4sI4s", b"RIFF", n_bytes + 36, b"WAVE")
    header += struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, rate_hz, 2 * rate_hz, 2, 16)
    path.write_bytes(header + struct.pack("<4sI", b"data", n_bytes))
    os.truncate(path, 44 + n_bytes)


def python(code: str, *arguments: object, launch: int = 0, timeout_s: float = 60) -> subprocess.CompletedProcess[str]:
    """Runs a program that can import `support`; on `launch` processes of a ring where that is not 0."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    command = [sys.executable, "-c", code, *map(str, arguments)]
    if launch:
        launcher = Path(sys.executable).with_name("mlx.launch")
        file = Path(str(arguments[0])) / "rank.py"
        file.write_text(code)
        command = [str(launcher), "-n", str(launch), "--backend", "ring", "--env", f"PYTHONPATH={path}"]
        command += ["--", sys.executable, str(file), *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": path}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=timeout_s, check=False)


def largest_difference(a: dict[str, mx.array], b: dict[str, mx.array]) -> float:
    assert a.keys() == b.keys()
    return max(float(mx.abs(a[name] - b[name]).max()) for name in a)
