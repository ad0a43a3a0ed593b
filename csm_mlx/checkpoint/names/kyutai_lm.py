"""What all layouts of Kyutai's language models share: layers, tables, and the config.json that comes with them.

The layouts differ in the names around a layer and in how the depth decoder's sets of weights lie:
`kyutai_lm_torch.py` and `kyutai_lm_slices.py`.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import mlx.core as mx

from csm_mlx.checkpoint.names.heads import QUANTIZED_PARTS, rows_of
from csm_mlx.checkpoint.names.transformers import unpermuted
from csm_mlx.checkpoint.read import Tensor
from csm_mlx.config import MoshiConfig, SamplingConfig, TransformerConfig
from csm_mlx.errors import CheckpointError, ConfigError
from csm_mlx.stored import SttConfig

_PART = rf"({'|'.join(QUANTIZED_PARTS)})"
_NORMS = {"norm1": "input_layernorm", "norm2": "post_attention_layernorm"}
_PLAIN = {"text_emb": "text_embeddings", "text_linear": "text_head"}

MOSHIKO: dict[str, Any] = {
    "dim": 4096,
    "text_card": 32000,
    "n_q": 16,
    "dep_q": 8,
    "card": 2048,
    "num_heads": 32,
    "num_layers": 32,
    "context": 3000,
    "max_period": 10000,
    "gating": "silu",
    "norm": "rms_norm_f32",
    "positional_embedding": "rope",
    "depformer_dim": 1024,
    "depformer_num_heads": 16,
    "depformer_num_layers": 6,
    "depformer_multi_linear": True,
    "depformer_pos_emb": "none",
    "depformer_weights_per_step": True,
    "delays": [0, 0, 1, 1, 1, 1, 1, 1, 1, 0, 1, 1, 1, 1, 1, 1, 1],
}
"""What Kyutai's loader takes for files without a config.json, as Moshiko's and Moshika's are (its `_lm_kwargs`)."""

_SAMPLING: dict[str, Any] = {"temp": 0.8, "top_k": 250, "temp_text": 0.7, "top_k_text": 25}
_STT: dict[int, dict[str, Any]] = {
    8000: {"audio_delay_seconds": 0.5, "audio_silence_prefix_seconds": 0.0},
    4000: {"audio_delay_seconds": 2.5, "audio_silence_prefix_seconds": 1.0},
}
"""Of stt-1b-en_fr and stt-2.6b-en, known by their number of text ids."""

NORM_EPS = {"rms_norm_f32": 1e-8, "rms_norm": 1e-5}
_EXPECTED: dict[str, tuple[Any, ...]] = {
    "gating": ("silu",),
    "norm": tuple(NORM_EPS),
    "positional_embedding": ("rope", "rope_concat"),
    "causal": (True,),
    "layer_scale": (None,),
    "cross_attention": (False,),
    "norm_emb": (False,),
    "bias_proj": (False,),
    "demux_second_stream": (False,),
    "quantize": (False,),
    "lora": (False,),
}
"""Fields whose other values ask for parts that the model here does not have."""
_EXPECTED_DEPTH: dict[str, tuple[Any, ...]] = {
    "depformer_gating": ("silu",),
    "depformer_pos_emb": ("none",),
    "depformer_layer_scale": (None,),
    "depformer_norm": (None,),
}


class Heads(NamedTuple):
    """How a stack's rotated rows lie: `n` query heads of `dim`, `n_kv` key and value heads, in halves or in pairs."""

    n: int
    n_kv: int
    dim: int
    in_halves: bool


