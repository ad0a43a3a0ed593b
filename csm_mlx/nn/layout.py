"""How weights lie in memory, without a second copy of them, and how rows are multiplied by them."""

import ctypes
import sys
from functools import cache

import mlx.core as mx

SMALL_PRODUCT = 1_000_000
"""Multiplications up to which OpenBLAS takes its kernel for small matrices, which copies nothing."""

FEW_ROWS = 8
"""Up to which a product takes as long as its weights take to be read, so that a copy of them is what costs."""

UNPACKED_ROWS = 24
"""Up to which pieces of a weight take OpenBLAS's AVX-512 cores less time than the whole: 0.4 of it for 9 rows, 0.75 for
24."""

TURNED_ROWS = 512
"""Up to which those cores take less time for weight times columns than for rows times weight: 0.65 to 0.8 of it for 16
rows, 0.87 to 0.95 for 64, 0.97 for 500. What comes out then lies column by column."""

KERNEL_ROWS = 4
"""Rows that the kernels of OpenBLAS's AVX2 cores multiply at once. What is no multiple of it takes longer than the next
multiple: one or two rows a tenth longer than four, three rows half as long again."""

LARGE_WEIGHT = 500_000
"""Numbers of a weight from which on filling rows up to such a multiple costs less than it saves, and so do reading
layers that lie apart and turning a product (`TURNED_ROWS`)."""


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
def openblas_core() -> str:
    """The core whose kernels OpenBLAS runs, in its own words; "" where the BLAS is another. One that MLX itself was
    linked with, as by conda, shows only where it is preloaded."""
    try:
        core_name = ctypes.CDLL(None).openblas_get_corename
    except (AttributeError, OSError):
        return ""
    core_name.restype = ctypes.c_char_p
    return core_name().decode()


def _multiplies_unpacked() -> bool:
    """Whether the BLAS has kernels for small matrices, which copy nothing: those of OpenBLAS's AVX-512 cores."""
    return openblas_core() in ("SkylakeX", "Cooperlake", "SapphireRapids")


def _fills_rows() -> bool:
    """Whether rows are better filled up to a multiple of `KERNEL_ROWS`. Zen's kernels are Haswell's."""
    return openblas_core() in ("Haswell", "Zen")


def multiplied(x: mx.array, weight: mx.array, onto: mx.array | None = None) -> mx.array:
    """x @ weight for x (N, n_in) and weight (n_in, n_out); (N, n_out), added to `onto` (N, n_out) or (n_out,) if given.

    A few rows are filled up with themselves where a large product takes less time so, and cut off again.
    """
    if not _is_filled(x, weight):
        return mx.matmul(x, weight) if onto is None else mx.addmm(onto, x, weight)
    y = mx.matmul(_filled(x), weight)[: x.shape[0]]
    return y if onto is None else onto + y


def multiplied_by_each(x: mx.array, weights: mx.array) -> list[mx.array]:
    """`multiplied` for weights (n, n_in, n_out): n of (N, n_out), each without gaps."""
    n, _, n_out = weights.shape
    if not _is_filled(x, weights):
        return list(mx.split(mx.matmul(x, weights).reshape(-1, n_out), n))
    filled = _filled(x, n)
    y, n_rows, n_filled = mx.matmul(filled, weights).reshape(-1, n_out), x.shape[0], filled.shape[-2]
    cuts = [start + end for start in range(0, n * n_filled, n_filled) for end in (n_rows, n_filled)]
    return list(mx.split(y, cuts[:-1]))[::2]


def _is_filled(x: mx.array, weight: mx.array) -> bool:
    n_rows = x.shape[0]
    return n_rows % KERNEL_ROWS > 0 and n_rows < FEW_ROWS and _is_large(x, weight) and _fills_rows()


def _is_large(x: mx.array, weight: mx.array) -> bool:
    """Whether it is a BLAS's product, and of so large a weight that it pays to help it."""
    return weight.size >= LARGE_WEIGHT and x.dtype == mx.float32 and on_cpu()


