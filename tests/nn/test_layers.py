"""What the layers compute, against definitions written out by hand."""

import math

import mlx.core as mx
import numpy as np
import pytest
from support.models import LLAMA3, largest, llama

from csm_mlx.errors import AudioError
from csm_mlx.nn import cache
from csm_mlx.nn.conv import CausalConv1d, CausalConvTranspose1d, DepthwiseUpsample
from csm_mlx.nn.quantizer import SplitQuantizer
from csm_mlx.nn.rope import rope_periods
from csm_mlx.nn.transformer import Transformer


def test_llama3_frequencies_are_the_published_ones() -> None:
    # Checkpoints of the curve for csm-1b, from shared/reference/csm.md §1: head_dim 64 and 128.
    periods = rope_periods(64, 500000.0, LLAMA3)
    expected = {
        14: 3.2114461e-3,
        15: 1.29054801e-3,
        16: 4.2955671e-4,
        17: 9.708287e-5,
        18: 1.9461639e-5,
        31: 9.4183065e-8,
    }
    for pair, frequency in expected.items():
        assert 1 / periods[pair] == pytest.approx(frequency, rel=1e-6)
    periods = rope_periods(128, 500000.0, LLAMA3)
    for pair, frequency in {29: 2.11840658e-3, 34: 9.708287e-5, 35: 2.389053e-5, 63: 7.6723147e-8}.items():
        assert 1 / periods[pair] == pytest.approx(frequency, rel=1e-6)


def test_transposed_convolution_equals_mlx_own() -> None:
    layer = CausalConvTranspose1d(6, 4, 5)
    layer.bias = mx.random.normal((4,))
    x = mx.random.normal((2, 9, 6))
    y, _ = layer(x, layer.make_state(2, mx.float32))
    whole = mx.conv_transpose1d(x, layer.weight.transpose(2, 1, 0), stride=5) + layer.bias
    assert largest(y - whole[:, : 9 * 5]) < 1e-5


def test_depthwise_upsample_equals_a_grouped_transposed_convolution() -> None:
    layer = DepthwiseUpsample(6, 2)
    x = mx.random.normal((1, 9, 6))
    y, _ = layer(x, layer.make_state(1, mx.float32))
    for c in range(6):
        one = mx.conv_transpose1d(x[:, :, c : c + 1], layer.weight[:, c].reshape(1, 4, 1), stride=2)
        assert largest(y[:, :, c : c + 1] - one[:, :18]) < 1e-5


def test_edge_padding_repeats_the_first_input() -> None:
    layer = CausalConv1d(3, 3, 4, stride=2, bias=False, edge_padding=True)
    x = mx.random.normal((1, 4, 3))
    y, _ = layer(x, layer.make_state(1, mx.float32))
    padded = mx.concatenate([x[:, :1], x[:, :1], x], axis=1)
    assert largest(y - mx.conv1d(padded, layer.weight, stride=2)) < 1e-6


def test_a_partial_stride_is_an_error() -> None:
    layer = CausalConv1d(3, 3, 8, stride=4)
    with pytest.raises(AudioError, match="given 6 steps, expected a multiple of 4"):
        layer(mx.zeros((1, 6, 3)), layer.make_state(1, mx.float32))


def test_quantizer_takes_the_nearest_centroid_of_what_is_left() -> None:
    mx.random.seed(3)
    quantizer = SplitQuantizer(dim=12, codebook_dim=5, codebook_size=20, n_codebooks=4, n_semantic=1)
    x = mx.random.normal((1, 30, 12))
    codes = np.array(quantizer.encode(x, 4))
    acoustic = quantizer.acoustic
    residual = np.array(acoustic.input_proj(x), dtype=np.float64)[0]  # both halves see the same latent
    for k in range(3):
        centroids = np.array(acoustic.codebooks[k], dtype=np.float64)
        distance = ((residual[:, None] - centroids[None]) ** 2).sum(-1)
        assert np.array_equal(codes[0, :, k + 1], distance.argmin(-1))
        residual = residual - centroids[codes[0, :, k + 1]]


@pytest.mark.parametrize("n", [1, 2, 4])
def test_fewer_codebooks_are_the_first_of_all(n: int) -> None:
    quantizer = SplitQuantizer(dim=12, codebook_dim=5, codebook_size=20, n_codebooks=4, n_semantic=1)
    x = mx.random.normal((1, 30, 12))
    assert mx.array_equal(quantizer.encode(x, n), quantizer.encode(x, 4)[..., :n])


def naive_attention(transformer: Transformer, x: np.ndarray, window: int | None) -> np.ndarray:
    """One attention sub-block by the textbook, in float64."""
    config, attention = transformer._config, transformer.layers[0].self_attn
    q, k, v = (np.array(getattr(attention, f"{n}_proj").weight, dtype=np.float64) for n in "qkv")
    n_steps, d = x.shape[0], config.head_dim
    assert config.rope_base is not None
    angles = np.arange(n_steps)[:, None] / rope_periods(d, config.rope_base, config.rope_scaling)

    def turned(y: np.ndarray) -> np.ndarray:
        pairs = y.reshape(n_steps, -1, d // 2, 2)
        z = (pairs[..., 0] + 1j * pairs[..., 1]) * np.exp(1j * angles)[:, None]
        return np.stack([z.real, z.imag], -1).reshape(n_steps, -1, d)

    queries, keys, values = turned(x @ q.T), turned(x @ k.T), (x @ v.T).reshape(n_steps, -1, d)
    out = np.zeros((n_steps, config.n_heads, d))
    for t in range(n_steps):
        first = 0 if window is None else max(0, t - window + 1)
        for h in range(config.n_heads):
            g = h * config.n_kv_heads // config.n_heads
            scores = keys[first : t + 1, g] @ queries[t, h] / math.sqrt(d)
            p = np.exp(scores - scores.max())
            out[t, h] = p @ values[first : t + 1, g] / p.sum()
    return out.reshape(n_steps, -1) @ np.array(attention.o_proj.weight, dtype=np.float64).T


@pytest.mark.parametrize("window", [None, 1, 7])
def test_attention_by_the_textbook(window: int | None) -> None:
    mx.random.seed(1)
    transformer = Transformer(llama(64, n_layers=1, window=window))
    x = mx.random.normal((1, 40, 64))
    state = transformer.make_state(1, mx.float32, None if window else 40)
    at = cache.step(state["offset"], 40, cache.capacity(state), window)
    y, _, _ = transformer.layers[0].self_attn(x[0], state["keys"][0], state["values"][0], at)
    assert np.abs(np.array(y) - naive_attention(transformer, np.array(x[0], np.float64), window)).max() < 1e-5


def test_a_rewound_cache_forgets_what_came_after() -> None:
    transformer = Transformer(llama(32))
    x = mx.random.normal((1, 20, 32))
    _, state = transformer(x[:, :12], transformer.make_state(1, mx.float32, 20))
    _, longer = transformer(x[:, 12:], state)
    y, _ = transformer(x[:, :4], cache.rewind(longer, 12))
    z, _ = transformer(x[:, :4], state)
    assert largest(y - z) < 1e-6
    grown, _ = transformer(x[:, :4], cache.grow(state, 64))
    assert largest(grown - z) < 1e-6


def test_a_ring_that_is_too_small_says_what_it_needs() -> None:
    with pytest.raises(ValueError, match="4 positions take a ring of 10 slots at least, not 9"):
        cache.step(0, 4, 9, window=7)
    with pytest.raises(ValueError, match="a ring of 5 slots has none for position 5"):
        cache.step(5, 1, 5, window=7)
