"""Weights that stay on the disk until they are asked for: rows of a table, and parts that only some uses need.

Both read from the file that was opened at loading, so that replacing a checkpoint's folder, as `csm convert --force`
does, changes nothing for who has loaded it.
"""

import os
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from csm_mlx.checkpoint.read import FLOATS, StoredRows, Tensor, require_finite


def is_stored(tensor: Tensor) -> bool:
    """Whether a tensor lies in its file as it is used, so that it can be read later."""
    return isinstance(tensor.read, StoredRows)


def check_finite(tensor: Tensor) -> None:
    """Reads a tensor block by block, keeping nothing; `CheckpointError` for float weights that are not finite."""
    if tensor.dtype in FLOATS:
        for _, rows in tensor.blocks():
            require_finite(tensor.name, tensor.file, rows)


def unread(tensors: Mapping[str, Tensor]) -> dict[str, mx.array]:
    """Stored tensors as arrays that MLX reads when they are first computed with."""
    opened: dict[str, dict[str, mx.array]] = {}
    arrays = {}
    for name, tensor in tensors.items():
        assert isinstance(tensor.read, StoredRows)
        path = str(tensor.read.path)
        if path not in opened:
            loaded = mx.load(path)
            assert isinstance(loaded, dict)
            opened[path] = loaded
        arrays[name] = opened[path][tensor.name]
    return arrays


class EmbeddingOnDisk(nn.Module):
    """`layer`, a quantized embedding, with its rows in their file: a prompt looks up a few hundred of them. No
    parameters."""

    def __init__(self, layer: nn.QuantizedEmbedding, tensors: Mapping[str, Tensor], dtype: mx.Dtype):
        """tensors: the stored `weight`, `scales` and, where the mode has them, `biases`; dtype: of float ones."""
        super().__init__()
        self.group_size, self.bits, self.mode = layer.group_size, layer.bits, layer.mode
        self._rows = _Rows(tensors, dtype)

    def __call__(self, ids: mx.array) -> mx.array:
        """Rows (…, dim) of ids (…), which it waits for. `IndexError` for one that is no row's; `CheckpointError` when
        the disk fails."""
        of = self._rows.read(np.array(ids).reshape(-1).tolist())
        y = mx.dequantize(of["weight"], of["scales"], of.get("biases"), self.group_size, self.bits, mode=self.mode)
        return y.reshape(*ids.shape, -1)


class _Rows:
    """The arrays of one layer, any of their rows at once."""

    def __init__(self, tensors: Mapping[str, Tensor], dtype: mx.Dtype):
        self._stored: dict[str, StoredRows] = {}
        self._descriptors: dict[Path, int] = {}
        self._dtype = dtype
        self._n_rows = tensors["weight"].shape[0]
        for name, tensor in tensors.items():
            rows = tensor.read
            assert isinstance(rows, StoredRows)
            self._stored[name] = rows
            if rows.path not in self._descriptors:
                self._descriptors[rows.path] = descriptor = os.open(rows.path, os.O_RDONLY)
                weakref.finalize(self, os.close, descriptor)

    def read(self, ids: list[int]) -> dict[str, mx.array]:
        for i in ids:
            if not 0 <= i < self._n_rows:
                raise IndexError(f"{i} was looked up in a table of {self._n_rows} rows")
        arrays = {name: rows.gather([(i, i + 1) for i in ids], self._fill(rows)) for name, rows in self._stored.items()}
        return {name: array.astype(self._dtype) if array.dtype in FLOATS else array for name, array in arrays.items()}

    def _fill(self, rows: StoredRows) -> Callable[[int, memoryview], int]:
        def fill(position: int, buffer: memoryview) -> int:
            data = os.pread(self._descriptors[rows.path], len(buffer), position)
            buffer[: len(data)] = data
            return len(data)

        return fill
