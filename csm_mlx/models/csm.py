"""Sesame's CSM (https://github.com/SesameAILabs/csm): a Llama backbone over frames and a depth decoder over the
codebooks of one frame.

A frame's codes enter the backbone as one row: the sum of their K embeddings. The backbone's hidden state gives the
first codebook; the depth decoder, started with that state, gives the others one after the other. Everything here is
a function of arrays: prompts are made in `csm_mlx/frames.py`, codes are drawn in `csm_mlx/generate/frame.py`.
"""

import mlx.core as mx
import mlx.nn as nn

from csm_mlx.config import CsmConfig
from csm_mlx.nn.transformer import Transformer


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

    def depth_input(self, embedding: mx.array) -> mx.array:
        """A backbone state or a code's embedding (…, dim), as the depth decoder takes it: (…, depth dim)."""
        return self.projection(embedding)

    def frame_logits(self, hidden: mx.array, codes: mx.array) -> mx.array:
        """Teacher-forced logits of whole frames.

        hidden (N, dim): backbone states that predict the frames; codes (N, n_codebooks): those frames.
        Returns (N, n_codebooks, audio_vocab_size) float32, each codebook's logits given the true codes before it.
        """
        n_codebooks = self.config.n_codebooks
        offsets = mx.arange(n_codebooks - 1, dtype=mx.int32) * self.config.audio_vocab_size
        embeddings = self.audio_embeddings(codes[:, :-1] + offsets).astype(self.dtype)
        x = self.depth_input(mx.concatenate([hidden[:, None], embeddings], axis=1))
        y, _ = self.depth_decoder(x, self.depth_decoder.make_state(x.shape[0], x.dtype, n_codebooks))
        logits = [self.codebook0_head(hidden)] + [head(y[:, k + 1]) for k, head in enumerate(self.audio_head)]
        return mx.stack(logits, axis=1)[..., : self.config.audio_vocab_size].astype(mx.float32)