def _filled(x: mx.array, *n: int) -> mx.array:
    """A few rows x (N, n_in), filled up with themselves to a multiple of `KERNEL_ROWS`; a single one `n` times."""
    n_rows, n_in = x.shape
    if n_rows == 1:
        return mx.broadcast_to(x, (*n, KERNEL_ROWS, n_in))
    return mx.concatenate([x, x[: -n_rows % KERNEL_ROWS]])


class Factor:
    """What rows are multiplied by: `factor(x)` is x @ weight.T for weight (n_out, n_in) float32.

    A BLAS packs a large matrix before it multiplies, which for few rows takes three times as long as reading it. So
    where some kernels do not and the weight lies row by row, few rows are multiplied by pieces of it that are small
    enough for them. Sums are taken in another order then. GPUs, other types and many rows see the whole, as does all
    where weights lie column by column (`lies_by_inputs`). What comes out of many rows may lie so too.
    """

    __slots__ = ("_few_rows", "_pieces", "_size", "_weight", "_whole")

    def __init__(self, weight: mx.array):
        self._weight, self._whole, self._size = weight, weight.T, weight.size
        self._pieces: dict[int, mx.array] = {}
        self._few_rows = 0 if lies_by_inputs() else UNPACKED_ROWS if _multiplies_unpacked() else FEW_ROWS
        mx.eval(self._whole)

    def __call__(self, x: mx.array, onto: mx.array | None = None) -> mx.array:
        """x (N, n_in); (N, n_out), added to `onto` (N, n_out) or (n_out,) if given."""
        return times(x, self.operand(x.shape[0], x.dtype), onto)

    def operand(self, n_rows: int, dtype: mx.Dtype) -> mx.array:
        """What `times` multiplies rows x (n_rows, n_in) by: (n_in, n_out), or pieces of it."""
        if n_rows * self._size <= SMALL_PRODUCT or n_rows > self._few_rows or dtype != mx.float32 or not on_cpu():
            return self._whole
        if n_rows not in self._pieces:
            self._pieces[n_rows] = self._cut(n_rows)
        return self._pieces[n_rows]

    def _cut(self, n_rows: int) -> mx.array:
        """(number of pieces, n_in, rows of the weight per piece): as few pieces as are small enough."""
        n_out, n_in = self._weight.shape
        at_most = max(1, SMALL_PRODUCT // (n_rows * n_in))
        n = n_out // next(size for size in range(min(at_most, n_out), 0, -1) if n_out % size == 0)
        pieces = self._weight.reshape(n, n_out // n, n_in).swapaxes(1, 2)
        mx.eval(pieces)
        return pieces


def times(x: mx.array, operand: mx.array, onto: mx.array | None = None) -> mx.array:
    """What a `Factor` makes of x, by its operand for so many rows."""
    if operand.ndim == 2:
        if not _is_turned(x, operand):
            return multiplied(x, operand, onto)
        y = mx.matmul(operand.T, x.T).T
        return y if onto is None else onto + y
    # Not a product that broadcasts: it would copy a single row for each piece. As a batch, else it has no gradient.
    n_rows, y = x.shape[0], mx.gather_mm(x[None], operand, *_once_for_each(operand.shape[0]))
    y = (y if n_rows == 1 else y.swapaxes(0, 1)).reshape(n_rows, -1)
    return y if onto is None else onto + y


def _is_turned(x: mx.array, weight: mx.array) -> bool:
    """Whether x @ weight takes less time as (weight.T @ x.T).T."""
    return 1 < x.shape[0] <= TURNED_ROWS and _is_large(x, weight) and _multiplies_unpacked()


@cache
def _once_for_each(n_pieces: int) -> tuple[mx.array, mx.array]:
    """Indices, each (n_pieces,): the rows, again and again, and every piece. Evaluated, as another thread has no stream
    to make them on."""
    indices = mx.zeros(n_pieces, mx.uint32), mx.arange(n_pieces, dtype=mx.uint32)
    mx.eval(indices)
    return indices