def temporal_heads(config: Mapping[str, Any]) -> Heads:
    n, dim = config["num_heads"], config["dim"]
    in_halves = config.get("positional_embedding", "rope") == "rope_concat"
    return Heads(n, n // config.get("kv_repeat", 1), dim // n, in_halves)


def depth_heads(config: Mapping[str, Any]) -> Heads:
    """The depth decoder takes from the temporal transformer what its config does not say."""
    n, dim = config.get("depformer_num_heads", config["num_heads"]), config["depformer_dim"]
    repeat = config.get("depformer_kv_repeat", config.get("kv_repeat", 1))
    return Heads(n, n // repeat, dim // n, in_halves=False)


def schedule(config: Mapping[str, Any]) -> tuple[int, ...]:
    """Which set of depth weights each generated codebook takes."""
    n = config["dep_q"]
    if not config.get("depformer_weights_per_step"):
        return (0,) * n
    given = config.get("depformer_weights_per_step_schedule")
    return tuple(given) if given else tuple(range(n))


def with_defaults(config: Mapping[str, Any]) -> dict[str, Any]:
    """`ConfigError` for what the model here does not have, and for a config without its sizes."""
    merged = dict(config) if "dim" in config else MOSHIKO | dict(config)
    merged = {"n_q": 8, "dep_q": 8, "max_period": 10000} | merged
    expected = _EXPECTED | (_EXPECTED_DEPTH if merged["dep_q"] else {})
    for name, values in expected.items():
        if name in merged and merged[name] not in values:
            raise ConfigError(
                f"config.json says {name} {merged[name]!r:.60}, csm-mlx knows {' and '.join(map(repr, values))} there"
            )
    needed = ["text_card", "card", "num_heads", "num_layers", "context", "delays"]
    needed += ["depformer_dim", "depformer_num_layers"] if merged["dep_q"] else []
    if missing := [name for name in needed if merged.get(name) is None]:
        raise ConfigError(f"config.json lacks {', '.join(missing)}; fetch the one that belongs to these weights")
    if merged["dep_q"] and merged.get("depformer_multi_linear") and not merged.get("depformer_weights_per_step"):
        raise ConfigError("config.json says depformer_multi_linear without depformer_weights_per_step, expected both")
    return merged


def conditions(config: Mapping[str, Any]) -> dict[str, list[str]]:
    """The values of each condition that is added to the temporal transformer's input, as Hibiki's `description`.

    `ConfigError` for conditions of another kind: Kyutai's text-to-speech has some.
    """
    found, given, fuser = {}, config.get("conditioners") or {}, config.get("fuser") or {}
    for name, conditioner in given.items():
        table = conditioner.get("lut") if conditioner.get("type") == "lut" else None
        values = table.get("possible_values") if table and table.get("tokenizer") == "noop" else None
        if not values or name not in fuser.get("sum", ()):
            raise ConfigError(
                f"config.json says the condition {name!r} is {conditioner!r:.60}, csm-mlx knows only tables (lut) of "
                "named values that are added (fuser: sum)"
            )
        found[name] = list(values)
    return found


def map_conditions(
    tensors: Mapping[str, Tensor], config: Mapping[str, Any]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Each condition's values as they are added, (n, dim), and the other tensors."""
    out, rest = {}, dict(tensors)
    for name, values in conditions(config).items():
        place, n = f"condition_provider.conditioners.{name}", len(values)
        table, projection = rest.get(f"{place}.embed.weight"), rest.get(f"{place}.output_proj.weight")
        if table is None or projection is None or table.shape[0] < n:
            continue  # strict loading reports them
        for part in ("embed.weight", "output_proj.weight", "learnt_padding"):
            rest.pop(f"{place}.{part}", None)  # the padding stands for no value, and here there is one

        def added(x: mx.array, n: int = n, projection: Tensor = projection) -> mx.array:
            return x[:n] @ projection.load().astype(mx.float32).T

        out[f"conditions.{name}.weight"] = table.as_float32(added, (n, projection.shape[0]))
    return out, rest


def map_config(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> MoshiConfig:
    """Of Kyutai's config.json and canonical tensors.

    The width of a gated layer is the tensors': Kyutai's own packages derive it by different rules (PyTorch takes 21/8
    of the width where the config says 4, MLX 11/4, and two thirds of the config's number elsewhere).
    """
    c = with_defaults(config)
    has_depth = c["dep_q"] > 0
    temporal = _stack(tensors, "temporal", c, temporal_heads(c), c["num_layers"])
    depth = None
    if has_depth:
        depth = _stack(tensors, "depth_decoders.0", c, depth_heads(c), c["depformer_num_layers"])
        depth = replace(depth, final_norm=False, rope_base=None)
    rank = c.get("depformer_low_rank_embeddings")
    return MoshiConfig(
        temporal=replace(temporal, window=c["context"]),
        depth=depth,
        text_vocab_size=c["text_card"],
        text_head_size=c.get("text_card_out") or c["text_card"],
        codebook_size=c["card"],
        n_codebooks=c["n_q"],
        n_generated=c["dep_q"],
        delays=tuple(c["delays"]),
        depth_schedule=schedule(c),
        depth_shares_input=has_depth and not c.get("depformer_multi_linear"),
        depth_embedding_rank=rank if has_depth else None,
        n_extra_heads=c.get("extra_heads_num_heads", 0),
        extra_head_size=c.get("extra_heads_dim", 6),
        conditions=conditions(c),
        text_pad_id=c.get("existing_text_padding_id", 3),
        text_word_id=c.get("existing_text_end_padding_id", 0),
    )


def map_sampling(config: Mapping[str, Any], *, speaks: bool) -> tuple[SamplingConfig, SamplingConfig]:
    """Of text and of codes: what `lm_gen_config` says, else what `LMGen` takes, and for a model that only writes the
    likeliest text."""
    given = config.get("lm_gen_config") or {}
    default = _SAMPLING if speaks else _SAMPLING | {"temp_text": 0.0}
    values = default | {name: given[name] for name in default if given.get(name) is not None}
    text = SamplingConfig(temperature=float(values["temp_text"]), top_k=int(values["top_k_text"]))
    return text, SamplingConfig(temperature=float(values["temp"]), top_k=int(values["top_k"]))


def map_stt(config: Mapping[str, Any], lm: MoshiConfig) -> SttConfig:
    """When text comes; `ConfigError` where config.json does not say and the model is none that Kyutai released."""
    given = config.get("stt_config") or _STT.get(lm.text_vocab_size)
    if not isinstance(given, Mapping) or given.get("audio_delay_seconds") is None:
        raise ConfigError(
            "neither config.json (stt_config) nor, of transformers, preprocessor_config.json says audio_delay_seconds, "
            "by which text follows the sound; fetch the file that belongs to these weights"
        )
    return SttConfig(
        delay_s=float(given["audio_delay_seconds"]), prefix_s=float(given.get("audio_silence_prefix_seconds") or 0)
    )


def _stack(
    tensors: Mapping[str, Tensor], prefix: str, config: Mapping[str, Any], heads: Heads, n_layers: int
) -> TransformerConfig:
    name = f"{prefix}.layers.0.mlp.gate_proj.weight"
    ffn_dim = rows_of(tensors, name)
    if not ffn_dim:
        raise CheckpointError(f"the checkpoint lacks {name!r}; its file is incomplete: fetch it again")
    return TransformerConfig(
        dim=heads.n * heads.dim,
        n_layers=n_layers,
        n_heads=heads.n,
        n_kv_heads=heads.n_kv,
        head_dim=heads.dim,
        ffn_dim=ffn_dim,
        norm="rms",
        norm_eps=NORM_EPS[config.get("norm", "rms_norm_f32")],
        mlp="swiglu",
        layer_scale=False,
        final_norm=True,
        rope_base=float(config["max_period"]),
    )


def map_layer(layer: str, rest: str, tensor: Tensor, heads: Heads) -> dict[str, Tensor] | None:
    """One tensor of a layer, under the names that begin with `layer`; None for one that no layer has.

    rest: what follows the layer's number in the file, in PyTorch's, MLX's or candle's spelling.
    """
    if match := re.fullmatch(r"(norm[12])\.(?:alpha|weight)", rest):
        return {f"{layer}.{_NORMS[match[1]]}.weight": flat(tensor)}
    rest = re.sub(r"^self_attn\.(in|out)_proj(?:_weight|s\.0\.weight)$", r"self_attn.\1_proj.weight", rest)
    if match := re.fullmatch(rf"self_attn\.in_proj\.{_PART}", rest):
        return _split_qkv(f"{layer}.self_attn", match[1], tensor, heads)
    if match := re.fullmatch(rf"self_attn\.out_proj\.{_PART}", rest):
        return {f"{layer}.self_attn.o_proj.{match[1]}": tensor}
    if match := re.fullmatch(rf"gating\.linear_in\.{_PART}", rest):
        half = tensor.shape[0] // 2
        return {
            f"{layer}.mlp.gate_proj.{match[1]}": tensor.rows(0, half),
            f"{layer}.mlp.up_proj.{match[1]}": tensor.rows(half, tensor.shape[0]),
        }
    if match := re.fullmatch(rf"gating\.linear_out\.{_PART}", rest):
        return {f"{layer}.mlp.down_proj.{match[1]}": tensor}
    return None


def _split_qkv(attention: str, part: str, tensor: Tensor, heads: Heads) -> dict[str, Tensor] | None:
    """Rows are the queries', then the keys', then the values'; None where their number is another."""
    n_q, n_kv = heads.n * heads.dim, heads.n_kv * heads.dim
    if tensor.shape[0] != n_q + 2 * n_kv:
        return None
    q, k, v = tensor.rows(0, n_q), tensor.rows(n_q, n_q + n_kv), tensor.rows(n_q + n_kv, n_q + 2 * n_kv)
    if heads.in_halves:
        q, k = unpermuted(q, heads.dim), unpermuted(k, heads.dim)
    return {f"{attention}.{name}_proj.{part}": x for name, x in (("q", q), ("k", k), ("v", v))}


def map_shared(name: str, tensor: Tensor, config: Mapping[str, Any]) -> dict[str, Tensor] | None:
    """A tensor that lies alike in all layouts; None for another."""
    if match := re.fullmatch(rf"(text_emb|text_linear)\.{_PART}", name):
        return {f"{_PLAIN[match[1]]}.{match[2]}": tensor}
    if re.fullmatch(r"out_norm\.(alpha|weight)", name):
        return {"temporal.norm.weight": flat(tensor)}
    if re.fullmatch(rf"extra_heads\.\d+\.{_PART}", name):
        return {name: tensor}
    if match := re.fullmatch(r"transformer\.layers\.(\d+)\.(.+)", name):
        return map_layer(f"temporal.layers.{match[1]}", match[2], tensor, temporal_heads(config))
    return None


def map_audio_tables(tensors: Mapping[str, Tensor], prefix: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The codebooks' embeddings `{prefix}.N.…` as one table, and the other tensors."""
    rest, tables = {}, {}
    for name, tensor in tensors.items():
        if match := re.fullmatch(rf"{re.escape(prefix)}\.(\d+)\.{_PART}", name):
            tables.setdefault(match[2], {})[int(match[1])] = tensor
        else:
            rest[name] = tensor
    return {f"audio_embeddings.{part}": stacked([of[i] for i in sorted(of)]) for part, of in tables.items()}, rest


def flat(tensor: Tensor) -> Tensor:
    """A norm's (1, 1, dim) as (dim,)."""
    return tensor.changed(lambda x: x.reshape(-1), tensor.shape[-1:]) if len(tensor.shape) == 3 else tensor


def stacked(parts: list[Tensor]) -> Tensor:
    """The rows of several tensors one behind the other, still read when asked."""
    first = parts[0]
    for tensor in parts:
        if tensor.shape != first.shape or tensor.stored != first.stored:
            raise CheckpointError(
                f"{tensor.name!r} is {tensor.stored} {list(tensor.shape)} and {first.name!r} {first.stored} "
                f"{list(first.shape)}, expected the same; fetch the checkpoint again"
            )
    n = first.shape[0]

    def read(start: int, stop: int) -> mx.array:
        pieces = [parts[i].read(max(start - i * n, 0), min(stop - i * n, n)) for i in range(start // n, -(-stop // n))]
        return pieces[0] if len(pieces) == 1 else mx.concatenate(pieces)

    return replace(first, shape=(n * len(parts), *first.shape[1:]), read=read)


def map_quantization(tensors: Mapping[str, Tensor], config: MoshiConfig) -> dict[str, Any] | None:
    """Of canonical tensors: Kyutai writes no numbers, but a layer of known width shows them. None for float weights."""
    scales, packed = tensors.get("text_head.scales"), tensors.get("text_head.weight")
    if scales is None or packed is None:
        return None
    dim = config.temporal.dim
    found: dict[str, Any] = {
        "group_size": dim // scales.shape[1],
        "bits": packed.shape[1] * 32 // dim,
        "mode": "affine",
    }
    for name in sorted(tensors):
        path = name.removesuffix(".weight")
        if path != name and len(tensors[name].shape) == 2 and f"{path}.scales" not in tensors:
            found[path] = False
    return found
