"""Small language models of Kyutai's with random weights, in their PyTorch, MLX and candle layouts."""

# pyright: reportMissingImports=false
import copy
import json
from pathlib import Path
from typing import Any

import torch
from moshi.models import loaders
from moshi.models.lm import LMModel
from safetensors.torch import save_file

_COMMON: dict[str, Any] = {
    "dim": 64,
    "num_heads": 4,
    "num_layers": 3,
    "hidden_scale": 4.125,
    "card": 40,
    "text_card": 48,
    "existing_text_padding_id": 3,
    "causal": True,
    "layer_scale": None,
    "context": 20,
    "max_period": 10000,
    "gating": "silu",
    "norm": "rms_norm_f32",
    "positional_embedding": "rope",
}
_DEPTH: dict[str, Any] = {
    "depformer_dim": 32,
    "depformer_dim_feedforward": int(4.125 * 32),
    "depformer_num_heads": 2,
    "depformer_num_layers": 2,
    "depformer_layer_scale": None,
    "depformer_multi_linear": True,
    "depformer_context": 8,
    "depformer_max_period": 10000,
    "depformer_gating": "silu",
    "depformer_pos_emb": "none",
    "depformer_weights_per_step": True,
}
_DESCRIPTION = {
    "n_bins": 5,
    "dim": 12,
    "tokenizer": "noop",
    "possible_values": ["very_bad", "bad", "good", "very_good"],
}
CASES: dict[str, dict[str, Any]] = {
    # speech-to-text: 32 codebooks heard, none said, pause heads, and the rests of a depth decoder in its config
    "stt": _COMMON
    | _DEPTH
    | {"depformer_dim_feedforward": None, "n_q": 32, "dep_q": 0, "delays": [0] * 33, "extra_heads_num_heads": 4}
    | {"max_period": 100000, "extra_heads_dim": 6},
    # Moshi: 17 streams, acoustic codes one frame late
    "moshi": _COMMON | _DEPTH | {"n_q": 16, "dep_q": 8, "delays": [0] + [0, 1, 1, 1, 1, 1, 1, 1] * 2, "context": 25},
    # Hibiki: 33 streams, two frames late, depth weights shared by a schedule, narrow embeddings in the depth decoder,
    # and a condition
    "hibiki": _COMMON
    | _DEPTH
    | {"n_q": 32, "dep_q": 16, "delays": [0] + ([0] + [2] * 15) * 2, "depformer_context": 16}
    | {"depformer_weights_per_step_schedule": [*range(8), *[8] * 8], "depformer_low_rank_embeddings": 12}
    | {"conditioners": {"description": {"type": "lut", "lut": _DESCRIPTION}}}
    | {"fuser": {"sum": ["description"], "cross": [], "prepend": []}},
    # every other number and kind that a config can state: grouped heads, halves turned, another rule for the gates,
    # other words said than heard, one projection for all codebooks
    "other": _COMMON
    | _DEPTH
    | {"n_q": 5, "dep_q": 3, "delays": [0, 0, 1, 2, 1, 0], "kv_repeat": 2, "positional_embedding": "rope_concat"}
    | {"hidden_scale": 4, "text_card_out": 40, "depformer_multi_linear": False, "depformer_kv_repeat": 1}
    | {"norm": "rms_norm", "dim": 48, "depformer_dim_feedforward": 4 * 32, "context": 7},
}
SEEDS = {name: i for i, name in enumerate(CASES)}


@torch.no_grad()
def random_lm(name: str) -> LMModel:
    model = loaders.get_moshi_lm(None, copy.deepcopy(CASES[name]), dtype=torch.float32)  # it changes what it is given
    generator = torch.Generator().manual_seed(SEEDS[name])
    for parameter_name, p in model.named_parameters():
        if parameter_name.endswith("alpha"):
            p.normal_(1.0, 0.2, generator=generator)
        elif "emb" in parameter_name and "low_rank" not in parameter_name:
            p.normal_(0.0, 0.7, generator=generator)
        else:
            gain = 3.0 if parameter_name.startswith(("linears", "text_linear", "extra_heads")) else 1.0
            p.normal_(0.0, gain * p.shape[-1] ** -0.5, generator=generator)
    return model.eval()


