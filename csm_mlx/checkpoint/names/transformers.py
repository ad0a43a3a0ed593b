"""The layout of Hugging Face transformers (`CsmForConditionalGeneration.save_pretrained`, `unsloth/csm-1b`).

Its rotary positions turn the two halves of a head; ours turn adjacent pairs: query and key rows are put back.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import mlx.core as mx

from csm_mlx.checkpoint.names.heads import map_heads
from csm_mlx.checkpoint.read import Tensor
from csm_mlx.config import CsmConfig, Llama3Rope, MimiConfig, TransformerConfig
from csm_mlx.errors import CheckpointError, ConfigError

CODEC_PREFIX = "codec_model."

_BACKBONE_TABLE = "backbone_model.embed_tokens.embed_audio_tokens.weight"
_DEPTH_TABLE = "depth_decoder.model.embed_tokens.weight"
_PLAIN = {
    "embed_text_tokens.weight": "text_embeddings.weight",
    "lm_head.weight": "codebook0_head.weight",
    "backbone_model.norm.weight": "backbone.norm.weight",
    "depth_decoder.model.norm.weight": "depth_decoder.norm.weight",
    "depth_decoder.model.inputs_embeds_projector.weight": "projection.weight",
    "depth_decoder.codebooks_head.weight": "audio_head",
    _BACKBONE_TABLE: "audio_embeddings.weight",
    _DEPTH_TABLE: "audio_embeddings.weight",
}
_STACKS = {"backbone_model": "backbone", "depth_decoder.model": "depth_decoder"}

_CSM_DEFAULTS: dict[str, Any] = {
    "num_codebooks": 32,
    "vocab_size": 2051,
    "text_vocab_size": 128256,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
}
_DEPTH_DEFAULTS: dict[str, Any] = {
    "num_codebooks": 32,
    "vocab_size": 2051,
    "backbone_hidden_size": 2048,
    "hidden_size": 1024,
    "intermediate_size": 8192,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
}
"""What transformers assumes for fields that a config.json leaves out (`configuration_csm.py`, 5.23)."""


def is_layout(names: set[str]) -> bool:
    return "embed_text_tokens.weight" in names or any(name.startswith("backbone_model.") for name in names)


def unpermuted(tensor: Tensor, head_dim: int) -> Tensor:
    """Rows of a query or key projection from halves (0, 2, 4, … 1, 3, 5, …) back to adjacent pairs, head by head."""
    if len(tensor.shape) != 2 or tensor.shape[0] % head_dim:
        return tensor  # strict loading reports the shape
    rows, dim = tensor.shape

    def pairs(x: mx.array) -> mx.array:
        return x.reshape(rows // head_dim, 2, head_dim // 2, dim).swapaxes(1, 2).reshape(rows, dim)

    return tensor.changed(pairs, tensor.shape)


def map_csm(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """Canonical names and layouts of all tensors but the codec's."""
    head_dims = {"backbone_model": _head_dim(_backbone(config)), "depth_decoder.model": _head_dim(_depth(config))}
    out: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name.startswith(CODEC_PREFIX) or name.endswith("rotary_emb.inv_freq"):
            continue
        if name in _PLAIN:
            out[_PLAIN[name]] = tensor
        elif match := re.fullmatch(r"(backbone_model|depth_decoder\.model)\.(layers\.\d+\..+)", name):
            stack, rest = match.groups()
            rotary = re.search(r"\.self_attn\.[qk]_proj\.weight$", rest)
            out[f"{_STACKS[stack]}.{rest}"] = unpermuted(tensor, head_dims[stack]) if rotary else tensor
        else:
            out[name] = tensor
    if _BACKBONE_TABLE in tensors and _DEPTH_TABLE in tensors:
        out["audio_embeddings.weight"] = _tied(tensors[_DEPTH_TABLE], tensors[_BACKBONE_TABLE])
    return map_heads(out)


def _tied(first: Tensor, second: Tensor) -> Tensor:
    """The one table that both aliases hold; reading it checks that they agree."""

    def read(start: int, stop: int) -> mx.array:
        x = first.read(start, stop)
        if first.shape != second.shape or not mx.array_equal(x, second.read(start, stop)).item():
            raise CheckpointError(
                f"{first.name!r} and {second.name!r} differ, expected one audio table for the backbone and the depth "
                "decoder (tie_codebooks_embeddings); save the model again with the two tied"
            )
        return x

    return replace(first, read=read)


