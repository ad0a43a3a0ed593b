"""Small random language models of Kyutai's kind, and their files as Kyutai writes them."""

import json
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_map
from support.models import llama, mimi_config, random_mimi

from csm_mlx.config import MoshiConfig, SamplingConfig
from csm_mlx.generate.duplex import AUDIO_SAMPLING, TEXT_SAMPLING, TokenSession
from csm_mlx.generate.moshi import Moshi
from csm_mlx.models.moshi import MoshiModel
from csm_mlx.stored import MoshiCheckpointConfig
from csm_mlx.tokenizer import SpmTokenizer

GREEDY = SamplingConfig(temperature=0.0)


def stt_config(**changes: Any) -> MoshiConfig:
    """Hears four codebooks, says nothing, guesses pauses."""
    values: dict[str, Any] = {"n_codebooks": 4, "delays": (0,) * 5, "n_extra_heads": 4}
    silent: dict[str, Any] = {"n_generated": 0, "depth": None, "depth_schedule": (), "depth_embedding_rank": None}
    return moshi_config(**(values | silent | changes))


def moshi_config(**changes: Any) -> MoshiConfig:
    """Says and hears four codebooks each, all but the first two frames late, with two sets of depth weights."""
    temporal: dict[str, Any] = {"rope_base": 10000.0, "rope_scaling": None, "norm_eps": 1e-8, "n_kv_heads": 4}
    values: dict[str, Any] = {
        "temporal": llama(64, window=9, **temporal),
        "depth": llama(32, n_heads=2, n_kv_heads=2, norm_eps=1e-8, final_norm=False, rope_base=None, rope_scaling=None),
        "text_vocab_size": 48,
        "text_head_size": 48,
        "codebook_size": 40,
        "n_codebooks": 8,
        "n_generated": 4,
        "delays": (0, 0, 2, 2, 2, 0, 2, 2, 2),
        "depth_schedule": (0, 1, 1, 1),
        "depth_embedding_rank": 32,
        "conditions": {},
    }
    return MoshiConfig(**(values | changes))


def random_moshi(config: MoshiConfig | None = None, seed: int = 0) -> MoshiModel:
    """Weights large enough that greedy tokens vary from frame to frame."""
    mx.random.seed(seed)
    model = MoshiModel(config or moshi_config())
    model.update(tree_map(lambda w: mx.random.normal(w.shape) * (2 / w.shape[-1] ** 0.5), model.parameters()))
    mx.eval(model.parameters())
    return model


@lru_cache(maxsize=1)
def spm_tokenizer() -> SpmTokenizer:
    with tempfile.TemporaryDirectory() as folder:
        return SpmTokenizer.from_file(write_spm(Path(folder) / "tokenizer.model"))


def spoken_moshi(**changes: Any) -> MoshiConfig:
    """`moshi_config` with the texts of `write_spm`; delays as Moshi's."""
    size = spm_tokenizer().vocab_size
    values: dict[str, Any] = {"text_vocab_size": size, "text_head_size": size, "delays": (0, *(0, 1, 1, 1) * 2)}
    return moshi_config(**(values | changes))


def hibiki_config() -> MoshiConfig:
    """As Hibiki 2B: 16 codebooks each, the later ones two frames late and with one set of depth weights, conditions."""
    return spoken_moshi(
        text_vocab_size=48000, text_head_size=48000, n_codebooks=32, n_generated=16, delays=(0, *(0, *(2,) * 15) * 2),
        depth_schedule=(*range(8), *(8,) * 8), conditions={"description": ["very_bad", "very_good"]},
    )  # fmt: skip


def random_conversation(config: MoshiConfig | None = None, seed: int = 0) -> Moshi:
    """A model, a codec and a tokenizer that never were on disk; its Mimi has the model's codes."""
    model = random_moshi(config or spoken_moshi(), seed)
    c = model.config
    n_codebooks = max(c.n_generated, c.n_heard)
    codec = random_mimi(mimi_config(codebook_size=c.codebook_size, n_codebooks=n_codebooks), seed + 1)
    for half in (codec.quantizer.semantic, codec.quantizer.acoustic):
        # As small as what random encoders make, and as loud as before: else the codes hardly change.
        half.codebooks = half.codebooks * 0.03
        half.output_proj.weight = half.output_proj.weight / 0.03
    stored = MoshiCheckpointConfig(
        moshi=c, codec=codec.config, text_sampling=TEXT_SAMPLING, audio_sampling=AUDIO_SAMPLING
    )
    return Moshi(model, codec, spm_tokenizer(), stored, Path("random"))


