"""The one Transformer: those of CSM, Mimi and Moshi differ in `TransformerConfig` only."""

from functools import lru_cache, partial
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from csm_mlx.config import TransformerConfig
from csm_mlx.nn import cache
from csm_mlx.nn.activations import gelu, swiglu
from csm_mlx.nn.attention import Attention
from csm_mlx.nn.cache import CacheState, Step
from csm_mlx.nn.layout import on_cpu
from csm_mlx.nn.linear import Layers, Product
from csm_mlx.nn.norm import LayerNorm, RMSNorm
from csm_mlx.nn.piece import Piece
from csm_mlx.nn.rope import Rope

BLOCK = 512
"""Positions run at once, for which the weights are read once: bounds the memory of a call."""
RING_BLOCK = 256
"""The same for windowed attention, whose ring it sizes."""
MASKED_SLOTS = 2048
"""Up to which a step looks at all slots of a cache, with a mask for those not written yet: so every step is the same
graph, and is compiled once. Windowed attention's are no such caches."""
FEW_SLOTS = 64
"""Up to which that mask, and what else a position is as data, is kept: a depth decoder comes back to it each frame."""
FEW_STEPS = 2
"""Up to which several positions are compiled too: as many as such a decoder may begin with, or a frame of sound is in a
ring."""

_OWN_WEIGHTS = ("weight", "bias", "attention_scale", "mlp_scale")
"""Of norms and blocks."""


def _norm(config: TransformerConfig) -> nn.Module:
    make = RMSNorm if config.norm == "rms" else LayerNorm
    return make(config.dim, eps=config.norm_eps)


class SwiGLU(Layers):
    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.gate_proj = nn.Linear(config.dim, config.ffn_dim, bias=False)
        self.up_proj = nn.Linear(config.dim, config.ffn_dim, bias=False)
        self.down_proj = nn.Linear(config.ffn_dim, config.dim, bias=False)
        self._gate_up, self._down = Product("gate_proj", "up_proj", in_parts=True), Product("down_proj")
        self._is_quick = False

    @property
    def products(self) -> tuple[Product, ...]:
        return self._gate_up, self._down

    def prepare(self) -> None:
        super().prepare()
        self._is_quick = on_cpu()

    def __call__(self, x: mx.array, onto: mx.array | None = None) -> mx.array:
        is_quick = self._is_quick and x.dtype == mx.float32
        # For gaps MLX would compile swiglu's kernel once more, a second at the first sound.
        gate, up = self._gate_up.parts(self, x, without_gaps=is_quick)
        is_quick = is_quick and gate.dtype == mx.float32
        return self._down(self, swiglu(gate, up) if is_quick else gate * mx.sigmoid(gate) * up, onto)


class GeluMLP(Layers):
    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.up_proj = nn.Linear(config.dim, config.ffn_dim, bias=False)
        self.down_proj = nn.Linear(config.ffn_dim, config.dim, bias=False)
        self._up, self._down = Product("up_proj"), Product("down_proj")

    @property
    def products(self) -> tuple[Product, ...]:
        return self._up, self._down

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
        self._row_at = partial(_row_at, config, rope)
        self._kept_row_at = lru_cache(maxsize=2 * FEW_SLOTS)(self._row_at)
        self._piece: Piece | None = None

    def prepare(self) -> None:
        """Makes the weights ready to be read in few large products (`Product`), and a row in a masked cache, or a frame
        in a ring, to be one compiled piece; costs no memory, changes no name."""
        made_of: list[tuple[Any, Any, Any]] = []
        is_plain = True
        for module in self.modules():
            if isinstance(module, Layers | RMSNorm):
                module.prepare()
            if isinstance(module, Layers):
                for product in module.products:
                    made_of.extend(held := product.made_of(module))
                    is_plain = is_plain and bool(held)
            elif isinstance(module, RMSNorm | LayerNorm | Block):
                made_of.extend((module, name, module[name]) for name in _OWN_WEIGHTS if name in module)
        if not is_plain:
            self._piece = None
        elif self._piece is None or not self._piece.is_current():
            self._piece = Piece(self.through_row, made_of)

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
        return cache.make_cache(batch, c.n_layers, c.n_kv_heads, n_positions, c.head_dim, dtype)

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
        """`__call__` for rows x (B * T, dim), those of a sequence together, of at most `BLOCK` positions.

        Other weights that are given to it after the first position of a cache of `FEW_SLOTS` count from the next one's
        first on.
        """
        offset, padding, n_slots = state["offset"], state["padding"], cache.capacity(state)
        keys, values, batch, window = state["keys"], state["values"], x.shape[0] // n_steps, self._config.window
        # Within a depth decoder's frame it is current, and a ring without a mask does not take it.
        is_sure = n_slots <= FEW_SLOTS and offset > 0 if window is None else n_slots <= window
        if self._piece is not None and not is_sure and not self._piece.is_current():
            self._piece = None  # it holds the old weights
        is_piece = self._piece is not None and (n_steps == 1 or last_only == (window is None))
        at = self.row_at(state, n_steps, batch, x.dtype) if is_piece else None
        if self._piece is not None and at is not None:
            x, keys, values = self._piece(x, keys, values, at)
        else:
            step = cache.step(offset, n_steps, n_slots, window, padding)
            if x.dtype == mx.float32 and on_cpu():
                step = _in_few_operations(step, self._config, self._rope, padding, batch)
            x, keys, values = self._through(x, keys, values, step, last_only=last_only)
        return x, {**state, "offset": offset + n_steps, "keys": keys, "values": values}

    @property
    def row_piece(self) -> Piece | None:
        """`through_row`, compiled; None where its weights are not prepared."""
        return self._piece

    def row_at(self, state: CacheState, n_steps: int, batch: int, dtype: mx.Dtype) -> "RowAt | None":
        """The positions that follow `state` as data, for `through_row`; None where those are not the same graph each
        time."""
        offset, n_slots, window = state["offset"], cache.capacity(state), self._config.window
        if window is not None:
            is_same = window < n_slots and n_steps <= FEW_STEPS
            return _ring_at(self._config, self._rope, offset, n_steps, batch, n_slots, dtype) if is_same else None
        is_small = n_slots <= FEW_SLOTS
        if n_slots > MASKED_SLOTS or n_steps > (FEW_STEPS if is_small else 1) or any(state["padding"]):
            return None
        if offset + n_steps > n_slots:
            return None
        make = self._kept_row_at if is_small else self._row_at
        return make(offset, n_steps, batch, n_slots, dtype, on_cpu())

    def through_row(
        self, x: mx.array, keys: list[mx.array], values: list[mx.array], at: "RowAt"
    ) -> tuple[mx.array, list[mx.array], list[mx.array]]:
        """`rows` for positions that are data: rows x (B * T, dim), the cache, and of `row_at`; the last row of each
        sequence (B, dim), or all rows of a ring, and the cache after them."""
        position, slots, mask, *turns = at
        n_steps = x.shape[0] // keys[0].shape[0]
        step = Step(n_steps, None, position, slots, mask, turns[0] if turns else None)
        return self._through(x, keys, values, step, last_only=self._config.window is None)

    def _through(
        self, x: mx.array, old_keys: list[mx.array], old_values: list[mx.array], at: Step, *, last_only: bool = False
    ) -> tuple[mx.array, list[mx.array], list[mx.array]]:
        """Rows x, the cache and its step; the rows and the cache after all layers."""
        keys, values, layers = [], [], self["layers"]
        for layer, layer_keys, layer_values in zip(layers, old_keys, old_values, strict=True):
            is_cut = last_only and at.n_steps > 1 and layer is layers[-1]
            x, layer_keys, layer_values = layer(x, layer_keys, layer_values, at, last_only=is_cut)
            keys.append(layer_keys)
            values.append(layer_values)
        return self["norm"](x) if self._config.final_norm else x, keys, values


