"""Reads safetensors files: a validated header, then any rows of any tensor, without mapping the file into memory.

MLX's own `mx.load` reads whole tensors only. An 8B model's embedding table is 2.1 GB in float32, which a conversion
must read in pieces; and a broken file deserves a better message than a parser's. The format:
https://huggingface.co/docs/safetensors#format
"""

import json
import math
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from csm_mlx.errors import CheckpointError

BLOCK_ELEMENTS = 1 << 22
"""Elements read at once: 16 MB of float32."""

_MAX_HEADER_BYTES = 100_000_000
"""The format's own limit."""

_MLX_DTYPES = {
    "F32": mx.float32,
    "F16": mx.float16,
    "BF16": mx.bfloat16,
    "U32": mx.uint32,
    "I32": mx.int32,
    "I64": mx.int64,
    "U8": mx.uint8,
    "BOOL": mx.bool_,
}
_NUMPY_DTYPES = {"BF16": np.uint16, "U32": np.uint32, "F32": np.float32, "F16": np.float16}
_NUMPY_DTYPES |= {"I32": np.int32, "I64": np.int64, "U8": np.uint8, "BOOL": np.bool_}
_OTHER_BYTES = {"F64": 8, "U64": 8, "I16": 2, "U16": 2, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "C64": 8}
"""Types that the format knows and no checkpoint here may use; their sizes are needed to check the file's length."""

_ITEM_BYTES = {name: dtype.size for name, dtype in _MLX_DTYPES.items()} | _OTHER_BYTES

_SHOWN = 5
"""Names listed of each kind of misfit."""

FLOATS = (mx.float32, mx.float16, mx.bfloat16)


@dataclass(frozen=True)
class StoredRows:
    """Reads rows of a tensor as its file holds it; what is made of a tensor has another `read`."""

    path: Path
    position: int
    """Of the first row's first byte."""
    name: str
    stored: str
    row_shape: tuple[int, ...]

    @property
    def row_bytes(self) -> int:
        return math.prod(self.row_shape) * _ITEM_BYTES[self.stored]

    def __call__(self, start: int, stop: int) -> mx.array:
        with self.path.open("rb") as file:

            def read(position: int, buffer: memoryview) -> int:
                file.seek(position)
                return file.readinto(buffer)

            return self.gather([(start, stop)], read)

    def gather(self, ranges: Sequence[tuple[int, int]], read: Callable[[int, memoryview], int]) -> mx.array:
        """Rows of several ranges one behind the other; `read` fills a buffer from a position of the file and returns
        how many bytes it had. `CheckpointError` when those are too few."""
        values = np.empty((sum(stop - start for start, stop in ranges), *self.row_shape), _NUMPY_DTYPES[self.stored])
        buffer, filled = values.data.cast("B") if values.size else memoryview(bytearray()), 0
        for start, stop in ranges:
            part = buffer[filled : filled + (stop - start) * self.row_bytes]
            if read(self.position + start * self.row_bytes, part) != len(part):
                raise CheckpointError(
                    f"{self.path} ended while {self.name!r} was read; it changed meanwhile, or the disk fails"
                )
            filled += len(part)
        array = mx.array(values)
        return array.view(mx.bfloat16) if self.stored == "BF16" else array


