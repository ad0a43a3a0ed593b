"""Sesame's CSM (https://github.com/SesameAILabs/csm): a Llama backbone over frames and a depth decoder over the
codebooks of one frame.

A frame's codes enter the backbone as one row: the sum of their K embeddings. The backbone's hidden state gives the
first codebook; the depth decoder, started with that state, gives the others one after the other. Everything here is
a function of arrays: prompts are made in `csm_mlx/frames.py`, codes are drawn in `csm_mlx/generate/frame.py`.
"""

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from csm_mlx.config import CsmConfig
from csm_mlx.models.code_step import CodeStep, CodeSteps, Draw
from csm_mlx.nn.linear import Product
from csm_mlx.nn.transformer import Transformer

CODE_TABLE_SHARE = 0.055
CODE_TABLE_BYTES = 64_000_000
"""The codes' embeddings as the depth decoder takes them are made ahead where they are no more than that share of the
weights, or than so many bytes."""


class CsmModel(nn.Module):
    """Embeddings, the two transformers and one head per codebook. One audio table serves both transformers."""

    def __init__(self, config: CsmConfig):
        super().__init__()
        dim, depth_dim, rows = config.backbone.dim, config.depth.dim, config.head_rows
        self.text_embeddings = nn.Embedding(config.text_vocab_size, dim)
        self.audio_embeddings = nn.Embedding(config.n_codebooks * config.audio_vocab_size, dim)
        self.backbone = Transformer(config.backbone)
        self.projection = nn.Linear(dim, depth_dim, bias=False)
        self.depth_decoder = Transformer(config.depth)
        self.codebook0_head = nn.Linear(dim, rows, bias=False)
        self.audio_head = [nn.Linear(depth_dim, rows, bias=False) for _ in range(config.n_codebooks - 1)]
        self._config = config
        first = Product("codebook0_head", n_rows=config.codebook_size)
        self._projection = Product("projection")
        self._logits = [first, *(Product(k, n_rows=config.codebook_size) for k in range(config.n_codebooks - 1))]
        self._codes = CodeTable()
        self._steps = CodeSteps()

    def prepare(self) -> None:
        """Makes the weights ready to speak with, to be called again when they have changed; their names stay."""
        self.backbone.prepare()
        self.depth_decoder.prepare()
        self._projection.prepare(self)
        for codebook, logits in enumerate(self._logits):
            logits.prepare(self["audio_head"] if codebook else self)
        self._codes.prepare(self)

    @property
    def config(self) -> CsmConfig:
        return self._config

    @property
    def dtype(self) -> mx.Dtype:
        """Of activations and caches: that of the norms, which are never quantized."""
        return self.backbone.norm["weight"].dtype

    def embed_text(self, ids: mx.array) -> mx.array:
        """Text ids (B, T); rows (B, T, dim)."""
        return self.text_embeddings(ids).astype(self.dtype)  # mxfp4 and its like come out as bfloat16, whatever else is

    def embed_code(self, codes: mx.array, codebook: int) -> mx.array:
        """Codes of one codebook (…); embeddings (…, dim)."""
        return self.audio_embeddings(codes + codebook * self.config.audio_vocab_size).astype(self.dtype)

    def embed_audio(self, codes: mx.array) -> mx.array:
        """Frames (B, T, n_codebooks); rows (B, T, dim), each the sum of its codes' embeddings."""
        offsets = mx.arange(self.config.n_codebooks, dtype=mx.int32) * self.config.audio_vocab_size
        return self.audio_embeddings(codes + offsets).astype(self.dtype).sum(axis=2)

    def depth_input(self, rows: mx.array) -> mx.array:
        """Backbone states or codes' embeddings (N, dim), as the depth decoder takes them: (N, depth dim)."""
        return self._projection(self, rows)

    def depth_code(self, codes: mx.array, codebook: int) -> mx.array:
        """Codes of one codebook (B, 1), as the depth decoder takes them: (B, depth dim)."""
        table = self._codes.of(self, codebook)
        if table is not None:
            return table[codes.reshape(-1)]
        return self.depth_input(self.embed_code(codes.reshape(-1), codebook))

    def code_step(self, draw: Draw) -> CodeStep:
        """What a frame does for each of its codes but the first, which `draw` draws."""
        return self._steps.of(draw, self.depth_decoder, self["audio_head"], self._logits)

    def code_logits(self, x: mx.array, codebook: int) -> mx.array:
        """Logits (B, codebook_size) of one codebook, from the backbone's state for the first (B, dim), from the depth
        decoder's for the others (B, depth dim)."""
        return self._logits[codebook](self["audio_head"] if codebook else self, x)

    def frame_logits(self, hidden: mx.array, codes: mx.array) -> mx.array:
        """Teacher-forced logits of whole frames.

        hidden (N, dim): backbone states that predict the frames; codes (N, n_codebooks): those frames.
        Returns (N, n_codebooks, audio_vocab_size) float32, each codebook's logits given the true codes before it.
        """
        n_codebooks = self.config.n_codebooks
        offsets = mx.arange(n_codebooks - 1, dtype=mx.int32) * self.config.audio_vocab_size
        embeddings = self.audio_embeddings(codes[:, :-1] + offsets).astype(self.dtype)
        x = self.projection(mx.concatenate([hidden[:, None], embeddings], axis=1))
        y, _ = self.depth_decoder(x, self.depth_decoder.make_state(x.shape[0], x.dtype, n_codebooks))
        logits = [self.codebook0_head(hidden)] + [head(y[:, k + 1]) for k, head in enumerate(self.audio_head)]
        return mx.stack(logits, axis=1)[..., : self.config.audio_vocab_size].astype(mx.float32)


class CodeTable:
    """Every code's embedding as the depth decoder takes it; derived from the model, and no parameter of it."""

    def __init__(self) -> None:
        self._made_of: tuple[mx.array, mx.array] | None = None
        self._tables: list[mx.array] = []

    def prepare(self, model: CsmModel) -> None:
        """Makes the tables where they are small beside the weights and the layers behind them plain."""
        if self._is_current(model):
            return
        self._made_of, self._tables = None, []
        config, weight = model.config, model.projection.get("weight")
        n_bytes = config.n_codebooks * config.audio_vocab_size * config.depth.dim * model.dtype.size
        n_all = sum(p.nbytes for _, p in tree_flatten(model.parameters()) if isinstance(p, mx.array))
        if weight is None or n_bytes > max(CODE_TABLE_BYTES, CODE_TABLE_SHARE * n_all):
            return
        for codebook in range(config.n_codebooks - 1):
            table = model.depth_input(model.embed_code(mx.arange(config.codebook_size), codebook))
            mx.eval(table)
            self._tables.append(table)
        self._made_of = (model.audio_embeddings["weight"], weight)

    def _is_current(self, model: CsmModel) -> bool:
        if self._made_of is None:
            return False
        embeddings, projection = self._made_of
        return model["audio_embeddings"]["weight"] is embeddings and model["projection"].get("weight") is projection

    def of(self, model: CsmModel, codebook: int) -> mx.array | None:
        """One codebook's table (codebook_size, depth dim); None where the model has to compute it."""
        return self._tables[codebook] if self._is_current(model) else None
