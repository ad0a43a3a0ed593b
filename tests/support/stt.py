"""Small speech-to-text checkpoints that never were on disk: random ones, and ones whose words are known."""

from collections.abc import Collection, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from support.models import mimi_config, random_mimi
from support.moshi import GREEDY, random_moshi, stt_config
from support.moshi import spm_tokenizer as tokenizer

from csm_mlx.config import MoshiConfig
from csm_mlx.generate.transcribe import Stt
from csm_mlx.models.mimi import Mimi
from csm_mlx.models.moshi import MoshiModel
from csm_mlx.stored import MoshiCheckpointConfig, SttConfig

DELAY_FRAMES = 6
RATE_HZ = 12.5
FRAME_SIZE = 1920
MARK, PAD = 0, 3


@cache
def codec() -> Mimi:
    return random_mimi(mimi_config(n_codebooks=8))


@cache
def silent_codes() -> frozenset[int]:
    """What the codec's first codebook makes of silence, be it the first or the last."""
    codes, _ = codec().encode(mx.zeros((1, 60 * FRAME_SIZE, 1)), n_codebooks=1)
    return frozenset(np.array(codes).ravel().tolist())


def config(**changes: Any) -> MoshiConfig:
    """Of codes and text that the codec and the tokenizer of the others here have."""
    n_ids = tokenizer().vocab_size
    values: dict[str, Any] = {"codebook_size": 61, "text_vocab_size": n_ids, "text_head_size": n_ids}
    return stt_config(**(values | changes))


def stt_of(model: MoshiModel, stt: SttConfig | None = None, mimi: Mimi | None = None) -> Stt:
    """With a codec, by default a small random one."""
    mimi = mimi or codec()
    config = MoshiCheckpointConfig(
        moshi=model.config,
        codec=mimi.config,
        text_sampling=GREEDY,
        audio_sampling=GREEDY,
        stt=stt or SttConfig(delay_s=DELAY_FRAMES / RATE_HZ),
    )
    return Stt(model, mimi, tokenizer(), config, Path("random"))


def random_stt(stt: SttConfig | None = None, **changes: Any) -> Stt:
    """Writes nonsense: some words of several pieces, with marks and pads between them."""
    return stt_of(with_words(random_moshi(config(**changes))), stt)


def with_words(model: MoshiModel, strength: float = 2.2) -> MoshiModel:
    """A random model whose text has pads and marks, as those of real ones."""
    factors = mx.ones((model.config.text_head_size, 1))
    factors[mx.array([MARK, PAD])] = strength
    model.text_head.weight = model.text_head.weight * factors
    return model


def scripted_stt(
    script: Mapping[int, int],
    stt: SttConfig | None = None,
    *,
    delay_frames: int = DELAY_FRAMES,
    mimi: Mimi | None = None,
    pauses: Collection[int] = (),
) -> Stt:
    """Writes `script[code]`, an id, `delay_frames` after it has heard the code in its first codebook; pads otherwise.

    Its blocks add nothing, and its embeddings and its heads are tables.

    mimi: its codec, by default a small random one. pauses: codes in which it hears that nobody speaks, as late.
    """
    size, n = (mimi or codec()).config.codebook_size, 4 if mimi is None else mimi.config.n_codebooks
    dim = 32 * -(-(size + 2) // 32)
    temporal = replace(config().temporal, dim=dim, head_dim=dim // 4)
    c = config(temporal=temporal, codebook_size=size, n_codebooks=n, delays=(0, *[delay_frames] * n))
    model, table = random_moshi(c), np.zeros((n, size + 1, dim), np.float32)
    for layer in model.temporal.layers:
        for linear in (layer.self_attn.o_proj, layer.mlp.down_proj):
            linear.weight = mx.zeros_like(linear.weight)
    model.temporal.norm.weight = mx.ones_like(model.temporal.norm["weight"])
    model.text_embeddings.weight = mx.zeros_like(model.text_embeddings.weight)
    table[0, :, : size + 1] = np.eye(size + 1)
    table[0, list(pauses), size + 1] = 1.0
    head = np.zeros((c.text_head_size, dim), np.float32)
    for code in range(size + 1):
        head[script.get(code, PAD), code] = 1.0
    model.audio_embeddings.weight, model.text_head.weight = mx.array(table.reshape(-1, dim)), mx.array(head)
    for extra in model.extra_heads:
        extra.weight = mx.zeros_like(extra.weight).at[0, size + 1].add(1.0)
    mx.eval(model.parameters())  # here: another thread may use it
    return stt_of(model, stt or SttConfig(delay_s=delay_frames / RATE_HZ), mimi)


def spoken(*words: str) -> tuple[dict[int, int], np.ndarray]:
    """A script, and codes (n_frames, 4) that it makes these words of: two pads, a mark and the word's ids, each."""
    ids = [token for word in words for token in (PAD, PAD, MARK, *tokenizer().encode(" " + word.strip()))]
    free = (code for code in range(1, codec().config.codebook_size) if code not in silent_codes())
    codes = {token: next(free) for token in dict.fromkeys(ids)}
    frames = np.zeros((len(ids), 4), np.int32)
    frames[:, 0] = [codes[token] for token in ids]
    return {code: token for token, code in codes.items()}, frames


def noise(seconds: float, seed: int = 0) -> np.ndarray:
    """Sound whose codes change from frame to frame: (n_samples,) float32 at 24 kHz."""
    rng = np.random.default_rng(seed)
    n = round(seconds * 24_000)
    loudness = np.repeat(rng.uniform(0, 0.5, -(-n // 2400)), 2400)[:n]
    return (rng.normal(size=n) * loudness).clip(-1, 1).astype(np.float32)


def with_timing(stt: Stt, **changes: float) -> Stt:
    """The same with another delay or prefix."""
    assert stt.config.stt is not None
    return replace(stt, config=replace(stt.config, stt=replace(stt.config.stt, **changes)))
