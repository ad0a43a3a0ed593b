"""Attention with grouped key/value heads over a cache, in few operations where there is no kernel for it."""

from functools import cache as cached

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from csm_mlx.config import TransformerConfig
from csm_mlx.nn import cache
from csm_mlx.nn.activations import softmax_terms
from csm_mlx.nn.cache import Step
from csm_mlx.nn.layout import on_cpu
from csm_mlx.nn.linear import Layers, Product
from csm_mlx.nn.rope import Rope, turned

_QUERY_BLOCK = 64
"""Positions attended at once on a CPU, which has no kernel that skips the scores that a causal mask hides: small blocks
have few of those."""
_MANY_SCORES = 6_000
"""From which on a softmax of its own costs less than MLX's, whose `exp` on a CPU takes 12 ns."""


class Attention(Layers):
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

    @property
    def products(self) -> tuple[Product, ...]:
        return self._qkv, self._o

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
        batch, many = n_rows // at.n_steps, at.n_steps > 1
        if at.turns is not None:
            x = turned(x.reshape(batch, at.n_steps, -1) if many and batch > 1 else x, at.turns)
        x = (
            x.reshape(batch, at.n_steps, -1, self.head_dim).swapaxes(1, 2)
            if many
            else x.reshape(batch, -1, 1, self.head_dim)
        )
        if at.turns is None and self._rope is not None:
            x, new_values = mx.split(x, (n_turned,), axis=1)
            queries, new_keys = mx.split(self._rope(x, at.positions), (self.n_heads,), axis=1)
        else:
            queries, new_keys, new_values = mx.split(x, (self.n_heads, n_turned), axis=1)
        keys, seen_keys = cache.write(keys, new_keys, at)
        values, seen_values = cache.write(values, new_values, at)
        mask, n_queries, scale = at.mask, at.n_steps, self._scale if at.turns is None else None
        if last_only:
            queries, n_rows, n_queries = queries[:, :, -1:], batch, 1
            mask = mask[..., -1:, :] if isinstance(mask, mx.array) else None
        if n_queries == 1:  # they see the same: the queries of a group are rows of one head
            queries = queries.reshape(n_rows, self.n_kv_heads, -1, self.head_dim)
            y = _seen_by_all(queries, seen_keys, seen_values, scale, mask, self.training)
        elif scale is None and self.n_heads == self.n_kv_heads:
            y = _seen_by_all(queries, seen_keys, seen_values, None, mask, self.training).swapaxes(1, 2)
        else:
            y = _attended(queries, seen_keys, seen_values, scale or 1.0, mask, self.training).swapaxes(1, 2)
        y = y.reshape(n_rows, -1)
        return self._o(self, y, onto), keys, values


def _seen_by_all(
    queries: mx.array,
    keys: mx.array,
    values: mx.array,
    scale: float | None,
    mask: mx.array | str | None,
    has_gradient: bool,
) -> mx.array:
    """(B, n_kv_heads, T, head_dim): what each of T queries sees of what stands in its head, or of what is left of it by
    a mask. scale: None on a CPU, where queries are scaled already (`Step.turns`)."""
    if scale is None and (mask is None or (isinstance(mask, mx.array) and mask.dtype != mx.bool_)):
        keys = keys.swapaxes(2, 3)  # what a CPU does anyway, without scaling
        scores = mx.matmul(queries, keys) if mask is None else mx.addmm(mask, queries, keys)
        if has_gradient or scores.size < _MANY_SCORES:
            return mx.matmul(mx.softmax(scores, axis=-1), values)
        terms, sums = softmax_terms(scores)
        return mx.matmul(terms, values) / sums
    return mx.fast.scaled_dot_product_attention(queries, keys, values, scale=scale or 1.0, mask=mask)


def _attended(
    queries: mx.array,
    keys: mx.array,
    values: mx.array,
    scale: float,
    mask: mx.array | str | None,
    has_gradient: bool,
) -> mx.array:
    """(B, n_heads, T, head_dim): what T queries, the last ones that a causal mask is about, see."""
    n, attend = queries.shape[2], mx.fast.scaled_dot_product_attention
    if not isinstance(mask, str) or n <= _QUERY_BLOCK or not on_cpu():
        return attend(queries, keys, values, scale=scale, mask=mask)
    parts, before, is_quick = [], keys.shape[2] - n, queries.dtype == mx.float32 and not has_gradient
    for start in range(0, n, _QUERY_BLOCK):
        end = min(start + _QUERY_BLOCK, n)
        part, seen = queries[:, :, start:end], before + end
        block_keys, block_values = keys[:, :, :seen], values[:, :, :seen]
        if is_quick:
            parts.append(_attended_by_products(part * scale, block_keys, block_values))
        else:
            parts.append(attend(part, block_keys, block_values, scale=scale, mask=mask))
    return mx.concatenate(parts, axis=2)


def _attended_by_products(queries: mx.array, keys: mx.array, values: mx.array) -> mx.array:
    """`_attended` for scaled queries and a causal mask: a group's queries are rows of one head."""
    (batch, n_heads, n, head_dim), (_, n_kv_heads, seen, _) = queries.shape, keys.shape
    scores = queries.reshape(batch, n_kv_heads, -1, head_dim) @ keys.swapaxes(2, 3)
    hidden = mx.pad(_future(n), [(0, 0), (seen - n, 0)])
    terms, sums = softmax_terms(scores.reshape(batch, n_heads, n, seen) + hidden)
    y = terms.reshape(batch, n_kv_heads, -1, seen) @ values
    return y.reshape(batch, n_heads, n, head_dim) / sums


@cached
def _future(n: int) -> mx.array:
    """What is added to the scores of n positions among themselves: (n, n), -inf above the diagonal."""
    hidden = mx.array(np.triu(np.full((n, n), -np.inf, np.float32), 1))
    mx.eval(hidden)
    return hidden
