"""What a single row takes on a CPU in fewer operations, and a prefill in fewer scores, is what it was."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from support.models import largest, llama, mimi_transformer

from csm_mlx.nn import attention
from csm_mlx.nn import transformer as module
from csm_mlx.nn.norm import LayerNorm, RMSNorm
from csm_mlx.nn.transformer import SwiGLU, Transformer


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
@pytest.mark.parametrize("dim", [16, 1024])
def test_a_normalized_row_is_mlx_own(dim: int, scale: float) -> None:
    norm, own = RMSNorm(dim, eps=1e-5), nn.RMSNorm(dim, eps=1e-5)
    for seed in range(3):  # another weight is noticed
        norm.weight = own.weight = mx.random.uniform(0.5, 1.5, (dim,), key=mx.random.key(seed))
        row, rows = scale * mx.random.normal((1, dim)), scale * mx.random.normal((2, dim))
        exact = np.array(row, np.float64)
        exact *= np.array(own.weight) / np.sqrt((exact**2).mean(-1, keepdims=True) + 1e-5)
        assert np.abs(np.array(norm(row)) - exact).max() < 2e-6
        assert mx.array_equal(norm(rows), own(rows))
        norm.prepare()


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
@pytest.mark.parametrize("dim", [15, 512])
def test_rows_normalized_by_products_are_exact(dim: int, scale: float) -> None:
    """As near to float64 as MLX's own; their mean is as large as they vary."""
    norm, own = LayerNorm(dim, eps=1e-5), nn.LayerNorm(dim, eps=1e-5)
    norm.weight = own.weight = mx.random.uniform(0.5, 1.5, (dim,))
    norm.bias = own.bias = mx.random.normal((dim,))
    rows = scale * (mx.random.normal((7, dim)) + 1)
    exact = np.array(rows, np.float64)
    exact -= exact.mean(-1, keepdims=True)
    exact *= np.array(own.weight) / np.sqrt((exact**2).mean(-1, keepdims=True) + 1e-5)
    exact += np.array(own.bias)
    assert np.abs(np.array(norm(rows)) - exact).max() < 3e-6
    assert mx.array_equal(norm(rows.astype(mx.bfloat16)), own(rows.astype(mx.bfloat16)))


@pytest.mark.parametrize(
    "changes", [{}, {"n_kv_heads": 2}, {"rope_base": None}], ids=["as Mimi's", "grouped heads", "no positions"]
)
def test_what_the_layers_of_a_ring_share_is_what_each_would_make(
    changes: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two streams, by steps of one, few and many positions, past the window and around the ring: prepared, where a few
    positions are one compiled piece, and not."""
    config = mimi_transformer(64, window=40, **{"n_heads": 4, "n_kv_heads": 4, "head_dim": 16} | changes)
    transformer, x = Transformer(config), mx.random.normal((2, 150, 64))
    found = []
    for way in ("shared", "prepared", "each"):
        if way == "prepared":
            transformer.prepare()
        elif way == "each":
            weights, transformer = transformer.parameters(), Transformer(config)
            transformer.update(weights)
            monkeypatch.setattr(module, "_in_few_operations", lambda at, *_: at)
        state, outputs, start = transformer.make_state(2, x.dtype, 40 + 30 - 1), [], 0
        for n in (1, 30, 2, 1, 29, 2, 2, 26, 2, 30, 25):
            y, state = transformer(x[:, start : start + n], state)
            last, _ = transformer(x[:, start : start + n], state, last_only=True)
            outputs += [y, last]
            start += n
        found.append([*outputs, *state["keys"], *state["values"]])
    assert start == 150
    for shared, prepared, theirs in zip(*found, strict=True):
        assert largest(shared - theirs) < 1e-5
        assert largest(prepared - theirs) < 1e-5


def test_gates_of_any_size_are_the_sigmoid_of_themselves() -> None:
    gates = [-1e30, -1000.0, -89.0, -88.0, -20.0, -1.0, -1e-6, 0.0, 1e-6, 1.0, 20.0, 88.0, 1000.0, 1e30]
    n = len(gates)
    block = SwiGLU(llama(n + 1, n_heads=1, n_kv_heads=1, ffn_dim=n))
    block.gate_proj.weight, block.down_proj.weight = mx.eye(n, n + 1), mx.eye(n + 1, n)
    block.up_proj.weight = mx.concatenate([mx.zeros((n, n)), mx.ones((n, 1))], axis=1)
    x, exact = mx.array([[*gates, 1.0]]), np.array(gates, np.float64)
    expected = [*(exact / (1 + np.exp(-np.maximum(exact, -700.0)))), 0.0]
    for _ in range(2):
        assert (np.abs(np.array(block(x))[0] - expected) / np.maximum(1.0, np.abs(expected))).max() < 1e-6
        block.prepare()


@pytest.mark.parametrize("scale", [1.0, 300.0], ids=["even", "one sees one"])
@pytest.mark.parametrize("heads", [{}, {"n_kv_heads": 4}], ids=["grouped", "single"])
def test_blocks_of_queries_see_what_all_at_once_see(heads: dict, scale: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """By MLX's own kernel, for which gradients are known, and by products, with and without a past."""
    transformer, x = Transformer(llama(64, **heads)), mx.random.normal((2, 150, 64))
    for layer in transformer.layers:
        layer.self_attn.q_proj.weight = scale * layer.self_attn.q_proj.weight
    found = []
    for block, is_training in ((1000, True), (64, True), (64, False), (7, True), (7, False)):
        monkeypatch.setattr(attention, "_QUERY_BLOCK", block)
        transformer.train(is_training)
        state = transformer.make_state(2, x.dtype, 200)
        first, state = transformer(x[:, :21], state)
        second, state = transformer(x[:, 21:], state)
        found.append(mx.concatenate([first, second], axis=1))
    assert bool(mx.isfinite(found[0]).all())
    for other in found[1:]:
        assert largest(other - found[0]) < 1e-6 * max(10.0, scale)  # scores are as exact as they are large


def test_many_scores_of_a_ring_are_what_few_are(monkeypatch: pytest.MonkeyPatch) -> None:
    transformer, x = Transformer(mimi_transformer(64, window=40)), mx.random.normal((2, 90, 64))
    transformer.eval()
    found = []
    for many in (0, 10**9):
        monkeypatch.setattr(attention, "_MANY_SCORES", many)
        state = transformer.make_state(2, x.dtype, 40 + 30 - 1)
        outputs = []
        for start in range(0, 90, 30):
            y, state = transformer(x[:, start : start + 30], state)
            outputs.append(y)
        found.append(mx.concatenate(outputs, axis=1))
    assert largest(found[0] - found[1]) < 1e-5


@pytest.mark.parametrize("changes", [{}, {"window": 40}, {"window": 40, "n_kv_heads": 4}, {"layer_scale": True}])
@pytest.mark.parametrize("n_steps", [1, 2, 70])
def test_the_last_row_alone_is_the_last_of_all(n_steps: int, changes: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK", 32)
    transformer, x = Transformer(llama(64, **changes)), mx.random.normal((2, n_steps, 64))
    n_positions = None if changes.get("window") else 100
    whole, state = transformer(x, transformer.make_state(2, x.dtype, n_positions))
    last, last_state = transformer(x, transformer.make_state(2, x.dtype, n_positions), last_only=True)
    assert last.shape == (2, 1, 64)
    assert largest(last - whole[:, -1:]) < 1e-5
    for ours, theirs in zip(last_state["keys"] + last_state["values"], state["keys"] + state["values"], strict=True):
        assert largest(ours - theirs) < 1e-5
