"""How weights lie in memory, without a second copy of them, and how rows are multiplied by them."""

import ctypes
import sys
from functools import cache

import mlx.core as mx

SMALL_PRODUCT = 1_000_000
"""Multiplications up to which OpenBLAS takes its kernel for small matrices, which copies nothing."""

FEW_ROWS = 8
"""Up to which a product takes as long as its weights take to be read, so that a copy of them is what costs."""


def on_cpu() -> bool:
    """Whether what is built now will run on the CPU; the one question that what pays only there depends on."""
    return mx.default_device().type == mx.cpu


def laid_out(x: mx.array, *axes: int) -> mx.array:
    """x, evaluated and equal in shape and values, whose `transpose(*axes)` is contiguous and so costs nothing."""
    inverse = sorted(range(len(axes)), key=axes.__getitem__)
    contiguous = mx.contiguous(x.transpose(*axes))
    mx.eval(contiguous)
    return contiguous.transpose(*inverse)


def lies_by_inputs() -> bool:
    """Whether products take least time here by weights (n_out, n_in) that lie column by column.

    The reference BLAS, which MLX's wheel for Linux carries, then adds up whole columns in vectors, instead of numbers
    one by one: half the time, for any number of rows. OpenBLAS packs columns with less work than rows: four fifths of
    the time for few rows on its Zen core. Only where it has kernels that pack nothing are rows better, in pieces
    (`Factor`). Neither GPUs nor Accelerate were measured: there weights stay as they are.
    """
    return on_cpu() and sys.platform == "linux" and not _multiplies_unpacked()


@cache
def _multiplies_unpacked() -> bool:
    """Whether the BLAS is an OpenBLAS with kernels for small matrices: those of its AVX-512 cores. One that MLX itself
    was linked with, as by conda, shows only where it is preloaded."""
    try:
        core_name = ctypes.CDLL(None).openblas_get_corename
    except (AttributeError, OSError):
        return False
    core_name.restype = ctypes.c_char_p
    return core_name() in (b"SkylakeX", b"Cooperlake", b"SapphireRapids")


class Factor:
    """What rows are multiplied by: `factor(x)` is x @ weight.T for weight (n_out, n_in) float32.

    A BLAS packs a large matrix before it multiplies, which for few rows takes three times as long as reading it. So
    where some kernels do not and the weight lies row by row, few rows are multiplied by pieces of it that are small
    enough for them. Sums are taken in another order then. GPUs, other types and many rows see the whole, as does all
    where weights lie column by column (`lies_by_inputs`).
    """

    __slots__ = ("_few_rows", "_pieces", "_size", "_weight", "_whole")

    def __init__(self, weight: mx.array):
        self._weight, self._whole, self._size = weight, weight.T, weight.size
        self._pieces: dict[int, mx.array] = {}
        self._few_rows = 0 if lies_by_inputs() else FEW_ROWS
        mx.eval(self._whole)

    def __call__(self, x: mx.array, onto: mx.array | None = None) -> mx.array:
        """x (N, n_in); (N, n_out), added to `onto` (N, n_out) or (n_out,) if given."""
        n_rows = x.shape[0]
        if n_rows * self._size <= SMALL_PRODUCT or n_rows > self._few_rows or x.dtype != mx.float32 or not on_cpu():
            return mx.matmul(x, self._whole) if onto is None else mx.addmm(onto, x, self._whole)
        if n_rows not in self._pieces:
            self._pieces[n_rows] = self._cut(n_rows)
        y = x @ self._pieces[n_rows]
        y = (y if n_rows == 1 else y.swapaxes(0, 1)).reshape(n_rows, -1)
        return y if onto is None else onto + y

    def _cut(self, n_rows: int) -> mx.array:
        """(number of pieces, n_in, rows of the weight per piece): as few pieces as are small enough."""
        n_out, n_in = self._weight.shape
        at_most = max(1, SMALL_PRODUCT // (n_rows * n_in))
        n = n_out // next(size for size in range(min(at_most, n_out), 0, -1) if n_out % size == 0)
        pieces = self._weight.reshape(n, n_out // n, n_in).swapaxes(1, 2)
        mx.eval(pieces)
        return pieces
