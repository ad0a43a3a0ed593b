"""Kyutai's language models over text and Mimi's codes (https://github.com/kyutai-labs/moshi): Moshi, Hibiki, and
speech-to-text, which is the one without a depth decoder.

A frame of all streams enters the temporal transformer as the sum of its embeddings. Its hidden state gives the text;
the depth decoder, whose weights differ from codebook to codebook, gives the codes one after the other. Everything here
is a function of arrays: tokens are drawn and delayed in `csm_mlx/generate/duplex.py`.
"""

from collections.abc import Mapping

import mlx.core as mx
import mlx.nn as nn

from csm_mlx.config import MoshiConfig
from csm_mlx.errors import ConfigError
from csm_mlx.nn.cache import CacheState, capacity, make_cache, with_room
from csm_mlx.nn.linear import Product
from csm_mlx.nn.transformer import Transformer

ZERO_TOKEN = -1
"""An id that stands for no input at all: its embedding is zero."""


class TokenEmbedding(nn.Module):
    """Embeddings stored whole, or narrow and projected."""

    def __init__(self, n_ids: int, dim: int, rank: int | None = None):
        super().__init__()
        self.table = nn.Embedding(n_ids, rank or dim)
        if rank is not None:
            self.projection = nn.Linear(rank, dim, bias=False)

    def __call__(self, ids: mx.array) -> mx.array:
        """Ids (…) from 0 on; embeddings (…, dim)."""
        y = self["table"](ids)
        return self["projection"](y) if "projection" in self else y


