"""mlx-audio: its Mimi, and its CSM as `Model.generate` drives it, without the tokenizer that it would download."""

# pyright: reportMissingImports=false
import json
from functools import cache
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_audio.codec.models.mimi import Mimi
from mlx_audio.codec.models.mimi.mimi import mimi_202407
from mlx_audio.lm.sample_utils import make_sampler
from mlx_audio.tts.models.sesame.sesame import SesameModel
from mlx_rows import mimi_rows, overhead_rows
from worker import (
    AUDIO_ROWS,
    CACHE,
    DEVICE,
    DTYPE,
    N_CODEBOOKS,
    TEMPERATURE,
    TEXT_ROWS,
    TOP_K,
    peak_above,
    repeated,
    serve,
)

LLAMA3 = {
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
    "rope_type": "llama3",
}
RENAMES = {
    "embed_text_tokens.": "text_embeddings.",
    "depth_decoder.model.embed_tokens.": "audio_embeddings.",
    "backbone_model.embed_tokens.embed_audio_tokens.": "audio_embeddings.",
    "lm_head.": "codebook0_head.",
    "depth_decoder.model.inputs_embeds_projector.": "projection.",
    "depth_decoder.codebooks_head.weight": "audio_head",
    "backbone_model.": "backbone.",
    "depth_decoder.model.": "decoder.",
}
"""transformers' names to Sesame's. Its rows of q and k come in another order, which costs nothing and is left."""


@cache
def load(name: str) -> SesameModel:
    """The weights of `name`, refused if they are not exactly the model's; random ones where there is only a config."""
    hf = json.loads((CACHE / name / "config.json").read_text())
    more: dict[str, Any] = {"rope_scaling": LLAMA3, "rope_theta": 500_000}
    depth = hf["depth_decoder_config"]
    depth = {field: depth.get(field) for field in DEPTH_FIELDS} | more
    config = {**hf, **more, "depth_decoder_config": depth}
    config |= {"audio_vocab_size": hf["vocab_size"], "audio_num_codebooks": hf["num_codebooks"]}
    model = SesameModel(config)
    weights = {}
    for path in sorted((CACHE / name).glob("*.safetensors")):
        tensors: Any = mx.load(str(path))
        for foreign, value in tensors.items():
            ours = next((new + foreign[len(old) :] for old, new in RENAMES.items() if foreign.startswith(old)), None)
            if ours is not None:
                weights[ours] = value
    if weights:
        model.load_weights(list(weights.items()), strict=True)
        assert len(tree_flatten(model.parameters())) == len(weights)
    else:
        model.set_dtype(getattr(mx, DTYPE))
    mx.eval(model.parameters())
    model.setup_caches(1)
    return model


DEPTH_FIELDS = (
    "attention_bias",
    "attention_dropout",
    "backbone_hidden_size",
    "head_dim",
    "hidden_act",
    "hidden_size",
    "initializer_range",
    "intermediate_size",
    "max_position_embeddings",
    "mlp_bias",
    "model_type",
    "num_attention_heads",
    "num_codebooks",
    "num_hidden_layers",
    "num_key_value_heads",
    "rms_norm_eps",
    "use_cache",
    "vocab_size",
)


def prompt(n_rows: int, *, text: bool) -> tuple[mx.array, mx.array]:
    """Tokens and their mask (1, n_rows, 33): text in the last column, codes in the others."""
    columns = mx.arange(N_CODEBOOKS + 1) == N_CODEBOOKS
    mask = mx.broadcast_to(columns if text else ~columns, (1, n_rows, N_CODEBOOKS + 1))
    return mx.where(mask, 5, 0).astype(mx.int32), mask


def prefill(n_rows: int, *, text: bool) -> None:
    """What `generate_frame` does before it draws."""
    model = load("csm-1b")
    model.reset_caches()
    tokens, mask = prompt(n_rows, text=text)
    h = mx.sum(model._embed_tokens(tokens) * mask[..., None], axis=2)
    mx.eval(model.backbone(h, cache=model.backbone_cache), [c.state for c in model.backbone_cache])


class Frames:
    """The loop of `Model.generate` after a prompt of text."""

    def __init__(self, name: str):
        self._model = load(name)
        self._model.reset_caches()
        self._sampler = make_sampler(temp=TEMPERATURE, top_k=TOP_K)
        self._tokens, self._mask = prompt(TEXT_ROWS, text=True)
        self._position = mx.arange(TEXT_ROWS)[None]
        self.run()

    def build(self) -> mx.array:
        codes = self._model.generate_frame(self._tokens, self._mask, self._position, self._sampler)
        self._tokens = mx.concatenate([codes, mx.zeros((1, 1), mx.int32)], axis=1)[:, None]
        self._mask = ~(mx.arange(N_CODEBOOKS + 1) == N_CODEBOOKS)[None, None]
        self._position = self._position[:, -1:] + 1
        return codes

    def finish(self) -> None:
        mx.eval(self._tokens, [c.state for c in self._model.backbone_cache])

    def run(self) -> None:
        self.build()
        self.finish()


if __name__ == "__main__":
    mx.set_default_device(mx.gpu if DEVICE == "gpu" else mx.cpu)
    serve(
        ["mlx-audio", "mlx"],
        {
            **mimi_rows(lambda: Mimi(mimi_202407(N_CODEBOOKS))),
            **overhead_rows(lambda: Frames("narrow")),
            "csm_frame": lambda: repeated(Frames("csm-1b").run),
            "csm_prefill_text": lambda: repeated(lambda: prefill(TEXT_ROWS, text=True)),
            "csm_prefill_audio": lambda: repeated(lambda: prefill(AUDIO_ROWS, text=False)),
            "csm_prefill_memory": lambda: peak_above(lambda: prefill(AUDIO_ROWS, text=False), before=mx.clear_cache),
        },
    )
