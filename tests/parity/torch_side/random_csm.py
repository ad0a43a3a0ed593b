"""CSM checkpoints with random weights, as `save_pretrained` writes them, at several sets of dimensions."""

# pyright: reportMissingImports=false
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from random_mimi import randomize
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import CsmConfig, CsmForConditionalGeneration

BACKBONE_ROPE = {  # csm-1b's numbers, as transformers spells them for the two transformers
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 32.0,
    "low_freq_factor": 0.125,
    "high_freq_factor": 0.5,
    "original_max_position_embeddings": 1024,
}
DEPTH_ROPE = BACKBONE_ROPE | {
    "low_freq_factor": 0.001953125,
    "high_freq_factor": 0.0078125,
    "original_max_position_embeddings": 16,
}
N_BYTE_TOKENS = 256


def small_codec(**changes: Any) -> dict[str, Any]:
    small: dict[str, Any] = {
        "num_filters": 4,
        "hidden_size": 64,
        "upsample_groups": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "intermediate_size": 128,
        "codebook_dim": 32,
        "vector_quantization_hidden_dimension": 32,
        "sliding_window": 20,
    }
    return {"model_type": "mimi"} | small | changes


def _case(n_codebooks: int, codebook_size: int, **parts: dict[str, Any]) -> dict[str, Any]:
    shared = {"num_codebooks": n_codebooks, "vocab_size": codebook_size + 3}
    depth_defaults = {"max_position_embeddings": n_codebooks + 1, "rope_parameters": DEPTH_ROPE}
    return {
        **shared,
        "text_vocab_size": 300,
        "codebook_pad_token_id": codebook_size + 2,
        "rope_parameters": BACKBONE_ROPE,
        **parts["backbone"],
        "depth_decoder_config": depth_defaults
        | shared
        | {"backbone_hidden_size": parts["backbone"]["hidden_size"]}
        | parts["depth"],
        "codec_config": small_codec(num_quantizers=n_codebooks, codebook_size=codebook_size, **parts.get("codec", {})),
    }


def _sizes(hidden: int, ffn: int, layers: int, heads: int, kv_heads: int, **more: Any) -> dict[str, Any]:
    return {
        "hidden_size": hidden,
        "intermediate_size": ffn,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        **more,
    }


CASES: dict[str, dict[str, Any]] = {
    # csm-1b made narrow: its head dimensions, codebooks, vocabulary and rotary numbers
    "narrow-1b": _case(32, 2048, backbone=_sizes(256, 512, 3, 4, 1), depth=_sizes(256, 384, 2, 2, 1)),
    # the fewest codebooks, no grouped heads, plain rotary positions, a codec with other ratios
    "two-codebooks": _case(
        2,
        64,
        backbone=_sizes(96, 200, 2, 3, 3, rope_parameters={"rope_type": "default", "rope_theta": 10_000.0}),
        depth=_sizes(64, 160, 1, 4, 4, rope_parameters={"rope_type": "default", "rope_theta": 500_000.0}),
        codec={"upsampling_ratios": [8, 5, 4, 2], "num_filters": 6},
    ),
    # heads wider than the model divided by their number, a deep depth decoder wider than the backbone, and a codec
    # with every other number changed
    "odd-shapes": _case(
        9,
        512,
        backbone=_sizes(160, 416, 2, 6, 3, head_dim=48, rms_norm_eps=1e-6),
        depth=_sizes(192, 320, 5, 4, 2, head_dim=32),
        codec={
            "num_residual_layers": 2,
            "kernel_size": 5,
            "last_kernel_size": 5,
            "compress": 4,
            "num_filters": 8,
            "num_semantic_quantizers": 2,
            "head_dim": 32,
        },
    ),
}
# as small as it goes: what tests/golden commits
CASES["golden"] = _case(
    5,
    32,
    backbone=_sizes(48, 96, 2, 4, 2, head_dim=16),
    depth=_sizes(32, 64, 2, 2, 1, head_dim=24),
    codec={"num_filters": 2, "hidden_size": 32, "upsample_groups": 32, "intermediate_size": 64}
    | {"codebook_dim": 16, "vector_quantization_hidden_dimension": 16},
)
CASES["csm-1b"] = {  # the true dimensions are transformers' own defaults
    "rope_parameters": BACKBONE_ROPE,
    "depth_decoder_config": {"rope_parameters": DEPTH_ROPE},
    "codec_config": {"model_type": "mimi"},
}
SEEDS = {"narrow-1b": 2, "two-codebooks": 7, "odd-shapes": 4, "csm-1b": 5, "golden": 6}


def write_tokenizer(path: Path, first_special: int) -> dict[str, int]:
    """A byte-level BPE with Llama 3's special tokens from `first_special` on, and its post-processor (BOS alone)."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("t", "h"), ("th", "e"), ("Ġ", "the"), ("o", "u"), ("i", "n"), ("in", "g"), ("e", "r"), ("a", "n")]
    vocab = {token: i for i, token in enumerate([*alphabet, *(a + b for a, b in merges)])}
    specials = ("<|begin_of_text|>", "<|end_of_text|>", "<|AUDIO|>", "<|audio_eos|>")
    ids = {token: first_special + i for i, token in enumerate(specials)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab | ids, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(specials))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", first_special)]
    )
    tokenizer.save(str(path))
    return ids


@torch.no_grad()
def write_random_csm(name: str, folder: Path, training: np.ndarray, test: np.ndarray, attempt: int = 0) -> None:
    """The checkpoint of `CASES[name]`, its codec fitted to `training` for use on `test` (n,); attempt: another seed."""
    folder.mkdir(parents=True)
    ids = write_tokenizer(folder / "tokenizer.json", 128_000 if name == "csm-1b" else 280)
    special = {
        "bos_token_id": ids["<|begin_of_text|>"],
        "pad_token_id": ids["<|AUDIO|>"],
        "audio_token_id": ids["<|AUDIO|>"],
        "audio_eos_token_id": ids["<|audio_eos|>"],
    }
    model = CsmForConditionalGeneration(CsmConfig(**CASES[name], **special)).eval()
    generator = torch.Generator().manual_seed(SEEDS[name] + 100 * attempt)
    for parameter_name, p in model.named_parameters():
        if parameter_name.startswith("codec_model."):
            continue
        if "norm" in parameter_name:
            p.normal_(1.0, 0.1, generator=generator)
        elif "embed" in parameter_name and "projector" not in parameter_name:
            p.normal_(0.0, 0.5, generator=generator)
        else:
            fan_in = p.shape[1]  # of codebooks_head too, which is (K - 1, in, out)
            gain = 2.0 if "head" in parameter_name else 1.0
            p.normal_(0.0, gain * fan_in**-0.5, generator=generator)
    randomize(model.codec_model, training, test, SEEDS[name])
    if name == "golden":
        model.half().save_pretrained(folder)
        return
    model.save_pretrained(folder, max_shard_size="1GB" if name == "csm-1b" else "1MB")
    if not list(folder.glob("*.index.json")):
        raise SystemExit(f"{name} was meant to be written in shards: {json.dumps(sorted(map(str, folder.iterdir())))}")
