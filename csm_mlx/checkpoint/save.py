"""Writes checkpoints: safetensors in rows as they come, JSON, and a whole folder that appears at once or not at all."""

import contextlib
import ctypes
import errno
import json
import os
import secrets
import shutil
import struct
import sys
import weakref
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import numpy as np

from csm_mlx.checkpoint import files
from csm_mlx.errors import CheckpointError

if TYPE_CHECKING:
    from typing_extensions import Self

STORED = {
    mx.float32: "F32",
    mx.float16: "F16",
    mx.bfloat16: "BF16",
    mx.uint32: "U32",
    mx.uint8: "U8",
    mx.int32: "I32",
}
"""How a safetensors header calls a type."""


def write_error(path: Path, error: OSError) -> CheckpointError:
    """What a failed write means and what to do about it."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        reason = "the disk is full" if error.errno != errno.EFBIG else "the file may not grow so large here"
        free = shutil.disk_usage(_existing(path)).free
        return CheckpointError(
            f"cannot write {path.name} in {path.parent}: {reason} ({free / 1e9:.2f} GB free); "
            "free some space or choose another place"
        )
    return CheckpointError(f"cannot write {path}: {error.strerror}; choose another place")


def _existing(path: Path) -> Path:
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


def require_space(folder: Path, n_bytes: int) -> None:
    """`CheckpointError` when the disk that `folder` will be on has less than `n_bytes` free."""
    free = shutil.disk_usage(_existing(folder.absolute())).free
    if free < n_bytes:
        raise CheckpointError(
            f"{folder} needs {n_bytes / 1e9:.2f} GB, its disk has {free / 1e9:.2f} GB free; "
            "free some space or choose another place"
        )


class SafetensorsWriter:
    """Writes tensors whose types and shapes are known beforehand, rows in any order, so that none need be whole.

    `OSError` from the disk is raised as `CheckpointError`.
    """

    def __init__(
        self,
        path: Path,
        specs: Mapping[str, tuple[mx.Dtype, tuple[int, ...]]],
        metadata: Mapping[str, str] | None = None,
    ):
        header: dict[str, Any] = {"__metadata__": {"format": "mlx", **(metadata or {})}}
        offsets, end = {}, 0
        for name, (dtype, shape) in specs.items():
            size = dtype.size * int(np.prod(shape, dtype=np.int64))
            header[name] = {"dtype": STORED[dtype], "shape": list(shape), "data_offsets": [end, end + size]}
            offsets[name], end = end, end + size
        raw = json.dumps(header, separators=(",", ":")).encode()
        raw += b" " * (-len(raw) % 8)
        self._path, self._specs, self._offsets, self._start = path, dict(specs), offsets, 8 + len(raw)
        self._written = dict.fromkeys(specs, 0)
        self.n_bytes = self._start + end
        try:
            self._file = path.open("wb")
            self._file.write(struct.pack("<Q", len(raw)) + raw)
        except OSError as error:
            raise write_error(path, error) from error

    def write_rows(self, name: str, first: int, rows: mx.array) -> None:
        """Rows of the first axis, from row `first` on; a type or shape other than announced is a ValueError."""
        dtype, shape = self._specs[name]
        if rows.dtype != dtype or rows.shape[1:] != shape[1:] or first + rows.shape[0] > shape[0]:
            raise ValueError(f"{name!r} was announced as {dtype} {shape}, given {rows.dtype} {rows.shape} at {first}")
        plain = np.ascontiguousarray(rows.view(mx.uint16) if dtype == mx.bfloat16 else rows)
        try:
            self._file.seek(self._start + self._offsets[name] + first * (plain.nbytes // max(1, plain.shape[0])))
            self._file.write(plain.data)
        except OSError as error:
            raise write_error(self._path, error) from error
        self._written[name] += rows.shape[0]

    def __enter__(self) -> "Self":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._file.flush()
                os.fsync(self._file.fileno())
                self._file.close()
        except OSError as failed:
            raise write_error(self._path, failed) from failed
        finally:
            with contextlib.suppress(OSError):  # where it fails, a first failure is on its way
                self._file.close()
        short = [name for name, (_, shape) in self._specs.items() if self._written[name] != shape[0]]
        if kind is None and short:
            raise ValueError(f"{self._path.name} lacks rows of {', '.join(short)}")


def write_json(path: Path, data: Any) -> None:
    """Indented JSON with a last newline; `CheckpointError` when the disk refuses."""
    write_text(path, json.dumps(data, indent=2, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """UTF-8, on the disk when this returns; `CheckpointError` when the disk refuses."""
    try:
        with path.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise write_error(path, error) from error


def copy_file(source: Path, target: Path) -> None:
    """`CheckpointError` when either disk refuses."""
    try:
        shutil.copyfile(source, target)
    except OSError as error:
        raise write_error(target, error) from error


class AtomicFolder:
    """A folder that is filled under another name beside its own and renamed into place when all went well.

    Entering returns the folder to fill. An exception, Ctrl-C included, removes it and leaves what was there before.
    """

    def __init__(self, path: Path, *, force: bool = False):
        self.path, self._force = path.absolute(), force
        self._made: list[Path] = []
        """Folders above it that were not there, the innermost first."""
        require_replaceable(path, force=force)

    def __enter__(self) -> Path:
        try:
            self._made = [parent for parent in self.path.parents if not parent.exists()]
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # Named before it is made, and removed at the latest when this object or Python ends: Ctrl-C comes between
            # any two steps, also between making the folder and entering the block that would remove it.
            self._folder = self.path.with_name(f".{self.path.name}.{secrets.token_hex(4)}.part")
            weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
            self._folder.mkdir()
        except OSError as error:
            self._remove_made()
            raise write_error(self.path, error) from error
        return self._folder

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._remove_made()
            return
        try:
            self._swap()
        except OSError as failed:
            raise write_error(self.path, failed) from failed
        finally:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._remove_made()

    def _remove_made(self) -> None:
        """The folders made above it, as far as they are empty."""
        with contextlib.suppress(OSError):
            for folder in self._made:
                folder.rmdir()

    def _swap(self) -> None:
        require_replaceable(self.path, force=self._force)  # it may have appeared meanwhile
        if not self.path.exists():
            self._folder.rename(self.path)
            return
        if _exchange(self._folder, self.path):
            return  # what was there is now the temporary folder, and goes with it
        old = self._folder.with_suffix(".old")
        self.path.rename(old)
        try:
            self._folder.rename(self.path)
        except BaseException:
            old.rename(self.path)
            raise
        finally:
            shutil.rmtree(old, ignore_errors=True)  # gone already where it was put back


def _exchange(one: Path, other: Path) -> bool:
    """Swaps two folders of one disk in a single step, which not even a kill can halve; False where that is not to be
    had (Linux since glibc 2.28 and macOS have it, not on every kind of disk)."""
    call, here, exchange = ("renamex_np", (), 2) if sys.platform == "darwin" else ("renameat2", (-100,), 2)
    rename = getattr(ctypes.CDLL(None), call, None)
    if rename is None:
        return False
    return rename(*here, os.fsencode(one), *here, os.fsencode(other), exchange) == 0


def require_replaceable(path: Path, *, force: bool) -> None:
    """`CheckpointError` when `path` exists without `force`, or holds anything but a checkpoint of ours.

    A mistyped `--force -o ~/Documents` must not cost a home.
    """
    if not path.exists() and not path.is_symlink():
        return
    if path.is_symlink() or not path.is_dir():
        raise CheckpointError(f"{path} exists and is no folder; choose another place")
    foreign = sorted(p.name for p in path.iterdir() if p.name not in files.OWN_FILES and p.name != ".DS_Store")
    if foreign:
        raise CheckpointError(
            f"{path} exists and holds more than a checkpoint ({', '.join(foreign[:3])}); choose another place"
        )
    if any(path.iterdir()) and not _is_ours(path):
        raise CheckpointError(
            f"{path} exists and is no checkpoint of csm-mlx: its {files.CONFIG} states no format_version; "
            "choose another place"
        )
    if any(path.iterdir()) and not force:
        raise CheckpointError(f"{path} exists; choose another place, or replace it with --force")


def _is_ours(folder: Path) -> bool:
    """Whether a folder's config is in our format; the names of its files may be those of a download too."""
    for name in (files.CONFIG, files.ADAPTER_CONFIG):
        try:
            config = json.loads((folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(config, dict) and "format_version" in config:
            return True
    return False
