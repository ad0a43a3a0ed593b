"""The one Transformer: CSM's backbone and depth decoder and Mimi's two differ in `TransformerConfig` only."""

import mlx.core as mx
import mlx.nn as nn

from csm_mlx.config import TransformerConfig
from csm_mlx.nn import cache
from csm_mlx.nn.cache import CacheState, Step
from csm_mlx.nn.rope import Rope

BLOCK = 256
"""Positions attended at once: bounds the memory of scores and masks, and sizes the ring of windowed attention."""


def _norm(config: TransformerConfig) -> nn.Module:
    make = nn.RMSNorm if config.norm == "rms" else nn.LayerNorm
    return make(config.dim, eps=config.norm_eps)


class Attention(nn.Module):
    """Causal attention with grouped key/value heads, rotary positions and no biases."""

    def __init__(self, config: TransformerConfig, rope: Rope):
        super().__init__()
        self.n_heads, self.n_kv_heads, self.head_dim = config.n_heads, config.n_kv_heads, config.head_dim
        self.q_proj = nn.Linear(config.dim, config.n_heads * config.head_dim, bias=False)
        self.k_proj = nn.Linear(config.dim, config.n_kv_heads * config.head_dim, bias=False)
        self.v_proj = nn.Linear(config.dim, config.n_kv_heads * config.head_dim, bias=False)
        self.o_proj = nn.Linear(config.n_heads * config.head_dim, config.dim, bias=False)
        self._rope = rope

    def _heads(self, x: mx.array, n_heads: int) -> mx.array:
        return x.reshape(*x.shape[:2], n_heads, self.head_dim).swapaxes(1, 2)

    def __call__(self, x: mx.array, keys: mx.array, values: mx.array, at: Step) -> tuple[mx.array, mx.array, mx.array]:
        queries = self._rope(self._heads(self.q_proj(x), self.n_heads), at.offset)
        new_keys = self._rope(self._heads(self.k_proj(x), self.n_kv_heads), at.offset)
        keys = cache.write(keys, new_keys, at.slots)
        values = cache.write(values, self._heads(self.v_proj(x), self.n_kv_heads), at.slots)
        y = mx.fast.scaled_dot_product_attention(queries, keys, values, scale=self.head_dim**-0.5, mask=at.mask)
        return self.o_proj(y.swapaxes(1, 2).reshape(*x.shape[:2], -1)), keys, values


class SwiGLU(nn.Module):
    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.gate_proj = nn.Linear(config.dim, config.ffn_dim, bias=False)
        self.up_proj = nn.Linear(config.dim, config.ffn_dim, bias=False)
        self.down_proj = nn.Linear(config.ffn_dim, config.dim, bias=False)

    def __call__(self, x: mx.array) -> mx.array:
        return self.down_proj(nn.silu(self.gate_proj(x)) * self.up_proj(x))


class GeluMLP(nn.Module):
    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.up_proj = nn.Linear(config.dim, config.ffn_dim, bias=False)
        self.down_proj = nn.Linear(config.ffn_dim, config.dim, bias=False)

    def __call__(self, x: mx.array) -> mx.array:
        return self.down_proj(nn.gelu(self.up_proj(x)))  # erf, not the tanh approximation, as Mimi was trained


class Block(nn.Module):
    """Pre-norm attention and MLP, each optionally scaled per channel."""

    def __init__(self, config: TransformerConfig, rope: Rope):
        super().__init__()
        self.input_layernorm = _norm(config)
        self.self_attn = Attention(config, rope)
        self.post_attention_layernorm = _norm(config)
        self.mlp = SwiGLU(config) if config.mlp == "swiglu" else GeluMLP(config)
        self._layer_scale = config.layer_scale
        if config.layer_scale:
            self.attention_scale = mx.full((config.dim,), 0.01)
            self.mlp_scale = mx.full((config.dim,), 0.01)

    def __call__(self, x: mx.array, keys: mx.array, values: mx.array, at: Step) -> tuple[mx.array, mx.array, mx.array]:
        y, keys, values = self.self_attn(self.input_layernorm(x), keys, values, at)
        x = x + (y * self.attention_scale if self._layer_scale else y)
        y = self.mlp(self.post_attention_layernorm(x))
        return x + (y * self.mlp_scale if self._layer_scale else y), keys, values


class Transformer(nn.Module):
    """A stack of blocks over (B, T, dim) with its state passed in and out."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        rope = Rope(config.head_dim, config.rope_base, config.rope_scaling)
        self.layers = [Block(config, rope) for _ in range(config.n_layers)]
        if config.final_norm:
            self.norm = _norm(config)
        self._config = config

    def make_state(self, batch: int, dtype: mx.Dtype, n_positions: int | None = None) -> CacheState:
        """A fresh state with room for `n_positions`; windowed attention needs none: its ring never fills up."""
        c = self._config
        if n_positions is None:
            if c.window is None:
                raise ValueError(
                    "attention without a window needs n_positions, the number of positions to make room for"
                )
            n_positions = c.window + BLOCK - 1
        return cache.make_cache(batch, c.n_layers, c.n_kv_heads, n_positions, c.head_dim, dtype)

    def __call__(self, x: mx.array, state: CacheState) -> tuple[mx.array, CacheState]:
        """x (B, T, dim) at the positions that follow `state`; (B, T, dim) and the state after them.

        The caller sees to it that a cache without a window has T free positions: an offset in the graph cannot be
        checked without waiting for it.
        """
        n_slots = cache.capacity(state)
        window = self._config.window
        block = BLOCK if window is None else min(BLOCK, n_slots - window + 1)
        outputs, keys, values, offset = [], list(state["keys"]), list(state["values"]), state["offset"]
        for start in range(0, x.shape[1], block):
            h = x[:, start : start + block]
            at = cache.step(offset, h.shape[1], n_slots, window)
            for i, layer in enumerate(self.layers):
                h, keys[i], values[i] = layer(h, keys[i], values[i], at)
            outputs.append(h)
            offset = offset + h.shape[1]
        y = outputs[0] if len(outputs) == 1 else mx.concatenate(outputs, axis=1)
        if self._config.final_norm:
            y = self.norm(y)
        return y, {"offset": offset, "keys": keys, "values": values}
