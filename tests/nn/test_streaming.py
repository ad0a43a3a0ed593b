"""The laws of everything that streams: chunked equals whole, no future, sessions apart, rows apart, bounded memory."""

from collections.abc import Callable
from typing import Any, NamedTuple

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten
from support.models import largest, llama, mimi_config, mimi_transformer, n_bytes, random_mimi

from csm_mlx.nn.conv import CausalConv1d, CausalConvTranspose1d, DepthwiseUpsample
from csm_mlx.nn.transformer import Transformer

N_STEPS = 360  # several windows, and past a transformer's block of 256
CHANNELS = 32


class Case(NamedTuple):
    run: Callable[[mx.array, Any], tuple[mx.array, Any]]
    make_state: Callable[[int], Any]
    stride: int
    """Input steps per smallest chunk."""
    make_input: Callable[[int, int], mx.array]


def features(batch: int, n_steps: int) -> mx.array:
    return mx.random.normal((batch, n_steps, CHANNELS))


def _layer(layer, stride: int = 1, **state_options) -> Case:
    return Case(layer, lambda batch: layer.make_state(batch, mx.float32, **state_options), stride, features)


def _conv_tail() -> CausalConvTranspose1d:
    layer = CausalConvTranspose1d(CHANNELS, 6, 5)
    layer.bias = mx.random.normal((6,))  # a bias added twice is the classic streaming bug
    return layer


def _scaled(config) -> Transformer:
    transformer = Transformer(config)
    for layer in transformer.layers:
        layer.attention_scale = mx.random.uniform(0.2, 0.8, (config.dim,))
        layer.mlp_scale = mx.random.uniform(0.2, 0.8, (config.dim,))
    return transformer


def _codec_case(part: str) -> Case:
    codec = random_mimi(mimi_config())
    if part == "decode":
        make = lambda batch, n: mx.random.randint(0, codec.config.codebook_size, (batch, n, 4))  # noqa: E731
        return Case(codec.decode, lambda batch: None, 1, make)  # noqa: ARG005
    frame = codec.config.frame_size
    make = lambda batch, n: 0.3 * mx.random.normal((batch, n // frame * frame, 1))  # noqa: E731
    return Case(codec.encode, lambda batch: None, frame, make)  # noqa: ARG005


CASES: dict[str, Callable[[], Case]] = {
    "conv": lambda: _layer(CausalConv1d(CHANNELS, 8, 7)),
    "conv 1x1": lambda: _layer(CausalConv1d(CHANNELS, 8, 1)),
    "conv dilated": lambda: _layer(CausalConv1d(CHANNELS, 8, 3, dilation=4)),
    "conv strided": lambda: _layer(CausalConv1d(CHANNELS, 8, 12, stride=6), stride=6),
    "conv edge-padded": lambda: _layer(CausalConv1d(CHANNELS, 8, 4, stride=2, edge_padding=True), stride=2),
    "transposed": lambda: _layer(_conv_tail()),
    "upsample": lambda: _layer(DepthwiseUpsample(CHANNELS, 2)),
    "transformer": lambda: _layer(Transformer(llama(CHANNELS)), n_positions=N_STEPS),
    "windowed transformer": lambda: _layer(_scaled(mimi_transformer(CHANNELS, window=10))),
    "codec encode": lambda: _codec_case("encode"),
    "codec decode": lambda: _codec_case("decode"),
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    mx.random.seed(7)
    return CASES[request.param]()


def whole_input(case: Case, batch: int = 1) -> mx.array:
    is_codec = case.stride > 100 or case.make_input is not features
    n_chunks = 96 if is_codec else N_STEPS // case.stride
    return case.make_input(batch, n_chunks * case.stride)


def chunked(case: Case, x: mx.array, n_chunks: int) -> mx.array:
    state, outputs, size = case.make_state(x.shape[0]), [], n_chunks * case.stride
    for start in range(0, x.shape[1], size):
        y, state = case.run(x[:, start : start + size], state)
        outputs.append(y)
        mx.eval(y, state)
    return mx.concatenate(outputs, axis=1)


def assert_same(a: mx.array, b: mx.array) -> None:
    assert a.shape == b.shape
    if a.dtype == mx.int32:
        assert mx.array_equal(a, b)
    else:
        assert largest(a - b) < 2e-5
        assert largest(a) > 1e-3  # a silent layer would keep every law


@pytest.mark.parametrize("n_chunks", [1, 2, 3, 5, 64])
def test_chunked_equals_whole(case: Case, n_chunks: int) -> None:
    x = whole_input(case)
    y, _ = case.run(x, case.make_state(1))
    assert_same(chunked(case, x, n_chunks), y)


def test_future_does_not_change_the_past(case: Case) -> None:
    x = whole_input(case)
    cut = x.shape[1] // case.stride // 2 * case.stride
    other = mx.concatenate([x[:, :cut], whole_input(case)[:, cut:]], axis=1)
    y, _ = case.run(x, case.make_state(1))
    z, _ = case.run(other, case.make_state(1))
    n_past = y.shape[1] * cut // x.shape[1]
    assert_same(y[:, :n_past], z[:, :n_past])
    assert not mx.array_equal(y[:, n_past:], z[:, n_past:])


def test_interleaved_sessions_equal_separate_ones(case: Case) -> None:
    inputs = [whole_input(case), whole_input(case)]
    states: list[Any] = [case.make_state(1), case.make_state(1)]
    outputs: list[list[mx.array]] = [[], []]
    size = 7 * case.stride
    for start in range(0, inputs[0].shape[1], size):
        for i in (0, 1):
            y, states[i] = case.run(inputs[i][:, start : start + size], states[i])
            outputs[i].append(y)
    for i in (0, 1):
        assert_same(mx.concatenate(outputs[i], axis=1), case.run(inputs[i], case.make_state(1))[0])


def test_batch_of_two_equals_two_singles(case: Case) -> None:
    x = whole_input(case, batch=2)
    y, _ = case.run(x, case.make_state(2))
    for i in (0, 1):
        assert_same(y[i : i + 1], case.run(x[i : i + 1], case.make_state(1))[0])


def test_state_is_bounded_and_old_states_stay_valid(case: Case) -> None:
    x = whole_input(case)
    size = 5 * case.stride
    y, first = case.run(x[:, :size], case.make_state(1))
    mx.eval(y, first)
    again, _ = case.run(x[:, size : 2 * size], first)
    state = first
    for start in range(size, x.shape[1] - size + 1, size):
        y, state = case.run(x[:, start : start + size], state)
        mx.eval(y, state)
    assert n_bytes(first) == n_bytes(state) > 0 or not tree_flatten(state)
    assert all(isinstance(a, mx.array | int) for _, a in tree_flatten(state))
    assert_same(case.run(x[:, size : 2 * size], first)[0], again)
