"""A step in a masked cache, compiled once, is the step that it is without: at every position, in every type."""

import gc
import weakref

import mlx.core as mx
import pytest
from support.models import largest, llama, mimi_transformer

from csm_mlx.nn.cache import CacheState
from csm_mlx.nn.transformer import FEW_SLOTS, MASKED_SLOTS, Transformer

N_POSITIONS = 9


def stepped(transformer: Transformer, rows: mx.array, n_slots: int) -> tuple[mx.array, CacheState]:
    """Rows (B, T, dim), two at first, then one by one."""
    batch, n_steps, dim = rows.shape
    state, outputs = transformer.make_state(batch, rows.dtype, n_slots), []
    y, state = transformer.rows(rows[:, :2].reshape(2 * batch, dim), 2, state, last_only=True)
    outputs.append(y)
    for i in range(2, n_steps):
        y, state = transformer.rows(rows[:, i], 1, state)
        outputs.append(y)
    return mx.stack(outputs, axis=1), state


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(mx.float32, 1e-5), (mx.float16, 2e-2), (mx.bfloat16, 1e-1)], ids=["f32", "f16", "bf16"]
)
@pytest.mark.parametrize("changes", [{}, {"rope_base": None, "rope_scaling": None}], ids=["rotated", "without"])
def test_a_compiled_step_is_the_step(dtype: mx.Dtype, tolerance: float, batch: int, changes: dict) -> None:
    transformer = Transformer(llama(64, **changes))
    transformer.set_dtype(dtype)
    rows = mx.random.normal((batch, N_POSITIONS, 64)).astype(dtype)
    expected, expected_state = stepped(transformer, rows, N_POSITIONS)
    transformer.prepare()
    large, _ = stepped(transformer, rows, MASKED_SLOTS + 1)  # too large to be compiled
    for n_slots in (N_POSITIONS, FEW_SLOTS, FEW_SLOTS + 1, MASKED_SLOTS):
        found, state = stepped(transformer, rows, n_slots)
        assert found.dtype == dtype
        assert largest((found - expected).astype(mx.float32)) < tolerance
        assert largest((found - large).astype(mx.float32)) < tolerance
        assert state["offset"] == expected_state["offset"] == N_POSITIONS
        for name in ("keys", "values"):
            for ours, theirs in zip(state[name], expected_state[name], strict=True):
                assert largest((ours[:, :, :N_POSITIONS] - theirs).astype(mx.float32)) < tolerance


def test_an_old_state_is_still_what_it_was() -> None:
    transformer, rows = Transformer(llama(64)), mx.random.normal((1, N_POSITIONS, 64))
    transformer.prepare()
    _, kept = stepped(transformer, rows[:, :4], N_POSITIONS)
    row, others = rows[:, 4], rows[:, 5]
    first = transformer.rows(row, 1, kept)[0]
    mx.eval(transformer.rows(others, 1, kept)[0])
    assert mx.array_equal(transformer.rows(row, 1, kept)[0], first)


def test_other_weights_are_noticed() -> None:
    transformer, other, rows = Transformer(llama(64)), Transformer(llama(64)), mx.random.normal((1, N_POSITIONS, 64))
    transformer.prepare()
    before, _ = stepped(transformer, rows, N_POSITIONS)
    transformer.layers[1].mlp.down_proj.weight = other.layers[1].mlp.down_proj.weight
    after, _ = stepped(transformer, rows, N_POSITIONS)
    assert largest(after - before) > 1e-2
    transformer.prepare()
    assert largest(stepped(transformer, rows, N_POSITIONS)[0] - after) < 1e-5
    transformer.norm.weight = mx.full((64,), 2.0)
    assert largest(stepped(transformer, rows, N_POSITIONS)[0] - 2 * after) < 1e-4


def test_other_weights_of_a_ring_are_noticed_half_way() -> None:
    """Each that a block has of its own, between two frames of a stream that goes on."""
    mx.random.seed(5)
    frames, config = mx.random.normal((2, 2, 64)), mimi_transformer(64, window=FEW_SLOTS - 2)
    prepared, plain = Transformer(config), Transformer(config)
    plain.update(prepared.parameters())
    for name in ("input_layernorm.weight", "post_attention_layernorm.bias", "attention_scale", "mlp_scale"):
        found = []
        for transformer in (prepared, plain):
            if transformer is prepared:
                transformer.prepare()
            state = transformer.make_state(1, mx.float32, FEW_SLOTS)
            first, state = transformer.rows(frames[0], 2, state)
            *path, last = name.split(".")
            owner = transformer.layers[1]
            for step in path:
                owner = owner[step]
            owner[last] = owner[last] + 1.0
            found.append((first, transformer.rows(frames[1], 2, state)[0]))
        (first, second), (same_first, same_second) = found
        assert largest(first - same_first) < 1e-5
        assert largest(second - same_second) < 1e-5
        assert largest(second - plain.rows(frames[1], 2, plain.make_state(1, mx.float32, FEW_SLOTS))[0]) > 1e-4


@pytest.mark.parametrize(("dtype", "tolerance"), [(mx.float16, 2e-2), (mx.bfloat16, 1e-1)], ids=["f16", "bf16"])
def test_a_compiled_frame_in_a_ring_is_the_frame(dtype: mx.Dtype, tolerance: float) -> None:
    """In the types that are not counted in few operations, around the ring; float32: `test_norm`."""
    transformer, rows, found = Transformer(mimi_transformer(64, window=5)), mx.random.normal((3, 12, 64)), []
    transformer.set_dtype(dtype)
    for is_prepared in (False, True):
        if is_prepared:
            transformer.prepare()
        state, outputs = transformer.make_state(3, dtype, 6), []
        for start in range(0, 12, 2):
            y, state = transformer(rows[:, start : start + 2].astype(dtype), state)
            outputs.append(y)
        found.append(mx.concatenate(outputs, axis=1))
        assert found[-1].dtype == dtype
    assert largest((found[0] - found[1]).astype(mx.float32)) < tolerance


def test_other_weights_are_noticed_half_way() -> None:
    """Where a cache is no depth decoder's, whose sequences are a frame long: a conversation's goes on."""
    rows, found = mx.random.normal((2, 1, 64)), []
    for is_prepared in (True, False):
        mx.random.seed(5)
        transformer = Transformer(llama(64))
        if is_prepared:
            transformer.prepare()
        state = transformer.make_state(1, mx.float32, FEW_SLOTS + 1)
        first, state = transformer.rows(rows[0], 1, state)
        transformer.layers[1].mlp.down_proj.weight = 3 * transformer.layers[1].mlp.down_proj.weight
        found.append((first, *transformer.rows(rows[1], 1, state)))
    (first, second, _), (same_first, same_second, _) = found
    assert largest(first - same_first) < 1e-5
    assert largest(second - same_second) < 1e-5


def test_its_weights_go_with_the_last_reference() -> None:
    transformer = Transformer(llama(64))
    transformer.prepare()
    mx.eval(stepped(transformer, mx.random.normal((1, 4, 64)), N_POSITIONS)[0])
    gone = weakref.ref(transformer)
    gc.disable()
    try:
        del transformer
        assert gone() is None
    finally:
        gc.enable()
