"""Convolutions as products, the layout of their weights, and ELU without `exp`."""

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from support.models import largest

from csm_mlx.nn.conv import CausalConv1d, CausalConvTranspose1d
from csm_mlx.nn.elu import elu
from csm_mlx.nn.layout import laid_out
from csm_mlx.nn.quantizer import ResidualQuantizer


@pytest.mark.parametrize("in_channels", [1, 5, 24])
@pytest.mark.parametrize(("kernel_size", "stride", "dilation"), [(7, 1, 1), (1, 1, 1), (3, 1, 4), (8, 4, 1), (4, 4, 1)])
def test_convolution_equals_mlx_own(in_channels: int, kernel_size: int, stride: int, dilation: int) -> None:
    layer = CausalConv1d(in_channels, 6, kernel_size, stride=stride, dilation=dilation)
    layer.bias = mx.random.normal((6,))
    x = mx.random.normal((2, 20, in_channels))
    y, _ = layer(x, layer.make_state(2, mx.float32))
    n_past = (kernel_size - 1) * dilation + 1 - stride
    padded = mx.pad(x, [(0, 0), (n_past, 0), (0, 0)])
    assert largest(y - mx.conv1d(padded, layer.weight, stride=stride, dilation=dilation) - layer.bias) < 1e-5


def test_a_kernel_of_no_whole_strides_is_refused() -> None:
    with pytest.raises(ValueError, match="a kernel of 7 with stride 2 and dilation 1 is not supported"):
        CausalConv1d(3, 3, 7, stride=2)


LAYERS: dict[str, Callable[[], Any]] = {
    "products": lambda: CausalConv1d(20, 6, 3),
    "gathered": lambda: CausalConv1d(2, 6, 3),
    "transposed": lambda: CausalConvTranspose1d(20, 6, 2),
}


@pytest.mark.parametrize(("make", "in_channels"), [*zip(LAYERS.values(), (20, 2, 20), strict=True)], ids=[*LAYERS])
def test_new_weights_count_at_once(make: Callable[[], Any], in_channels: int) -> None:
    layer = make()
    state = layer.make_state(1, mx.float32)
    x = mx.random.normal((1, 8, in_channels))
    before, _ = layer(x, state)
    weight = mx.array(np.array(layer.weight))
    layer.load_weights([("weight", 2 * weight), ("bias", layer.bias)])
    after, _ = layer(x, state)
    assert largest(after - 2 * before) < 1e-5
    assert mx.array_equal(layer.weight, 2 * weight)


def test_new_codebooks_count_at_once() -> None:
    quantizer = ResidualQuantizer(dim=12, codebook_dim=5, codebook_size=20, n_codebooks=3)
    x = mx.random.normal((1, 30, 12))
    codes = quantizer.encode(x, 3)
    centroids = mx.array(np.array(quantizer.codebooks))
    quantizer.update({"codebooks": centroids[:, ::-1]})
    assert mx.array_equal(quantizer.encode(x, 3), 19 - codes)
    chosen = mx.stack([centroids[k][codes[..., k]] for k in range(3)]).sum(0)
    assert largest(quantizer.decode(19 - codes) - chosen @ quantizer.output_proj.weight.T) < 1e-5


def test_a_layout_is_no_second_copy() -> None:
    x = mx.random.normal((64, 32, 128))
    mx.eval(x)
    before, values = mx.get_active_memory(), np.array(x)
    x = laid_out(x, 1, 2, 0)
    view = mx.contiguous(x.transpose(1, 2, 0))
    mx.eval(x, view)
    assert mx.get_active_memory() - before < 1000
    assert np.array_equal(np.array(x), values)


def test_elu_by_its_definition() -> None:
    x = np.concatenate([-np.logspace(-8, 5.9, 3000), np.linspace(-20, 20, 3000), [0.0]]).astype(np.float32)
    expected = np.where(x > 0, x, np.expm1(x.astype(np.float64)))
    assert np.abs(np.array(elu(mx.array(x))) - expected).max() < 3e-7
