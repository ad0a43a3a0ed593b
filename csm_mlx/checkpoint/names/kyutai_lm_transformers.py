"""Speech-to-text as transformers saves it (`KyutaiSpeechToTextForConditionalGeneration.save_pretrained`, the `-trfs`
repositories): one table of all tokens, the codec in the same files, no pause heads."""

import re
from collections.abc import Mapping
from typing import Any

from csm_mlx.checkpoint.names import kyutai_lm
from csm_mlx.checkpoint.names.transformers import CODEC_PREFIX, rope, unpermuted, with_defaults
from csm_mlx.checkpoint.read import Tensor
from csm_mlx.errors import ConfigError

_TABLE = "model.embed_tokens.embed_tokens.weight"
_HEAD = "lm_head.weight"
_LAYER = {
    "mlp.fc1": "gating.linear_in",
    "mlp.fc2": "gating.linear_out",
    "input_layernorm": "norm1",
    "post_attention_layernorm": "norm2",
}
"""What Kyutai calls the parts of a layer that differ in nothing but their names."""

_DEFAULTS: dict[str, Any] = {
    "codebook_vocab_size": 2049,
    "vocab_size": 4001,
    "hidden_size": 2048,
    "num_hidden_layers": 48,
    "num_attention_heads": 32,
    "sliding_window": 375,
    "ffn_dim": 11264,
    "rms_norm_eps": 1e-8,
    "num_codebooks": 32,
}
"""What transformers assumes for fields that a config.json leaves out (5.23)."""


def is_layout(names: set[str]) -> bool:
    return _TABLE in names


def as_kyutais(config: Mapping[str, Any], processor: Mapping[str, Any]) -> dict[str, Any]:
    """What Kyutai's config.json would say of it, and the codec's own part. `ConfigError` for what cannot be run.

    processor: the processor_config.json or preprocessor_config.json beside it, empty where there is none.
    """
    alike = config.get("num_attention_heads") or _DEFAULTS["num_attention_heads"]
    given = with_defaults(config, _DEFAULTS | {"num_key_value_heads": alike}, "config.json")
    dim, n_heads, n_kv_heads = given["hidden_size"], given["num_attention_heads"], given["num_key_value_heads"]
    norm = next((name for name, eps in kyutai_lm.NORM_EPS.items() if eps == given["rms_norm_eps"]), None)
    known = " or ".join(f"{eps:g}" for eps in kyutai_lm.NORM_EPS.values())
    activation, head_dim = given.get("hidden_act", "silu"), given.get("head_dim", dim // n_heads)
    is_tied = given.get("tie_word_embeddings")
    for name, value, is_right, expected in (
        ("hidden_act", activation, activation == "silu", "'silu'"),
        ("rms_norm_eps", given["rms_norm_eps"], norm is not None, known),
        ("num_attention_heads", n_heads, dim % n_heads == 0, f"a divisor of hidden_size {dim}"),
        ("num_key_value_heads", n_kv_heads, n_heads % n_kv_heads == 0, f"a divisor of {n_heads}, the number of heads"),
        ("head_dim", head_dim, head_dim == dim // n_heads, dim // n_heads),
        ("tie_word_embeddings", is_tied, not is_tied, "false"),
    ):
        if not is_right:
            raise ConfigError(f"config.json says {name} {value!r}, expected {expected}: this package runs no other")
    base, scaling = rope(given, "config.json", default_base=100_000.0)
    if scaling is not None:
        raise ConfigError("config.json says rope_type 'llama3', expected 'default': this package runs no other here")
    n = given["num_codebooks"]
    found: dict[str, Any] = {
        "dim": dim,
        "num_heads": n_heads,
        "kv_repeat": n_heads // n_kv_heads,
        "num_layers": given["num_hidden_layers"],
        "context": given["sliding_window"],
        "max_period": base,
        "norm": norm,
        "positional_embedding": "rope_concat",
        "text_card": given["vocab_size"] - 1,
        "card": given["codebook_vocab_size"] - 1,
        "n_q": n,
        "dep_q": 0,
        "delays": [0] * (1 + n),
        "codec_config": given.get("codec_config"),
    }
    said = processor.get("feature_extractor", processor)
    if isinstance(said, Mapping) and said.get("audio_delay_seconds") is not None:
        found["stt_config"] = {name: said.get(name) for name in ("audio_delay_seconds", "audio_silence_prefix_seconds")}
    return found


def map_lm(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """Canonical names and layouts of all tensors but the codec's. config: of `as_kyutais`."""
    heads = kyutai_lm.temporal_heads(config)
    out: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name.startswith(CODEC_PREFIX) or name.endswith("rotary_emb.inv_freq"):
            continue
        if match := re.fullmatch(r"model\.layers\.(\d+)\.(.+)", name):
            out |= _map_layer(f"temporal.layers.{match[1]}", match[2], tensor, heads) or {name: tensor}
        elif name == "model.norm.weight":
            out["temporal.norm.weight"] = tensor
        elif name == _TABLE:
            out |= _split_table(tensor, config)
        elif name == _HEAD and tensor.shape[0] == config["text_card"] + 1:
            out["text_head.weight"] = tensor.rows(0, config["text_card"])  # nobody says the token before the first
        else:
            out[name] = tensor
    return out


def _map_layer(layer: str, rest: str, tensor: Tensor, heads: kyutai_lm.Heads) -> dict[str, Tensor] | None:
    """One tensor of a layer; None for one that no layer has."""
    if match := re.fullmatch(r"self_attn\.([qkvo])_proj\.linear\.weight", rest):
        is_turned = match[1] in "qk"
        return {f"{layer}.self_attn.{match[1]}_proj.weight": unpermuted(tensor, heads.dim) if is_turned else tensor}
    part = rest.removesuffix(".weight")
    return kyutai_lm.map_layer(layer, f"{_LAYER[part]}.weight", tensor, heads) if part in _LAYER else None


def _split_table(tensor: Tensor, config: Mapping[str, Any]) -> dict[str, Tensor]:
    """Texts, then the codes of each codebook, then a row for nothing. `ConfigError` where the numbers disagree."""
    n_texts, n_codes = config["text_card"] + 1, config["n_q"] * (config["card"] + 1)
    if tensor.shape[0] != n_texts + n_codes + 1:
        raise ConfigError(
            f"config.json says {n_texts} texts and {n_codes} codes, and {_TABLE!r} has {tensor.shape[0]} rows, not one "
            "more than both; fetch the config.json that belongs to these weights"
        )
    return {
        "text_embeddings.weight": tensor.rows(0, n_texts),
        "audio_embeddings.weight": tensor.rows(n_texts, n_texts + n_codes),
    }