@dataclass(frozen=True)
class Tensor:
    """A tensor on disk, read when asked: whole, or some rows of its first axis."""

    name: str
    """As its file calls it, for messages."""
    file: str
    stored: str
    """The type that the file states, such as `BF16` or `F8_E4M3`."""
    shape: tuple[int, ...]
    read: Callable[[int, int], mx.array]
    """Rows start to stop."""

    @property
    def dtype(self) -> mx.Dtype:
        """`CheckpointError` for a type that no weight here may have."""
        if self.stored not in _MLX_DTYPES:
            raise CheckpointError(
                f"{self.name!r} in {self.file} is stored as {self.stored}, expected F32, F16 or BF16 "
                "(or U32 for packed quantized weights); fetch the model in one of these, or save it again"
            )
        return _MLX_DTYPES[self.stored]

    @property
    def n_bytes(self) -> int:
        return math.prod(self.shape) * _ITEM_BYTES[self.stored]

    def load(self) -> mx.array:
        return self.read(0, self.shape[0]) if self.shape else self.read(0, 1).reshape(())

    def blocks(self) -> Iterator[tuple[int, mx.array]]:
        """(first row, rows) of at most `BLOCK_ELEMENTS` elements, first to last."""
        rows = max(1, BLOCK_ELEMENTS // max(1, math.prod(self.shape[1:])))
        for start in range(0, self.shape[0], rows):
            yield start, self.read(start, min(start + rows, self.shape[0]))

    def changed(self, change: Callable[[mx.array], mx.array], shape: tuple[int, ...]) -> "Tensor":
        """This tensor with `change` done to the whole of it, which gives `shape`; dtype unchanged."""
        return replace(self, shape=shape, read=lambda start, stop: change(self.load())[start:stop])

    def as_float32(self, change: Callable[[mx.array], mx.array], shape: tuple[int, ...]) -> "Tensor":
        """As `changed`, after a cast to float32."""
        self.require_float()
        return replace(self.changed(lambda x: change(x.astype(mx.float32)), shape), stored="F32")

    def rows(self, first: int, last: int) -> "Tensor":
        """Rows first to last as a tensor of their own."""
        return replace(
            self,
            shape=(last - first, *self.shape[1:]),
            read=lambda start, stop: self.read(first + start, first + stop),
        )

    def row(self, index: int) -> "Tensor":
        """Row `index` as a tensor of one axis less."""
        return replace(self, shape=self.shape[1:], read=lambda start, stop: self.read(index, index + 1)[0][start:stop])

    def padded(self, rows: int) -> "Tensor":
        """This tensor with zero rows appended until it has `rows`."""
        missing = rows - self.shape[0]
        if missing <= 0:
            return self
        widths = [(0, missing), *[(0, 0)] * (len(self.shape) - 1)]
        return self.changed(lambda x: mx.pad(x, widths), (rows, *self.shape[1:]))

    def require_float(self) -> None:
        """`CheckpointError` unless the weights are float32, float16 or bfloat16."""
        if self.dtype not in FLOATS:
            raise CheckpointError(f"{self.name!r} in {self.file} is stored as {self.stored}, expected F32, F16 or BF16")


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Every tensor of a safetensors file, by name; nothing but the header is read.

    `CheckpointError` when the file is cut short, is too long, or is no safetensors file.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = _header_bytes(path, file.read(9), size)
            file.seek(8)
            raw = file.read(length)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from None
    try:
        header = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} has a broken header ({error}); fetch it again") from None
    if not isinstance(header, dict):
        raise CheckpointError(
            f"{path} has a broken header: {type(header).__name__}, expected an object; fetch it again"
        )
    header.pop("__metadata__", None)
    data_start = 8 + length
    tensors, end = {}, 0
    for name, entry in sorted(header.items(), key=lambda item: _offsets(path, *item)):
        begin, stop = _offsets(path, name, entry)
        tensor = _tensor(path, name, entry, data_start + begin)
        expected = tensor.n_bytes
        if begin != end or stop - begin != expected:
            raise CheckpointError(
                f"{path} has a broken header: {name!r} of type {tensor.stored} and shape {list(tensor.shape)} needs "
                f"{expected} bytes from {end}, the header says {begin} to {stop}; fetch it again"
            )
        tensors[name], end = tensor, stop
    if size < data_start + end:
        raise CheckpointError(
            f"{path} is cut short: its header promises {data_start + end} bytes, the file has {size}; fetch it again"
        )
    if size > data_start + end:
        raise CheckpointError(
            f"{path} is {size} bytes long, its header describes {data_start + end}; the rest belongs to nothing: "
            "fetch it again"
        )
    return tensors


