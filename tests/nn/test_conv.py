"""Convolutions as products, the layout of their weights, and ELU and GELU by their definitions."""

import math
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from support.models import largest

from csm_mlx.nn.activations import elu, gelu
from csm_mlx.nn.conv import CausalConv1d, CausalConvTranspose1d
from csm_mlx.nn.layout import Factor, laid_out
from csm_mlx.nn.quantizer import ResidualQuantizer


@pytest.mark.usefixtures("order")
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


@pytest.mark.usefixtures("order")
@pytest.mark.parametrize("n_steps", [2, 40])
@pytest.mark.parametrize(("kernel_size", "stride"), [(3, 1), (8, 4)])
def test_a_wide_convolution_equals_mlx_own(kernel_size: int, stride: int, n_steps: int) -> None:
    layer = CausalConv1d(512, 512, kernel_size, stride=stride)
    layer.bias = mx.random.normal((512,))
    x = mx.random.normal((2, n_steps * stride, 512))
    state = layer.make_state(2, mx.float32)
    n_before = n_steps // 2 * stride
    first, state = layer(x[:, :n_before], state)
    second, _ = layer(x[:, n_before:], state)
    padded = mx.pad(x, [(0, 0), (kernel_size - stride, 0), (0, 0)])
    exact = [np.array(x, np.float64) for x in (padded, layer.weight, layer.bias)]
    windows = np.lib.stride_tricks.sliding_window_view(exact[0], kernel_size, axis=1)[:, ::stride]
    expected = np.einsum("btck,okc->bto", windows, exact[1], optimize=True) + exact[2]
    assert np.abs(np.array(mx.concatenate([first, second], axis=1)) - expected).max() < 1e-5


@pytest.mark.usefixtures("order")
@pytest.mark.parametrize("n_steps", [2, 10])
def test_a_wide_transposed_convolution_equals_mlx_own(n_steps: int) -> None:
    layer = CausalConvTranspose1d(512, 512, 4)
    layer.bias = mx.random.normal((512,))
    x = mx.random.normal((2, n_steps, 512))
    y, _ = layer(x, layer.make_state(2, mx.float32))
    expected = mx.conv_transpose1d(x, layer.weight.transpose(2, 1, 0), stride=4)[:, : 4 * n_steps] + layer.bias
    assert largest(y - expected) < 2e-5


@pytest.mark.usefixtures("order")
@pytest.mark.parametrize("n_rows", [1, 2, 3, 6, 7, 8, 9, 24, 25, 512, 513])
@pytest.mark.parametrize(("n_in", "n_out"), [(1024, 1026), (700, 2011), (96, 32)])
def test_a_factor_says_what_its_weight_says(n_rows: int, n_in: int, n_out: int) -> None:
    weight, x = mx.random.normal((n_out, n_in)) / n_in**0.5, mx.random.normal((n_rows, n_in))
    expected = np.array(x, np.float64) @ np.array(weight, np.float64).T
    for onto in (mx.random.normal((n_rows, n_out)), mx.random.normal((n_out,))):
        factor = Factor(weight)
        assert np.abs(np.array(factor(x)) - expected).max() < 1e-5
        assert np.abs(np.array(factor(x, onto)) - np.array(onto) - expected).max() < 1e-5


CORES = {"SkylakeX": "True False", "Haswell": "False True", "Zen": "False True"}
"""Whether its kernels need no packing, and whether they want rows filled up."""


@pytest.mark.parametrize("core", CORES)
def test_the_core_of_an_openblas_decides_how_weights_lie(core: str) -> None:
    library = next(Path("/usr/lib").glob("*/openblas-pthread/libopenblas.so.0"), None)
    if library is None or platform.machine() != "x86_64":
        pytest.skip("needs Debian's libopenblas0-pthread on x86-64")
    code = "from csm_mlx.nn import layout; print(layout._multiplies_unpacked(), layout._fills_rows())"
    env = os.environ | {"OPENBLAS_CORETYPE": core, "OPENBLAS_NUM_THREADS": "1"}
    for preload, expected in ((str(library), CORES[core]), ("", "False False")):
        command = [sys.executable, "-c", code]
        told = subprocess.run(command, env=env | {"LD_PRELOAD": preload}, capture_output=True, text=True, check=True)
        assert told.stdout == f"{expected}\n"


LAYERS: dict[str, Callable[[], Any]] = {
    "products": lambda: CausalConv1d(20, 6, 3),
    "gathered": lambda: CausalConv1d(2, 6, 3),
    "wide": lambda: CausalConv1d(20, 12_000, 3),
    "transposed": lambda: CausalConvTranspose1d(20, 6, 2),
    "wide transposed": lambda: CausalConvTranspose1d(20, 12_000, 2),
}


@pytest.mark.usefixtures("order")
@pytest.mark.parametrize(
    ("make", "in_channels"), [*zip(LAYERS.values(), (20, 2, 20, 20, 20), strict=True)], ids=[*LAYERS]
)
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


def test_gelu_by_its_definition() -> None:
    x = np.concatenate([np.linspace(-12, 12, 20_001), np.logspace(1, 6, 50), -np.logspace(1, 6, 50)]).astype(np.float32)
    expected = np.array([0.5 * v * (1 + math.erf(v / math.sqrt(2))) for v in x.tolist()])
    errors = np.abs(np.array(gelu(mx.array(x))) - expected)
    assert (errors / np.maximum(1, np.abs(expected))).max() < 6e-7
