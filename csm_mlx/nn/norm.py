"""Root mean square normalization, in few operations where there is no kernel for it."""

from functools import cache

import mlx.core as mx
import mlx.nn as nn

from csm_mlx.nn.layout import on_cpu


class RMSNorm(nn.RMSNorm):
    """x / sqrt(mean(x²) + eps) * weight over the last axis.

    GPUs have a kernel for it. On the CPU MLX makes it of eleven operations; once prepared, a single row of float32, of
    which a frame normalizes hundreds, takes three, as a product sums its squares.
    """

    def __init__(self, dim: int, eps: float):
        super().__init__(dim, eps)
        self._eps, self._prepared = mx.array([[eps]]), (None, None)

    def prepare(self) -> None:
        """See `Transformer.prepare`."""
        weight = self["weight"]
        if not on_cpu() or weight.dtype != mx.float32:
            self._prepared = (None, None)
        elif self["_prepared"][0] is not weight:
            row = weight[None]
            mx.eval(row)
            self._prepared = (weight, row)

    def __call__(self, x: mx.array) -> mx.array:
        """x (…, dim); the same shape."""
        shape, (prepared, row) = x.shape, self["_prepared"]
        if prepared is not self["weight"] or shape[0] != 1 or len(shape) != 2 or x.dtype != mx.float32:
            return super().__call__(x)
        return _scaled(x, mx.addmm(self["_eps"], x, x.swapaxes(0, 1), alpha=1 / shape[1]), row)


@mx.compile
def _scaled(x: mx.array, variance: mx.array, weight: mx.array) -> mx.array:
    return x * mx.rsqrt(variance) * weight


class LayerNorm(nn.LayerNorm):
    """(x - mean(x)) / sqrt(variance(x) + eps) * weight + bias over the last axis.

    GPUs have a kernel for it. On the CPU MLX makes it of thirty operations, rows of float32 here take half as many, as
    products sum them.
    """

    def __init__(self, dim: int, eps: float):
        super().__init__(dim, eps=eps)
        self._eps, self._share = _constants(dim, eps)

    def __call__(self, x: mx.array) -> mx.array:
        """x (…, dim); the same shape."""
        if x.ndim != 2 or x.dtype != mx.float32 or not on_cpu():
            return super().__call__(x)
        mean = x @ self["_share"]
        # In two ways, so that a compiled piece makes either difference where it is used, and not one before both.
        deviation = mx.rsqrt(mx.addmm(self["_eps"], mx.square(mean - x), self["_share"]))
        return (x - mean) * deviation * self["weight"] + self["bias"]


@cache
def _constants(dim: int, eps: float) -> tuple[mx.array, mx.array]:
    """eps (1, 1), and what sums up a mean (dim, 1): the same arrays for all layers, so that a graph has them once.

    Evaluated, since another thread than this one has no stream to make them on.
    """
    arrays = mx.array([[eps]]), mx.array([[1 / dim]] * dim)
    mx.eval(arrays)
    return arrays
