"""Files of codes: safetensors with one tensor `codes`, int32 (n_frames, n_codebooks). And how results are written."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import mlx.core as mx
import numpy as np

from csm_mlx.checkpoint.read import read_tensors
from csm_mlx.errors import AudioError, CheckpointError

_N_SHOWN = 4
"""Tensors of a wrong file that its error names."""


def write_codes(path: Path, codes: np.ndarray) -> None:
    """Write the file whole or not at all; an older one is replaced."""
    write_tensors(path, {"codes": codes})


def write_tensors(path: Path, tensors: dict[str, np.ndarray]) -> None:
    """Write whole numbers as int32, the file whole or not at all; an older one is replaced."""
    with replacing(path, ".safetensors") as part:  # MLX appends it to any other ending
        mx.save_safetensors(str(part), {name: mx.array(array.astype(np.int32)) for name, array in tensors.items()})


def write_text(path: Path, text: str) -> None:
    """Write the file whole or not at all; an older one is replaced."""
    with replacing(path, ".part") as part:
        part.write_text(text, encoding="utf-8")


@contextmanager
def replacing(path: Path, suffix: str) -> Iterator[Path]:
    """A name to write to, beside `path`, which it replaces when the block is left; `AudioError` where that fails."""
    target = path.resolve()
    part = target.with_name(f".{target.name}.{secrets.token_hex(4)}{suffix}")
    try:
        yield part
        os.replace(part, target)
    except (OSError, RuntimeError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise AudioError(f"cannot write {path}: {reason}") from None
    finally:
        part.unlink(missing_ok=True)


def read_codes(path: Path, codebook_size: int, max_codebooks: int) -> np.ndarray:
    """int32 (n_frames, n_codebooks); `AudioError` unless a codec of these dimensions can decode them."""
    try:
        tensors = read_tensors(path)
        array = tensors["codes"].load() if "codes" in tensors else None
    except CheckpointError as error:
        raise AudioError(f"{error}; expected codes that csm codec encode or csm say --codes wrote") from None
    if array is None:
        held = ", ".join(sorted(tensors)[:_N_SHOWN]) + (", …" if len(tensors) > _N_SHOWN else "")
        raise AudioError(f"{path} holds {held or 'nothing'}, expected the tensor codes")
    codes = np.array(array)
    if codes.ndim != 2 or not codes.size or not np.issubdtype(codes.dtype, np.integer):
        raise AudioError(f"{path} holds codes of shape {codes.shape} and type {codes.dtype}, expected integers (T, K)")
    if codes.shape[1] > max_codebooks:
        raise AudioError(f"{path} has {codes.shape[1]} codebooks, the codec {max_codebooks}; name its --model")
    if not 0 <= codes.min() <= codes.max() < codebook_size:
        raise AudioError(
            f"{path} has codes from {codes.min()} to {codes.max()}, the codec takes 0 to {codebook_size - 1}; "
            "name the --model whose codec made them"
        )
    return codes.astype(np.int32)