def random_frames(config: MoshiConfig, n_frames: int, batch: int = 1, seed: int = 0) -> np.ndarray:
    """What the other side says: (n_frames, batch, n_heard) codes."""
    return np.random.default_rng(seed).integers(0, config.codebook_size, (n_frames, batch, config.n_heard))


def greedy_session(model: MoshiModel, batch: int = 1, conditions: dict[str, str] | None = None) -> TokenSession:
    return TokenSession(model, batch=batch, text=GREEDY, audio=GREEDY, conditions=conditions)


def write_spm(path: Path, vocab_size: int = 300) -> Path:
    """A small sentencepiece model with bytes, as Kyutai's: 0 unknown, 1 begin, 2 end, 3 padding."""
    import io

    from sentencepiece import SentencePieceTrainer

    lines = ["The boat left the harbour before the sun was up.", "How are you today, my friend?"]
    lines += ["What is the capital of France?", "It is a quarter to four in the afternoon."]
    model = io.BytesIO()
    SentencePieceTrainer.Train(
        sentence_iterator=iter(lines * 20), model_writer=model, vocab_size=vocab_size, hard_vocab_limit=False,
        byte_fallback=True, unk_id=0, bos_id=1, eos_id=2, pad_id=3, minloglevel=2,
    )  # fmt: skip
    path.write_bytes(model.getvalue())
    return path


def kyutai_config(config: MoshiConfig) -> dict[str, Any]:
    """What Kyutai's config.json says of it."""
    t, d = config.temporal, config.depth
    found: dict[str, Any] = {
        "dim": t.dim,
        "num_heads": t.n_heads,
        "num_layers": t.n_layers,
        "hidden_scale": 4.125,
        "context": t.window,
        "max_period": int(t.rope_base or 0),
        "causal": True,
        "gating": "silu",
        "norm": "rms_norm_f32",
        "positional_embedding": "rope",
        "layer_scale": None,
        "text_card": config.text_vocab_size,
        "card": config.codebook_size,
        "n_q": config.n_codebooks,
        "dep_q": config.n_generated,
        "delays": list(config.delays),
        "extra_heads_num_heads": config.n_extra_heads,
        "conditioners": {name: _table(values, t.dim) for name, values in config.conditions.items()},
        "fuser": {"sum": list(config.conditions), "cross": [], "prepend": []},
        "depformer_dim_feedforward": None,
    }
    if d is not None:
        found |= {
            "depformer_dim": d.dim,
            "depformer_num_heads": d.n_heads,
            "depformer_num_layers": d.n_layers,
            "depformer_multi_linear": not config.depth_shares_input,
            "depformer_pos_emb": "none",
            "depformer_weights_per_step": True,
            "depformer_weights_per_step_schedule": list(config.depth_schedule),
            "depformer_low_rank_embeddings": config.depth_embedding_rank,
        }
    return found


def _table(values: list[str], dim: int) -> dict[str, Any]:
    return {"type": "lut", "lut": {"n_bins": 9, "dim": dim, "tokenizer": "noop", "possible_values": values}}


def write_kyutai(model: MoshiModel, folder: Path, layout: str) -> Path:
    """The model as Kyutai's `torch`, `mlx` or `candle` packages name it; `mlx-q4` quantizes it as theirs do. Shared
    norms, which Kyutai keeps once for all sets of depth weights, must be equal."""
    tensors = _temporal(model, layout)
    (_torch_depth if layout == "torch" else _slices)(model, tensors, layout)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(kyutai_config(model.config)))
    if layout == "mlx-q4":
        tensors = _quantized(tensors)
    mx.save_safetensors(str(folder / "model.safetensors"), tensors)
    return folder


def share_norms(model: MoshiModel) -> MoshiModel:
    """All sets of depth weights with the norms of the first, as Kyutai trains them."""
    first = model.depth_decoders[0]
    for decoder in model.depth_decoders[1:]:
        for layer, shared in zip(decoder.layers, first.layers, strict=True):
            for name in ("input_layernorm", "post_attention_layernorm"):
                layer[name].weight = shared[name].weight
    return model