def published(model: LMModel) -> dict[str, torch.Tensor]:
    """As Kyutai's files have it: the sets of attention weights stacked under the names of one."""
    state, out = model.state_dict(), {}
    for name, tensor in state.items():
        stem, _, rest = name.partition("_projs.")
        if not rest:
            out[name] = tensor
        elif rest == "0.weight":
            n = sum(other.startswith(f"{stem}_projs.") for other in state)
            target = f"{stem}_proj_weight" if stem.endswith(".in") else f"{stem}_proj.weight"
            out[target] = torch.cat([state[f"{stem}_projs.{i}.weight"] for i in range(n)])
    return {name: tensor.contiguous() for name, tensor in out.items()}


def as_slices(state: dict[str, torch.Tensor], case: dict[str, Any], *, mlx: bool) -> dict[str, torch.Tensor]:
    """`published` in the MLX layout (as moshi_mlx's `load_pytorch_weights` names it) or in candle's (moshi-core's
    `lm.rs`): one slice per codebook, shared weights written again."""
    out: dict[str, torch.Tensor] = {}
    slices = "depformer.slices" if mlx else "depformer"
    for name, tensor in state.items():
        if name.startswith(("depformer", "linears")):
            continue
        if mlx and name.startswith("emb."):
            name = "audio_embs." + name.removeprefix("emb.")
        out[_spelled(name, mlx)] = tensor[0, 0] if mlx and name.endswith(".alpha") else tensor
    schedule = case.get("depformer_weights_per_step_schedule") or list(range(case["dep_q"]))
    n_sets = 1 + max(schedule, default=-1)
    for k, weights in enumerate(schedule):
        slice_ = f"{slices}.{k}"
        out[f"{slice_}.linear_in.weight"] = state[
            f"depformer_in.{weights if case['depformer_multi_linear'] else 0}.weight"
        ]
        out[f"{slice_}.linear_out.weight"] = state[f"linears.{k}.weight"]
        table = f"depformer_emb.{k - 1}" if k else "depformer_text_emb"
        for part in ("weight", "low_rank.weight"):
            if f"{table}.{part}" in state:
                out[f"{slice_}.emb.{part}"] = state[f"{table}.{part}"]
        for i in range(case["depformer_num_layers"]):
            theirs, ours = f"depformer.layers.{i}", f"{slice_}.transformer.layers.{i}"
            for norm in ("norm1", "norm2"):
                alpha = state[f"{theirs}.{norm}.alpha"]
                out[_spelled(f"{ours}.{norm}.alpha", mlx)] = alpha[0, 0] if mlx else alpha
            for part in ("linear_in", "linear_out"):
                out[f"{ours}.gating.{part}.weight"] = state[f"{theirs}.gating.{weights}.{part}.weight"]
            for part in ("in_proj_weight", "out_proj.weight"):
                chunk = state[f"{theirs}.self_attn.{part}"].chunk(n_sets)[weights]
                out[_spelled(f"{ours}.self_attn.{part}", mlx)] = chunk
    return {name: tensor.clone().contiguous() for name, tensor in out.items()}


def _spelled(name: str, mlx: bool) -> str:
    return name.replace(".alpha", ".weight").replace("in_proj_weight", "in_proj.weight") if mlx else name


def write(name: str, model: LMModel, folder: Path) -> None:
    """`torch/`, `mlx/` and `candle/`, each with its weights and config.json."""
    state = published(model)
    layouts = {"torch": state} | {kind: as_slices(state, CASES[name], mlx=kind == "mlx") for kind in ("mlx", "candle")}
    for kind, tensors in layouts.items():
        (folder / kind).mkdir(parents=True)
        save_file(tensors, folder / kind / "model.safetensors")
        (folder / kind / "config.json").write_text(json.dumps(CASES[name]))
