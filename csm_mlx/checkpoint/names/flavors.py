"""Configs of the layouts that state little: sizes are read off the tensors, and heads, which no shape shows, off the
config's flavour (`llama-1B`), its explicit numbers, or a known model of the same sizes."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from csm_mlx.checkpoint.names.heads import n_layers, rows_of
from csm_mlx.checkpoint.read import Tensor
from csm_mlx.config import CsmConfig, Llama3Rope, MimiConfig, TransformerConfig
from csm_mlx.errors import CheckpointError, ConfigError

LLAMA3_ROPE = Llama3Rope(factor=32.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_positions=8192)
ROPE_BASE = 500_000.0
NORM_EPS = 1e-5
MAX_POSITIONS = 2048


class Flavor(NamedTuple):
    dim: int
    n_layers: int
    head_dim: int


FLAVORS = {
    "llama-1B": Flavor(2048, 16, 64),
    "llama-100M": Flavor(1024, 4, 128),
    "llama-3B": Flavor(3072, 28, 128),
    "llama-8B": Flavor(4096, 32, 128),
    "llama-300M": Flavor(1536, 8, 64),
}
"""Sesame's two (its `models.py`), Llama's larger ones, and the depth decoder of MisoTTS."""

_SPACED_SPEAKER = {"llama-300M"}
"""Depth decoders of models that were trained with a space after the speaker: MisoTTS."""


def infer_config(tensors: Mapping[str, Tensor], config: Mapping[str, Any], codec: MimiConfig) -> CsmConfig:
    """Of canonical tensors, quantized or not, and a foreign config. `ConfigError` says what is missing or clashes."""
    audio_rows = _require(tensors, "audio_embeddings.weight")
    n_codebooks = 1 + sum(name.startswith("audio_head.") and name.endswith(".weight") for name in tensors)
    if audio_rows % n_codebooks:
        raise ConfigError(
            f"audio_embeddings has {audio_rows} rows, expected a multiple of the {n_codebooks} codebooks with heads"
        )
    found = {
        "text_vocab_size": _require(tensors, "text_embeddings.weight"),
        "audio_vocab_size": audio_rows // n_codebooks,
        "audio_num_codebooks": n_codebooks,
    }
    for name, value in found.items():
        if config.get(name, value) != value:
            raise ConfigError(f"config.json says {name} {config[name]}, the tensors show {value}; one of them is wrong")
    depth_flavor = config.get("decoder_flavor")
    return CsmConfig(
        backbone=_stack(tensors, "backbone", config.get("backbone_flavor"), _numbers(config, "backbone", config)),
        depth=_stack(
            tensors, "depth_decoder", depth_flavor, _numbers(config, "decoder", config.get("depth_decoder_config"))
        ),
        text_vocab_size=found["text_vocab_size"],
        audio_vocab_size=found["audio_vocab_size"],
        codebook_size=codec.codebook_size,
        n_codebooks=n_codebooks,
        max_positions=MAX_POSITIONS,
        speaker_format="[{speaker}] " if depth_flavor in _SPACED_SPEAKER else "[{speaker}]",
    )


def _numbers(config: Mapping[str, Any], key: str, merged: Any) -> dict[str, Any]:
    """Explicit numbers: an object under `key`, or the transformers config that Sesame merged into its own."""
    own = config.get(key)
    numbers = dict(merged) if isinstance(merged, Mapping) else {}
    return numbers | (own if isinstance(own, dict) else {})


def _require(tensors: Mapping[str, Tensor], name: str) -> int:
    rows = rows_of(tensors, name)
    if not rows:
        raise CheckpointError(f"the checkpoint lacks {name!r}; its file is incomplete: fetch it again")
    return rows


def _stack(
    tensors: Mapping[str, Tensor], prefix: str, flavor: str | None, numbers: Mapping[str, Any]
) -> TransformerConfig:
    dim = _require(tensors, f"{prefix}.norm.weight")
    layers = n_layers(tensors, prefix)
    first = f"{prefix}.layers.0"
    q_rows = _require(tensors, f"{first}.self_attn.q_proj.weight")
    kv_rows = _require(tensors, f"{first}.self_attn.k_proj.weight")
    head_dim = _head_dim(prefix, Flavor(dim, layers, 0), flavor, numbers, q_rows)
    if q_rows % head_dim or kv_rows % head_dim:
        raise ConfigError(
            f"{prefix}: q_proj has {q_rows} rows and k_proj {kv_rows}, expected multiples of head_dim {head_dim}"
        )
    return TransformerConfig(
        dim=dim,
        n_layers=layers,
        n_heads=q_rows // head_dim,
        n_kv_heads=kv_rows // head_dim,
        head_dim=head_dim,
        ffn_dim=_require(tensors, f"{first}.mlp.gate_proj.weight"),
        norm="rms",
        norm_eps=float(numbers.get("norm_eps", numbers.get("rms_norm_eps", NORM_EPS))),
        mlp="swiglu",
        layer_scale=False,
        final_norm=True,
        rope_base=float(numbers.get("rope_base", ROPE_BASE)),
        rope_scaling=LLAMA3_ROPE,
    )


def _head_dim(prefix: str, seen: Flavor, flavor: str | None, numbers: Mapping[str, Any], q_rows: int) -> int:
    """The flavour's, else the config's, else that of a known model with these sizes."""
    if flavor in FLAVORS:
        known = FLAVORS[flavor]
        if known[:2] != seen[:2]:
            raise ConfigError(
                f"config.json says {prefix} is {flavor} ({known.n_layers} layers of {known.dim}), "
                f"the tensors show {seen.n_layers} layers of {seen.dim}; one of them is wrong"
            )
        return known.head_dim
    if isinstance(given := numbers.get("head_dim"), int) and given > 0:
        return given
    heads = numbers.get("num_heads", numbers.get("num_attention_heads"))
    if isinstance(heads, int) and heads > 0 and q_rows % heads == 0:
        return q_rows // heads
    matching = {known.head_dim for known in FLAVORS.values() if known[:2] == seen[:2]}
    if len(matching) == 1:
        return matching.pop()
    key = "backbone" if prefix == "backbone" else "decoder"
    raise ConfigError(
        f"cannot tell the {prefix}'s heads: {seen.n_layers} layers of {seen.dim} with {q_rows} query rows are no known "
        f'flavour ({", ".join(FLAVORS)}); write "{key}": {{"head_dim": N}} into config.json'
    )