class MoshiModel(nn.Module):
    """Embeddings, the temporal transformer, a depth decoder per set of weights, and the heads."""

    def __init__(self, config: MoshiConfig):
        super().__init__()
        c, dim, depth = config, config.temporal.dim, config.depth
        self.text_embeddings = nn.Embedding(c.text_vocab_size + 1, dim)
        self.audio_embeddings = nn.Embedding(c.n_codebooks * (c.codebook_size + 1), dim)
        if c.conditions:
            self.conditions = {name: nn.Embedding(len(values), dim) for name, values in c.conditions.items()}
        self.temporal = Transformer(c.temporal)
        self.text_head = nn.Linear(dim, c.text_head_size, bias=False)
        self.extra_heads = [nn.Linear(dim, c.extra_head_size, bias=False) for _ in range(c.n_extra_heads)]
        n_inputs = 0
        if depth is not None:
            n_inputs = 1 if c.depth_shares_input else c.n_depth_sets
            n_ids = [c.text_vocab_size + 1] + [c.codebook_size + 1] * (c.n_generated - 1)
            self.depth_projections = [nn.Linear(dim, depth.dim, bias=False) for _ in range(n_inputs)]
            self.depth_embeddings = [TokenEmbedding(n, depth.dim, c.depth_embedding_rank) for n in n_ids]
            self.depth_decoders = [Transformer(depth) for _ in range(c.n_depth_sets)]
            self.audio_heads = [nn.Linear(depth.dim, c.codebook_size, bias=False) for _ in range(c.n_generated)]
        self._config = config
        self._text_logits = Product("text_head")
        self._extra_logits = Product(*range(c.n_extra_heads))
        self._depth_inputs = Product(*range(n_inputs))
        self._code_logits = [Product(k) for k in range(c.n_generated)]

    def prepare(self) -> None:
        """Makes the weights ready to generate with, to be called again when they have changed; their names stay."""
        self.temporal.prepare()
        self._text_logits.prepare(self)
        if self._config.n_extra_heads:
            self._extra_logits.prepare(self["extra_heads"])
        if self._config.depth is not None:
            self._depth_inputs.prepare(self["depth_projections"])
            for decoder in self.depth_decoders:
                decoder.prepare()
            for logits in self._code_logits:
                logits.prepare(self["audio_heads"])

    @property
    def config(self) -> MoshiConfig:
        return self._config

    @property
    def dtype(self) -> mx.Dtype:
        """Of activations and caches: that of the norms, which are never quantized."""
        return self.temporal.norm["weight"].dtype

    def make_state(self, batch: int, chunk_frames: int = 1) -> CacheState:
        """The temporal transformer's fresh state: a ring that never fills up, for calls of up to `chunk_frames` at a
        time without being cut; for single frames one that grows with the conversation, up to its window."""
        t = self._config.temporal
        if chunk_frames > 1:
            return self.temporal.make_state(batch, self.dtype, self._window + chunk_frames - 1)
        return make_cache(batch, t.n_layers, t.n_kv_heads, 0, t.head_dim, self.dtype)

    @property
    def _window(self) -> int:
        window = self._config.temporal.window
        assert window is not None
        return window

    def condition(self, values: Mapping[str, str]) -> mx.array:
        """What a session that is asked for these values adds to each of its rows: (dim,). `ConfigError` unless there is
        one for each condition of the model."""
        known = self._config.conditions
        if values.keys() != known.keys() or any(value not in known[name] for name, value in values.items()):
            kinds = "; ".join(f"{name}: {', '.join(choices)}" for name, choices in known.items())
            raise ConfigError(f"conditions are {dict(values)}, expected one value each of {kinds or 'none'}")
        total = mx.zeros((self._config.temporal.dim,), self.dtype)
        for name, value in values.items():
            total = total + self["conditions"][name](mx.array(known[name].index(value)))
        return total

    def embed(self, tokens: mx.array) -> mx.array:
        """Tokens of all streams (B, T, 1 + n_codebooks), `ZERO_TOKEN` allowed; rows (B, T, dim)."""
        c, text, codes = self._config, tokens[..., 0], tokens[..., 1:]
        offsets = mx.arange(c.n_codebooks, dtype=mx.int32) * (c.codebook_size + 1)
        audio = self.audio_embeddings(mx.maximum(codes, 0) + offsets).astype(self.dtype)
        words = self.text_embeddings(mx.maximum(text, 0)).astype(self.dtype)
        # Outside the tables, so that it holds for quantized ones too.
        audio, words = mx.where(codes[..., None] < 0, 0, audio), mx.where(text[..., None] < 0, 0, words)
        return audio.sum(axis=2) + words

    def __call__(
        self, tokens: mx.array, state: CacheState, condition: mx.array | None = None
    ) -> tuple[mx.array, CacheState]:
        """Tokens as they are heard, delayed (B, T, 1 + n_codebooks), and a `condition` (dim,); hidden states
        (B, T, dim), which predict the tokens after them, and the state."""
        rows = self.embed(tokens)
        rows = rows if condition is None else rows + condition
        if capacity(state) > self._window:
            return self.temporal(rows, state)
        y, state = self.temporal.rows(rows[:, 0], tokens.shape[1], with_room(state, self._window))
        return y[:, None], state

    def text_logits(self, hidden: mx.array) -> mx.array:
        """Hidden states (N, dim); (N, text_head_size)."""
        return self._text_logits(self, hidden)

    def extra_logits(self, hidden: mx.array) -> mx.array:
        """Hidden states (N, dim); (N, n_extra_heads, extra_head_size)."""
        y = self._extra_logits(self["extra_heads"], hidden)
        return y.reshape(hidden.shape[0], self._config.n_extra_heads, self._config.extra_head_size)

    def depth_inputs(self, hidden: mx.array) -> list[mx.array]:
        """Hidden states (N, dim), as the depth decoder takes them at each codebook: (N, depth dim) each."""
        c, projections = self._config, self["depth_projections"]
        rows = mx.split(self._depth_inputs(projections, hidden), len(projections), axis=1)
        return [rows[0 if c.depth_shares_input else weights] for weights in c.depth_schedule]

    def make_depth_state(self, batch: int) -> CacheState:
        """Of a frame before its first codebook, with room for all of them; all sets of weights share it."""
        return self.depth_decoders[0].make_state(batch, self.dtype, self._config.n_generated)

    def depth_step(
        self, codebook: int, row: mx.array, token: mx.array, state: CacheState
    ) -> tuple[mx.array, CacheState]:
        """Logits (N, codebook_size) of one codebook, and the frame's state after it.

        row: (N, depth dim), of `depth_inputs`. token: (N,), of the codebook before it; the text's for the first.
        """
        x = row + self["depth_embeddings"][codebook](token).astype(row.dtype)
        y, state = self["depth_decoders"][self._config.depth_schedule[codebook]].rows(x, 1, state)
        return self._code_logits[codebook](self["audio_heads"], y), state

    def frame_logits(self, hidden: mx.array, tokens: mx.array) -> mx.array:
        """Teacher-forced logits of whole frames.

        hidden (N, dim): states that predict the frames; tokens (N, n_generated) at least: their text and codes, as they
        were said, delays included. Returns (N, n_generated, codebook_size) float32.
        """
        state, logits = self.make_depth_state(hidden.shape[0]), []
        for codebook, row in enumerate(self.depth_inputs(hidden)):
            y, state = self.depth_step(codebook, row, tokens[:, codebook], state)
            logits.append(y.astype(mx.float32))
        return mx.stack(logits, axis=1)
