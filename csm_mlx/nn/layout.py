"""How a parameter lies in memory, without a second copy of it."""

import mlx.core as mx


def laid_out(x: mx.array, *axes: int) -> mx.array:
    """x, evaluated and equal in shape and values, whose `transpose(*axes)` is contiguous and so costs nothing."""
    inverse = sorted(range(len(axes)), key=axes.__getitem__)
    contiguous = mx.contiguous(x.transpose(*axes))
    mx.eval(contiguous)
    return contiguous.transpose(*inverse)
