"""Whole checkpoints of Kyutai's language models, with codec and tokenizer, as its repositories hold them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from support import layouts
from support.moshi import (
    kyutai_config,
    moshi_config,
    random_moshi,
    share_norms,
    spm_tokenizer,
    stt_config,
    write_kyutai,
    write_spm,
)
from support.stt import MARK, PAD, with_words

from csm_mlx.checkpoint import files
from csm_mlx.models.moshi import MoshiModel

CODEC = replace(layouts.CONFIG.codec, ratios=(8, 6, 5, 4))
"""With Mimi's own frames of 80 ms."""
STT = {"audio_delay_seconds": 0.16, "audio_silence_prefix_seconds": 0.08}

CONDITIONS = {"description": ["very_bad", "very_good"]}
"""Of a Hibiki, which differs from a Moshi by them and by its sizes."""


def write_checkpoint(
    folder: Path, kind: str, layout: str = "torch", n_ids: int = 320, wordy: bool = False, **config: Any
) -> Path:
    """A checkpoint as Kyutai's repositories hold it, under their names; wordy: its text has pads, marks and letters,
    and depends on the sound."""
    text: dict[str, Any] = {"text_vocab_size": n_ids, "text_head_size": n_ids}
    if kind == "stt":
        model = random_moshi(stt_config(codebook_size=layouts.CONFIG.codec.codebook_size, **text))
    else:
        text |= {"conditions": CONDITIONS} if kind == "hibiki" else {}
        model = share_norms(random_moshi(moshi_config(codebook_size=layouts.CONFIG.codec.codebook_size, **text)))
    write_kyutai(_in_letters(with_words(model, 10.0)) if wordy else model, folder, layout)
    tiny = layouts.make_tiny(codec_config=CODEC)
    layouts.save(folder / files.MIMI_FILE, layouts.kyutai_mimi(_hearing(tiny) if wordy else tiny))
    write_spm(folder / "tokenizer_spm_32k_3.model")
    said: dict[str, Any] = kyutai_config(model.config) | {"tokenizer_name": "tokenizer_spm_32k_3.model"}
    said |= {"stt_config": STT} if kind == "stt" else {}
    layouts.write_json(folder / files.CONFIG, said | config)
    return folder


def _in_letters(model: MoshiModel) -> MoshiModel:
    """One that writes single letters: of bytes, some are spaces or end lines, and a longer piece would soon repeat."""
    vocabulary, n_ids = spm_tokenizer(), model.config.text_head_size
    pieces = [vocabulary.decode([token]) if token < vocabulary.vocab_size else "" for token in range(n_ids)]
    writes = [token in (MARK, PAD) or (len(p.strip()) == 1 and p.strip().isalpha()) for token, p in enumerate(pieces)]
    model.text_head.weight = model.text_head.weight * mx.array(writes)[:, None]
    return model


def _hearing(tiny: layouts.Tiny) -> layouts.Tiny:
    """With an encoder whose layers keep the loudness of what they hear: small weights hear their own biases."""
    codec = {}
    for name, w in tiny.codec.items():
        is_hearing = name.startswith(("encoder.", "downsample."))
        gain = 15 / np.sqrt(np.prod(w.shape[1:])) if w.ndim == 3 else 0
        codec[name] = w * np.float32(gain) if is_hearing else w
    return replace(tiny, codec=codec)