def _header_bytes(path: Path, start: bytes, size: int) -> int:
    """The length of the header, off the first 9 bytes. `CheckpointError` that says what the file is instead."""
    if start.startswith(b"version "):
        raise CheckpointError(f"{path} is a Git LFS pointer, not the weights; run `git lfs pull` in its repository")
    # A safetensors file may begin so too, with a header of 640 bytes; but that is JSON.
    if start.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x04")) and start[8:] != b"{":
        raise CheckpointError(f"{path} is a pickle or zip archive under a safetensors name; {PICKLE_REASON}")
    if size < 8:
        raise CheckpointError(f"{path} is cut short: {size} bytes hold no safetensors header; fetch it again")
    (length,) = struct.unpack("<Q", start[:8])
    if length > _MAX_HEADER_BYTES:
        raise CheckpointError(f"{path} is no safetensors file: it begins with {start[:8]!r}; fetch it again")
    if 8 + length > size:
        raise CheckpointError(
            f"{path} is cut short: its header alone takes {8 + length} bytes, the file has {size}; fetch it again"
        )
    return length


PICKLE_REASON = (
    "a pickle can run any program when it is read, so only safetensors are read: use the repository's safetensors "
    'file, or write one where you trust the pickle: python -c "import torch; from safetensors.torch import save_file; '
    "save_file(torch.load('ckpt.pt', weights_only=True), 'model.safetensors')\""
)


def _offsets(path: Path, name: str, entry: Any) -> tuple[int, int]:
    offsets = entry.get("data_offsets") if isinstance(entry, dict) else None
    if not (isinstance(offsets, list) and len(offsets) == 2 and all(type(o) is int and o >= 0 for o in offsets)):
        raise CheckpointError(f"{path} has a broken header: {name!r} has data_offsets {offsets!r}; fetch it again")
    return offsets[0], offsets[1]


def _tensor(path: Path, name: str, entry: dict[str, Any], position: int) -> Tensor:
    stored, shape = entry.get("dtype"), entry.get("shape")
    if not isinstance(stored, str) or stored not in _ITEM_BYTES:
        raise CheckpointError(f"{path} has a broken header: {name!r} has the type {stored!r}; fetch it again")
    if not (isinstance(shape, list) and all(type(n) is int and n >= 0 for n in shape)):
        raise CheckpointError(f"{path} has a broken header: {name!r} has the shape {shape!r}; fetch it again")
    read = StoredRows(path, position, name, stored, tuple(shape[1:]))
    return Tensor(name, path.name, stored, tuple(shape), read)


def misfits(shapes: Mapping[str, tuple[int, ...]], tensors: Mapping[str, Tensor]) -> str:
    """What of `tensors` is missing, extra or misshapen beside the expected `shapes`, by name; empty when they fit."""
    wrong = [(tensors[n], shape) for n, shape in shapes.items() if n in tensors and tensors[n].shape != tuple(shape)]
    kinds = {
        "missing": [f"{n!r} {list(shape)}" for n, shape in shapes.items() if n not in tensors],
        "extra": [f"{t.name!r} {list(t.shape)}" for n, t in tensors.items() if n not in shapes],
        "misshapen": [f"{t.name!r} is {list(t.shape)}, expected {list(shape)}" for t, shape in wrong],
    }
    problems = []
    for kind, items in kinds.items():
        more = f" and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
        problems += [f"{kind} {', '.join(items[:_SHOWN])}{more}"] if items else []
    return "; ".join(problems)


def is_finite(x: mx.array) -> mx.array:
    """() bool in the graph: no NaN and no infinity in x."""
    return mx.all(x - x == 0)  # one temporary, where mx.isfinite takes several


def require_finite(name: str, file: str, x: mx.array) -> None:
    """`CheckpointError` that counts the NaNs and infinities of x, if any."""
    if is_finite(x).item():
        return
    n_nan, n_infinite = mx.isnan(x).sum().item(), mx.isinf(x).sum().item()
    raise CheckpointError(
        f"{name!r} in {file} holds {n_nan} NaN and {n_infinite} infinite weights among the {x.size} looked at, "
        "expected none; fetch it again, or ask who trained it"
    )
