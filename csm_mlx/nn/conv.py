"""Causal convolutions over (B, T, C), the same code offline and streamed: the state is the past that they still need.

The arithmetic is that of EnCodec's and Mimi's `StreamableConv1d` and `StreamableConvTranspose1d`: all padding on the
left, transposed convolutions trimmed on the right.
"""

from typing import NoReturn

import mlx.core as mx
import mlx.nn as nn

from csm_mlx.errors import AudioError
from csm_mlx.nn.layout import Factor, laid_out, lies_by_inputs, multiplied

NARROW = 16
"""Channels below which the windows of a convolution are gathered for one product."""

WIDE = 200_000
"""In channels times out channels above which a layer is taken to see few steps, so that reading its weights is what
costs: those are one product, of a `Factor` where weights lie row by row."""

ConvState = dict[str, mx.array]
"""`past` (B, n, in_channels), the n inputs that the next output still sees, unless it sees none; `started`
() bool for an edge-padded convolution: false until the first input, which it repeats backwards."""


def _partial(n_steps: int, stride: int) -> NoReturn:
    raise AudioError(f"a streaming layer of stride {stride} was given {n_steps} steps, expected a multiple of {stride}")


class CausalConv1d(nn.Module):
    """Convolution that sees no future; T must be a multiple of `stride` and T / stride comes out.

    One matrix product per tap, a row being `stride` steps, each adding to what the taps before it made: no window is
    copied. A few channels are too narrow for that, and where there are very many, few steps meet large weights: there
    the windows are gathered for one product.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        stride: int = 1,
        dilation: int = 1,
        bias: bool = True,
        edge_padding: bool = False,
    ):
        super().__init__()
        if kernel_size % stride or (stride > 1 and dilation > 1):
            raise ValueError(f"a kernel of {kernel_size} with stride {stride} and dilation {dilation} is not supported")
        scale = (in_channels * kernel_size) ** -0.5
        self.weight = mx.random.uniform(-scale, scale, (out_channels, kernel_size, in_channels))
        if bias:
            self.bias = mx.zeros((out_channels,))
        self._bias = bias
        self._stride, self._dilation = stride, dilation
        self._n_past = (kernel_size // stride - 1) * dilation * stride
        self._edge_padding = edge_padding
        self._wide = in_channels * out_channels > WIDE
        self._gathers = self._wide or stride * in_channels < NARROW
        self._laid_out: mx.array | None = None
        self._factor: Factor | None = None
        self._taps: list[mx.array] = []

    def make_state(self, batch: int, dtype: mx.Dtype) -> ConvState:
        state: ConvState = {}
        if self._n_past:
            state["past"] = mx.zeros((batch, self._n_past, self.weight.shape[2]), dtype)
        if self._edge_padding:
            state["started"] = mx.array(False)
        return state

    def _lay_out(self) -> None:
        """Makes the weights a `Factor`, or a (stride * in_channels, out_channels) matrix per tap, or all of those
        below each other in one."""
        out_channels, kernel_size, in_channels = self.weight.shape
        self._factor = None
        if self._wide and not lies_by_inputs():
            self.weight = self._laid_out = laid_out(self.weight, 0, 1, 2)
            self._factor = Factor(self.weight.reshape(out_channels, -1))
            return
        self.weight = self._laid_out = laid_out(self.weight, 1, 2, 0)
        n_rows = kernel_size * in_channels if self._gathers else self._stride * in_channels
        self._taps = list(self.weight.transpose(1, 2, 0).reshape(-1, n_rows, out_channels))
        mx.eval(self._taps)

    def __call__(self, x: mx.array, state: ConvState, onto: mx.array | None = None) -> tuple[mx.array, ConvState]:
        """x (B, T, in_channels); (B, T / stride, out_channels), added to `onto` if given, and the state after it."""
        batch, n_steps, channels = x.shape
        if n_steps % self._stride:
            _partial(n_steps, self._stride)
        if self._laid_out is not self.weight:
            self._lay_out()
        new = ConvState()
        if self._n_past:
            past = state["past"]
            if self._edge_padding:
                past = mx.where(state["started"], past, x[:, :1])
                new["started"] = mx.array(True)
            x = mx.concatenate([past, x], axis=1)
            new["past"] = x[:, -self._n_past :]
        n_rows, width = n_steps // self._stride, self._stride * channels
        x = x.reshape(batch, -1, width)
        shifted = [x[:, i : i + n_rows] for i in range(0, x.shape[1] - n_rows + 1, self._dilation)]
        if self._gathers:
            rows = mx.concatenate(shifted, axis=-1).reshape(batch * n_rows, -1)
            y = multiplied(rows, self._taps[0]) if self._factor is None else self._factor(rows)
            y = y.reshape(batch, n_rows, -1)
            y = y if onto is None else onto + y
        else:
            y = shifted[0] @ self._taps[0] if onto is None else mx.addmm(onto, shifted[0], self._taps[0])
            for rows, tap in zip(shifted[1:], self._taps[1:], strict=True):
                y = mx.addmm(y, rows, tap)
        # Last: a product onto it would first spread it over all rows, in three times as long.
        return y + self.bias if self._bias else y, new


def _overlapped(y: mx.array) -> mx.array:
    """y (B, 1 + T, 2 * stride, C), what each input adds to its own and to the next stride of outputs, from the last
    input before them on; (B, T * stride, C)."""
    batch, n_steps, taps, channels = y.shape
    y = y[:, 1:, : taps // 2] + y[:, :-1, taps // 2 :]
    return y.reshape(batch, (n_steps - 1) * taps // 2, channels)


class CausalConvTranspose1d(nn.Module):
    """Transposed convolution of kernel 2 * stride: one matrix product and one overlap-add.

    MLX's own `conv_transpose1d` takes many times as long on its CPU backend. The state is the last input: that what it
    adds is computed once more costs less than to put it in front of all else.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        scale = in_channels**-0.5
        self.weight = mx.random.uniform(-scale, scale, (in_channels, 2 * stride, out_channels))
        self.bias = mx.zeros((out_channels,))
        self._wide = in_channels * out_channels > WIDE
        self._laid_out: mx.array | None = None
        self._factor: Factor | None = None

    def make_state(self, batch: int, dtype: mx.Dtype) -> ConvState:
        return {"past": mx.zeros((batch, 1, self.weight.shape[0]), dtype)}

    def _lay_out(self) -> None:
        if self._wide and not lies_by_inputs():
            self.weight = self._laid_out = laid_out(self.weight, 1, 2, 0)
            self._factor = Factor(self.weight.transpose(1, 2, 0).reshape(-1, self.weight.shape[0]))
        else:
            self._factor = None
            self.weight = self._laid_out = laid_out(self.weight, 0, 1, 2)

    def __call__(self, x: mx.array, state: ConvState) -> tuple[mx.array, ConvState]:
        """x (B, T, in_channels); (B, T * stride, out_channels) and the state after it."""
        in_channels, taps, out_channels = self.weight.shape
        if self._laid_out is not self.weight:
            self._lay_out()
        x = mx.concatenate([state["past"], x], axis=1)
        rows = x.reshape(-1, in_channels)
        if self._factor is not None:
            y = self._factor(rows)
        else:
            y = multiplied(rows, self.weight.reshape(in_channels, taps * out_channels))
        y = _overlapped(y.reshape(*x.shape[:2], taps, out_channels))
        return y + self.bias, {"past": x[:, -1:]}


class DepthwiseUpsample(nn.Module):
    """Depthwise transposed convolution of kernel 2 * stride without bias: a few multiplications per channel."""

    def __init__(self, channels: int, stride: int):
        super().__init__()
        self.weight = mx.random.uniform(-1, 1, (2 * stride, channels))

    def make_state(self, batch: int, dtype: mx.Dtype) -> ConvState:
        return {"past": mx.zeros((batch, 1, self.weight.shape[1]), dtype)}

    def __call__(self, x: mx.array, state: ConvState) -> tuple[mx.array, ConvState]:
        """x (B, T, channels); (B, T * stride, channels) and the state after it."""
        x = mx.concatenate([state["past"], x], axis=1)
        return _overlapped(x[:, :, None] * self.weight), {"past": x[:, -1:]}