def map_config(tensors: Mapping[str, Tensor], config: Mapping[str, Any], codec: MimiConfig) -> CsmConfig:  # noqa: ARG001
    """Ours from a `CsmConfig` of transformers. `ConfigError` for what clashes or what this package cannot run."""
    backbone, depth = _backbone(config), _depth(config)
    for name, ours, theirs in (
        ("num_codebooks", backbone["num_codebooks"], depth["num_codebooks"]),
        ("vocab_size", backbone["vocab_size"], depth["vocab_size"]),
        ("hidden_size", backbone["hidden_size"], depth["backbone_hidden_size"]),
    ):
        if ours != theirs:
            field = "backbone_hidden_size" if name == "hidden_size" else name
            raise ConfigError(f"config.json says {name} {ours}, but depth_decoder_config.{field} {theirs}")
    if config.get("tie_codebooks_embeddings") is False:
        raise ConfigError("config.json says tie_codebooks_embeddings false, expected true: CSM has one audio table")
    if config.get("codebook_eos_token_id", 0) != 0:
        raise ConfigError(f"config.json says codebook_eos_token_id {config['codebook_eos_token_id']}, expected 0")
    return CsmConfig(
        backbone=_stack(backbone, "config.json"),
        depth=_stack(depth, "depth_decoder_config"),
        text_vocab_size=backbone["text_vocab_size"],
        audio_vocab_size=backbone["vocab_size"],
        codebook_size=codec.codebook_size,
        n_codebooks=backbone["num_codebooks"],
        max_positions=backbone["max_position_embeddings"],
    )


def _backbone(config: Mapping[str, Any]) -> dict[str, Any]:
    return with_defaults(config, _CSM_DEFAULTS, "config.json")


def _depth(config: Mapping[str, Any]) -> dict[str, Any]:
    depth = config.get("depth_decoder_config") or {}
    if not isinstance(depth, Mapping):
        raise ConfigError(f"config.json says depth_decoder_config {depth!r:.60}, expected an object")
    return with_defaults(depth, _DEPTH_DEFAULTS, "depth_decoder_config")


def with_defaults(config: Mapping[str, Any], defaults: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A foreign config with its gaps filled. `ConfigError` for a number that is none, or not above 0."""
    given = {name: value for name, value in config.items() if value is not None}
    for name, default in (*defaults.items(), ("head_dim", 1)):
        value = given.get(name, default)
        kinds = (int, float) if isinstance(default, float) else (type(default),)
        if type(value) not in kinds or (not isinstance(value, list) and not value > 0):
            raise ConfigError(f"{where} says {name} {value!r:.60}, expected a {kinds[0].__name__} like {default!r}")
    return dict(defaults) | given


def _head_dim(config: Mapping[str, Any]) -> int:
    return config.get("head_dim", config["hidden_size"] // config["num_attention_heads"])


def _stack(config: Mapping[str, Any], where: str) -> TransformerConfig:
    for name, wanted in (("hidden_act", "silu"), ("attention_bias", False), ("mlp_bias", False)):
        if config.get(name, wanted) != wanted:
            raise ConfigError(f"{where} says {name} {config[name]!r}, expected {wanted!r}: this package runs no other")
    base, scaling = rope(config, where, default_base=500_000.0)
    return TransformerConfig(
        dim=config["hidden_size"],
        n_layers=config["num_hidden_layers"],
        n_heads=config["num_attention_heads"],
        n_kv_heads=config["num_key_value_heads"],
        head_dim=_head_dim(config),
        ffn_dim=config["intermediate_size"],
        norm="rms",
        norm_eps=float(config["rms_norm_eps"]),
        mlp="swiglu",
        layer_scale=False,
        final_norm=True,
        rope_base=base,
        rope_scaling=scaling,
    )


def rope(config: Mapping[str, Any], where: str, *, default_base: float) -> tuple[float, Llama3Rope | None]:
    """(base, scaling) from `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling` (4)."""
    new, old = config.get("rope_parameters") or {}, config.get("rope_scaling") or {}
    if not (isinstance(new, Mapping) and isinstance(old, Mapping)):
        raise ConfigError(f"{where} has rope_parameters or rope_scaling that are no objects")
    old = dict(old)
    if "rope_theta" in config:
        old["rope_theta"] = config["rope_theta"]
    clashing = [name for name in new if name in old and new[name] != old[name]]
    if clashing:
        name = clashing[0]
        raise ConfigError(
            f"{where} says {name} {new[name]!r} in rope_parameters, but {old[name]!r} in rope_scaling or rope_theta"
        )
    values = old | dict(new)
    base = _number(values.get("rope_theta", default_base), "rope_theta", where)
    kind = values.get("rope_type", values.get("type", "default"))
    if kind == "default":
        return base, None
    if kind != "llama3":
        raise ConfigError(f"{where} says rope_type {kind!r}, expected 'llama3' or 'default'")
    fields = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    missing = [name for name in fields if name not in values]
    if missing:
        raise ConfigError(f"{where} has rope_type 'llama3' without {', '.join(missing)}")
    factor, low, high, original = (_number(values[name], name, where) for name in fields)
    return base, Llama3Rope(
        factor=factor, low_freq_factor=low, high_freq_factor=high, original_max_positions=int(original)
    )


def _number(value: Any, name: str, where: str) -> float:
    if type(value) not in (int, float):
        raise ConfigError(f"{where} says {name} {value!r:.60}, expected a number")
    return float(value)
