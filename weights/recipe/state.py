"""The recipe's state folder: where it is, atomic writes, the log."""

import os
import time
from pathlib import Path

import numpy as np

REPOSITORY = Path(__file__).resolve().parents[2]


def state_path(*parts: str) -> Path:
    """A path in $CSM_VOICE_STATE (default: .state/voice in the repository), its folder made."""
    path = Path(os.environ.get("CSM_VOICE_STATE", REPOSITORY / ".state" / "voice")).joinpath(*parts)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def log(message: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {message}", flush=True)


def save_arrays(path: Path, **arrays: np.ndarray) -> None:
    """np.savez through a temporary file, so that a kill leaves the old file whole."""
    temp = path.with_name(path.name + ".part")
    with temp.open("wb") as file:
        np.savez(file, **arrays)
    os.replace(temp, path)


def save_torch(path: Path, state: dict) -> None:
    """torch.save through a temporary file, so that a kill leaves the old file whole."""
    import torch

    temp = path.with_name(path.name + ".part")
    torch.save(state, temp)
    os.replace(temp, path)


def load_torch(path: Path, device: str = "cpu") -> dict:
    """What save_torch wrote; nothing but tensors and plain values is unpickled."""
    import torch

    plain = [np._core.multiarray.scalar, np.dtype, np.dtypes.Float64DType]
    with torch.serialization.safe_globals(plain):
        return torch.load(path, map_location=device, weights_only=True)
