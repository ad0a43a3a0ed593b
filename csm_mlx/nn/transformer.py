"""The one Transformer: those of CSM, Mimi and Moshi differ in `TransformerConfig` only."""

import math

import mlx.core as mx
import mlx.nn as nn

from csm_mlx.config import TransformerConfig
from csm_mlx.nn import cache
from csm_mlx.nn.activations import gelu
from csm_mlx.nn.cache import CacheState, Step
from csm_mlx.nn.layout import on_cpu
from csm_mlx.nn.linear import Product
from csm_mlx.nn.norm import RMSNorm
from csm_mlx.nn.rope import Rope, turned

BLOCK = 512
"""Positions run at once, for which the weights are read once: bounds the memory of a call."""
RING_BLOCK = 256
"""The same for windowed attention, whose ring it sizes."""
_QUERY_BLOCK = 64
"""Positions attended at once on a CPU, which has no kernel that skips the scores that a causal mask hides: small blocks
have few of those."""


def _norm(config: TransformerConfig) -> nn.Module:
    make = RMSNorm if config.norm == "rms" else nn.LayerNorm
    return make(config.dim, eps=config.norm_eps)


class Attention(nn.Module):
    """Causal attention with grouped key/value heads, rotary positions or none, and no biases."""

    def __init__(self, config: TransformerConfig, rope: Rope | None):
        super().__init__()
        self.n_heads, self.n_kv_heads, self.head_dim = config.n_heads, config.n_kv_heads, config.head_dim
        self.q_proj = nn.Linear(config.dim, config.n_heads * config.head_dim, bias=False)
        self.k_proj = nn.Linear(config.dim, config.n_kv_heads * config.head_dim, bias=False)
        self.v_proj = nn.Linear(config.dim, config.n_kv_heads * config.head_dim, bias=False)
        self.o_proj = nn.Linear(config.n_heads * config.head_dim, config.dim, bias=False)
        self._rope, self._scale = rope, config.head_dim**-0.5
        self._qkv, self._o = Product("q_proj", "k_proj", "v_proj"), Product("o_proj")

    def prepare(self) -> None:
        """See `Transformer.prepare`."""
        self._qkv.prepare(self)
        self._o.prepare(self)

    def __call__(
        self,
        x: mx.array,
        keys: mx.array,
        values: mx.array,
        at: Step,
        onto: mx.array | None = None,
        *,
        last_only: bool = False,
    ) -> tuple[mx.array, mx.array, mx.array]:
        """Rows x (B * T, dim), a layer's cache and its step; the rows (added to `onto` if given) and the cache.

        last_only: (B, dim), only the last row of each sequence comes out, and goes onto `onto`.
        """
        n_rows, n_turned = x.shape[0], self.n_heads + self.n_kv_heads
        x = self._qkv(self, x)
        if at.turns is not None:
            x = turned(x, at.turns).reshape(n_rows, -1, 1, self.head_dim)
            queries, new_keys, new_values = mx.split(x, (self.n_heads, n_turned), axis=1)
        else:
            x = x.reshape(n_rows // at.n_steps, at.n_steps, -1, self.head_dim).swapaxes(1, 2)
            x, new_values = mx.split(x, (n_turned,), axis=1)
            x = x if self._rope is None else self._rope(x, at.positions)
            queries, new_keys = mx.split(x, (self.n_heads,), axis=1)
        keys, seen_keys = cache.write(keys, new_keys, at)
        values, seen_values = cache.write(values, new_values, at)
        mask, n_queries = at.mask, at.n_steps
        if last_only:
            queries, n_rows, n_queries = queries[:, :, -1:], n_rows // n_queries, 1
            mask = mask[-1:] if isinstance(mask, mx.array) else None
        if n_queries == 1:  # they see the same: the queries of a group are rows of one head
            queries = queries.reshape(n_rows, self.n_kv_heads, -1, self.head_dim)
            y = mx.fast.scaled_dot_product_attention(queries, seen_keys, seen_values, scale=self._scale, mask=mask)
        else:
            y = _attended(queries, seen_keys, seen_values, self._scale, mask).swapaxes(1, 2)
        y = y.reshape(n_rows, -1)
        return self._o(self, y, onto), keys, values


def _attended(
    queries: mx.array, keys: mx.array, values: mx.array, scale: float, mask: mx.array | str | None
) -> mx.array:
    """(B, n_heads, T, head_dim): what T queries, the last ones that a causal mask is about, see."""
    n, attend = queries.shape[2], mx.fast.scaled_dot_product_attention
    if not isinstance(mask, str) or n <= _QUERY_BLOCK or not on_cpu():
        return attend(queries, keys, values, scale=scale, mask=mask)
    parts, before = [], keys.shape[2] - n
    for start in range(0, n, _QUERY_BLOCK):
        end = min(start + _QUERY_BLOCK, n)
        part, seen = queries[:, :, start:end], before + end
        parts.append(attend(part, keys[:, :, :seen], values[:, :, :seen], scale=scale, mask=mask))
    return mx.concatenate(parts, axis=2)


class SwiGLU(nn.Module):
    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.gate_proj = nn.Linear(config.dim, config.ffn_dim, bias=False)
        self.up_proj = nn.Linear(config.dim, config.ffn_dim, bias=False)
        self.down_proj = nn.Linear(config.ffn_dim, config.dim, bias=False)
        self._gate_up, self._down = Product("gate_proj", "up_proj"), Product("down_proj")
        self._inverse_e, self._one = mx.array(math.exp(-1)), mx.array(1.0)
        self._with_powers = False

    def prepare(self) -> None:
        """See `Transformer.prepare`."""
        self._gate_up.prepare(self)
        self._down.prepare(self)
        self._with_powers = on_cpu()

    def __call__(self, x: mx.array, onto: mx.array | None = None) -> mx.array:
        gate, up = mx.split(self._gate_up(self, x), 2, axis=-1)
        if self._with_powers and x.dtype == mx.float32:
            # A power takes MLX on a CPU half the time of a sigmoid, which was 2 % of a frame. For gates below -88 it is
            # infinite, its inverse right and its gradient not a number: it is for what was prepared to speak.
            gate = gate / (mx.power(self["_inverse_e"], gate) + self["_one"])
        else:
            gate = gate * mx.sigmoid(gate)
        return self._down(self, gate * up, onto)


class GeluMLP(nn.Module):
    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.up_proj = nn.Linear(config.dim, config.ffn_dim, bias=False)
        self.down_proj = nn.Linear(config.ffn_dim, config.dim, bias=False)
        self._up, self._down = Product("up_proj"), Product("down_proj")

    def prepare(self) -> None:
        """See `Transformer.prepare`."""
        self._up.prepare(self)
        self._down.prepare(self)

    def __call__(self, x: mx.array, onto: mx.array | None = None) -> mx.array:
        x = gelu(self._up(self, x))  # erf, not the tanh approximation, as Mimi was trained
        return self._down(self, x, onto)


class Block(nn.Module):
    """Pre-norm attention and MLP, each optionally scaled per channel."""

    def __init__(self, config: TransformerConfig, rope: Rope | None):
        super().__init__()
        self.input_layernorm = _norm(config)
        self.self_attn = Attention(config, rope)
        self.post_attention_layernorm = _norm(config)
        self.mlp = SwiGLU(config) if config.mlp == "swiglu" else GeluMLP(config)
        self._layer_scale = config.layer_scale
        if config.layer_scale:
            self.attention_scale = mx.full((config.dim,), 0.01)
            self.mlp_scale = mx.full((config.dim,), 0.01)

    def __call__(
        self, x: mx.array, keys: mx.array, values: mx.array, at: Step, *, last_only: bool = False
    ) -> tuple[mx.array, mx.array, mx.array]:
        """Rows x (B * T, dim), this layer's cache and its step; the rows and the cache after it.

        last_only: (B, dim), only the last row of each sequence comes out.
        """
        attention, mlp, h = self["self_attn"], self["mlp"], self["input_layernorm"](x)
        if last_only:
            x = x[at.n_steps - 1 :: at.n_steps]
        if not self._layer_scale:
            x, keys, values = attention(h, keys, values, at, x, last_only=last_only)
            return mlp(self["post_attention_layernorm"](x), x), keys, values
        y, keys, values = attention(h, keys, values, at, last_only=last_only)
        x = x + y * self.attention_scale
        return x + mlp(self["post_attention_layernorm"](x)) * self.mlp_scale, keys, values


class Transformer(nn.Module):
    """A stack of blocks over (B, T, dim) with its state passed in and out."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        base = config.rope_base
        rope = None if base is None else Rope(config.head_dim, base, config.rope_scaling)
        self.layers = [Block(config, rope) for _ in range(config.n_layers)]
        if config.final_norm:
            self.norm = _norm(config)
        self._config, self._rope = config, rope

    def prepare(self) -> None:
        """Makes the weights ready to be read in few large products (`Product`); costs no memory, changes no name."""
        for module in self.modules():
            if isinstance(module, Attention | SwiGLU | GeluMLP | RMSNorm):
                module.prepare()

    def make_state(self, batch: int, dtype: mx.Dtype, n_positions: int | None = None) -> CacheState:
        """A fresh state with room for `n_positions`, 0 for one that grows with each call; windowed attention needs no
        number: its ring never fills up."""
        c = self._config
        if n_positions is None:
            if c.window is None:
                raise ValueError(
                    "attention without a window needs n_positions, the number of positions to make room for"
                )
            n_positions = c.window + RING_BLOCK - 1
        ring = c.window is not None
        return cache.make_cache(batch, c.n_layers, c.n_kv_heads, n_positions, c.head_dim, dtype, ring=ring)

    def __call__(self, x: mx.array, state: CacheState, *, last_only: bool = False) -> tuple[mx.array, CacheState]:
        """x (B, T, dim) at the positions that follow `state`; (B, T, dim) and the state after them.

        last_only: (B, 1, dim), what the last position becomes; the others' last layer is not computed to its end.

        The caller sees to it that a cache without a window has T free positions, or none at all, and grows.
        """
        batch, n_steps, dim = x.shape
        n_slots, window = cache.capacity(state), self._config.window
        block = BLOCK if window is None else min(RING_BLOCK, n_slots - window + 1)
        outputs = []
        for start in range(0, n_steps, block):
            h = x[:, start : start + block] if n_steps > block else x
            n = h.shape[1]
            h, state = self.rows(h.reshape(batch * n, dim), n, state, last_only=last_only)
            outputs.append(h.reshape(batch, -1, dim))
        if last_only:
            return outputs[-1], state
        return outputs[0] if len(outputs) == 1 else mx.concatenate(outputs, axis=1), state

    def rows(
        self, x: mx.array, n_steps: int, state: CacheState, *, last_only: bool = False
    ) -> tuple[mx.array, CacheState]:
        """`__call__` for rows x (B * T, dim), those of a sequence together, of at most `BLOCK` positions."""
        c, offset, padding = self._config, state["offset"], state["padding"]
        at = cache.step(offset, n_steps, cache.capacity(state), c.window, padding)
        if n_steps == 1 and isinstance(offset, int) and x.dtype == mx.float32 and self._rope is not None:
            positions = tuple(offset - n for n in padding) if any(padding) else (offset,)
            at = at._replace(turns=self._rope.turns(positions, c.n_heads + c.n_kv_heads, c.n_kv_heads))
        keys, values, layers = [], [], self["layers"]
        for layer, old_keys, old_values in zip(layers, state["keys"], state["values"], strict=True):
            is_cut = last_only and n_steps > 1 and layer is layers[-1]
            x, new_keys, new_values = layer(x, old_keys, old_values, at, last_only=is_cut)
            keys.append(new_keys)
            values.append(new_values)
        if c.final_norm:
            x = self["norm"](x)
        return x, {**state, "offset": offset + n_steps, "keys": keys, "values": values}