RowAt = tuple[mx.array, ...]
"""The first position (), slots, mask and, where there are some, turns, as in `Step`."""


def _row_at(
    config: TransformerConfig,
    rope: Rope | None,
    offset: int,
    n_steps: int,
    batch: int,
    n_slots: int,
    dtype: mx.Dtype,
    is_cpu: bool,
) -> RowAt:
    """Positions of a cache of at most `MASKED_SLOTS`, as data."""
    positions = range(offset, offset + n_steps)
    seen = np.where(np.arange(n_slots) <= np.array(positions)[:, None], np.float32(0), np.float32("-inf"))
    if n_steps == 1:  # as its scores are, so that no layer spreads it
        seen = np.broadcast_to(seen, (batch, config.n_kv_heads, config.n_heads // config.n_kv_heads, n_slots))
    at = [mx.array(offset, mx.int32), mx.array([offset], mx.int32), mx.array(seen, dtype)]
    if dtype == mx.float32 and is_cpu and (turns := _turns(config, rope, *positions)) is not None:
        at.append(turns)
    mx.eval(at)
    return tuple(at)


def _ring_at(
    config: TransformerConfig, rope: Rope | None, offset: int, n_steps: int, batch: int, n_slots: int, dtype: mx.Dtype
) -> RowAt:
    """Positions of a ring with a mask, as data."""
    step = cache.step(offset, n_steps, n_slots, config.window)
    if dtype == mx.float32 and on_cpu():
        step = _in_few_operations(step, config, rope, (), batch)
    assert isinstance(step.mask, mx.array)
    at = (mx.array(offset, mx.int32), step.slots, step.mask)
    return at if step.turns is None else (*at, step.turns)


def _in_few_operations(
    at: Step, config: TransformerConfig, rope: Rope | None, padding: tuple[int, ...], batch: int
) -> Step:
    """The step, with what else each layer would make for itself: on a CPU an operation costs more than what it does.

    For float32, for one position or a ring.
    """
    assert at.offset is not None
    if at.slots.ndim == 1:
        if at.n_steps > 1:
            return at
        return at._replace(turns=_turns(config, rope, *(at.offset - n for n in padding or (0,))))
    mask = np.where(np.array(at.mask), np.float32(0), np.float32("-inf"))
    if config.n_heads == config.n_kv_heads:
        mask = np.broadcast_to(mask, (batch, config.n_heads, *mask.shape))
    return at._replace(turns=_turns(config, rope, *range(at.offset, at.offset + at.n_steps)), mask=mx.array(mask))


def _turns(config: TransformerConfig, rope: Rope | None, *positions: int) -> mx.array | None:
    """See `Step.turns`; a position for all rows, or one for each."""
    if rope is None:
        return None
    return rope.turns(positions, config.n_heads, config.n_kv_heads, config.head_dim**-0.5)