def _layer(layer: nn.Module, layout: str) -> dict[str, mx.array]:
    """One layer's tensors under the names that follow its number."""
    attention, mlp = layer["self_attn"], layer["mlp"]
    is_mlx = layout.startswith("mlx")

    def norm(name: str) -> mx.array:
        return layer[name].weight if is_mlx else layer[name].weight.reshape(1, 1, -1)

    alpha = "weight" if is_mlx else "alpha"
    qkv = mx.concatenate([attention[f"{p}_proj"].weight for p in "qkv"])
    return {
        f"norm1.{alpha}": norm("input_layernorm"),
        f"norm2.{alpha}": norm("post_attention_layernorm"),
        "self_attn.in_proj.weight" if is_mlx else "self_attn.in_proj_weight": qkv,
        "self_attn.out_proj.weight": attention["o_proj"].weight,
        "gating.linear_in.weight": mx.concatenate([mlp["gate_proj"].weight, mlp["up_proj"].weight]),
        "gating.linear_out.weight": mlp["down_proj"].weight,
    }


def _temporal(model: MoshiModel, layout: str) -> dict[str, mx.array]:
    c, is_mlx = model.config, layout.startswith("mlx")
    norm = model.temporal.norm["weight"]
    out = {"text_emb.weight": model.text_embeddings.weight, "text_linear.weight": model.text_head.weight}
    out["out_norm.weight" if is_mlx else "out_norm.alpha"] = norm if is_mlx else norm.reshape(1, 1, -1)
    for i, table in enumerate(mx.split(model.audio_embeddings.weight, c.n_codebooks)):
        out[f"{'audio_embs' if is_mlx else 'emb'}.{i}.weight"] = table
    for name in c.conditions:
        place, weight = f"condition_provider.conditioners.{name}", model["conditions"][name].weight
        out[f"{place}.embed.weight"] = mx.pad(weight, [(0, 10 - weight.shape[0]), (0, 0)])
        out[f"{place}.output_proj.weight"] = mx.eye(c.temporal.dim)
        out[f"{place}.learnt_padding"] = mx.ones((1, 1, c.temporal.dim))
    for i, layer in enumerate(model.temporal.layers):
        out |= {f"transformer.layers.{i}.{name}": x for name, x in _layer(layer, layout).items()}
    return out | {f"extra_heads.{i}.weight": head.weight for i, head in enumerate(model.extra_heads)}


def _torch_depth(model: MoshiModel, out: dict[str, mx.array], layout: str) -> None:
    if model.config.depth is None:
        return
    out |= {f"depformer_in.{i}.weight": x.weight for i, x in enumerate(model.depth_projections)}
    out |= {f"linears.{k}.weight": x.weight for k, x in enumerate(model.audio_heads)}
    for k, embedding in enumerate(model.depth_embeddings):
        name = f"depformer_emb.{k - 1}" if k else "depformer_text_emb"
        out[f"{name}.weight"] = embedding.table.weight
        if "projection" in embedding:
            out[f"{name}.low_rank.weight"] = embedding.projection.weight
    for i in range(model.config.depth.n_layers):
        sets = [_layer(decoder.layers[i], layout) for decoder in model.depth_decoders]
        for name, x in sets[0].items():
            place = f"depformer.layers.{i}"
            if name.startswith("gating"):
                for w, of in enumerate(sets):
                    out[f"{place}.gating.{w}.{name.removeprefix('gating.')}"] = of[name]
            else:
                out[f"{place}.{name}"] = mx.concatenate([of[name] for of in sets]) if "attn" in name else x


def _slices(model: MoshiModel, out: dict[str, mx.array], layout: str) -> None:
    c = model.config
    for k, weights in enumerate(c.depth_schedule):
        place = f"depformer.slices.{k}" if layout.startswith("mlx") else f"depformer.{k}"
        embedding = model.depth_embeddings[k]
        out[f"{place}.emb.weight"] = embedding.table.weight
        if "projection" in embedding:
            out[f"{place}.emb.low_rank.weight"] = embedding.projection.weight
        out[f"{place}.linear_in.weight"] = model.depth_projections[0 if c.depth_shares_input else weights].weight
        out[f"{place}.linear_out.weight"] = model.audio_heads[k].weight
        for i, layer in enumerate(model.depth_decoders[weights].layers):
            out |= {f"{place}.transformer.layers.{i}.{name}": x for name, x in _layer(layer, layout).items()}


def _quantized(tensors: dict[str, mx.array]) -> dict[str, mx.array]:
    """Every linear layer and embedding at 4 bits in groups of 32, as `kyutai/moshiko-mlx-q4`."""
    out = {}
    for name, x in tensors.items():
        if x.ndim == 2 and not name.startswith("condition_provider."):
            path = name.removesuffix(".weight")
            parts = mx.quantize(x, group_size=32, bits=4)
            out |= {f"{path}.{part}": y for part, y in zip(("weight", "scales", "biases"), parts, strict=True)}
        else:
            out[name] = x
    return out
