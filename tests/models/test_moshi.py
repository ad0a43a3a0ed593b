"""Kyutai's language models as functions of arrays."""

import mlx.core as mx
import numpy as np
from support.models import llama
from support.moshi import moshi_config, random_moshi

from csm_mlx.config import MoshiConfig
from csm_mlx.models.moshi import MoshiModel
from csm_mlx.quantize import named_parameters

MOSHI = MoshiConfig(
    temporal=llama(
        4096, n_layers=32, n_heads=32, n_kv_heads=32, head_dim=128, ffn_dim=11264, rope_scaling=None, window=3000
    ),
    depth=llama(
        1024, n_layers=6, n_heads=16, n_kv_heads=16, head_dim=64, ffn_dim=2816, rope_base=None, rope_scaling=None,
        final_norm=False,
    ),
    text_vocab_size=32000,
    text_head_size=32000,
    codebook_size=2048,
    n_codebooks=16,
    n_generated=8,
    delays=(0, *(0, 1, 1, 1, 1, 1, 1, 1) * 2),
    depth_schedule=tuple(range(8)),
)  # fmt: skip
STT_1B = MoshiConfig(
    temporal=llama(
        2048, n_layers=16, n_heads=16, n_kv_heads=16, head_dim=128, ffn_dim=5632, rope_scaling=None, window=750
    ),
    text_vocab_size=8000,
    text_head_size=8000,
    codebook_size=2048,
    n_codebooks=32,
    delays=(0,) * 33,
)


def test_the_published_sizes_have_their_published_numbers_of_weights() -> None:
    """None is computed. They are those of Kyutai's PyTorch package, which has one pair of norms a depth layer
    where each set of depth weights has its own here."""
    own_norms = 7 * 6 * 2 * 1024
    assert sum(p.size for p in named_parameters(MoshiModel(MOSHI)).values()) == 7_687_729_152 + own_norms
    assert sum(p.size for p in named_parameters(MoshiModel(STT_1B)).values()) == 989_204_480


def test_teacher_forced_codes_equal_those_drawn_one_by_one() -> None:
    model = random_moshi()
    hidden = mx.random.normal((3, 64), key=mx.random.key(1))
    tokens = mx.array(np.random.default_rng(0).integers(0, 40, (3, 5)))
    logits = model.frame_logits(hidden, tokens)
    assert logits.shape == (3, 4, 40)
    for n in range(1, 5):
        other = tokens[:, :n]
        other = mx.concatenate([other, mx.zeros((3, 5 - n), tokens.dtype)], axis=1)
        # A code's logits see the text and the codes before it, and no later one.
        np.testing.assert_array_equal(np.array(model.frame_logits(hidden, other))[:, :n], np.array(logits)[:, :n])
    changed = mx.concatenate([(tokens[:, :1] + 1) % 40, tokens[:, 1:]], axis=1)
    assert (np.abs(np.array(model.frame_logits(hidden, changed) - logits)).max(axis=(0, 2)) > 1e-3).all()


def test_prepared_weights_say_the_same() -> None:
    model = random_moshi(moshi_config(depth_shares_input=True))
    tokens = mx.array(np.random.default_rng(0).integers(0, 40, (2, 7, 9)).astype(np.int32))

    def everything() -> list[np.ndarray]:
        hidden, _ = model(tokens, model.make_state(2, chunk_frames=7))
        rows = hidden.reshape(14, -1)
        return [
            np.array(x) for x in (hidden, model.text_logits(rows), model.frame_logits(rows, tokens.reshape(14, -1)))
        ]

    before = everything()
    model.prepare()
    for one, other in zip(before, everything(), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)


def test_depth_weights_differ_as_the_schedule_says() -> None:
    model = random_moshi(moshi_config(depth_schedule=(0, 1, 1, 0)))
    hidden, tokens = mx.random.normal((1, 64), key=mx.random.key(1)), mx.array([[1, 2, 3, 4]])
    before = np.array(model.frame_logits(hidden, tokens))
    for layer in model.depth_decoders[1].layers:
        layer.mlp.down_proj.weight = layer.mlp.down_proj.weight * 2
    moved = np.abs(np.array(model.frame_logits(hidden, tokens)) - before).max(axis=(0, 2)) > 0
    # The last codebook takes the first set again, and sees what the second one left in the cache.
    assert moved.tolist() == [False, True, True, True]
