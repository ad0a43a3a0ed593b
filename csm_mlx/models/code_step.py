"""What a frame of CSM does for each of its codes but the first."""

from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx

from csm_mlx.nn.cache import CacheState
from csm_mlx.nn.linear import Product
from csm_mlx.nn.piece import Piece
from csm_mlx.nn.transformer import RowAt, Transformer

Draw = Callable[..., mx.array]
"""Codes (B, 1) of logits (B, codebook_size) and, unless it is greedy, of noise of that shape."""

MOST_STEPS = 8
"""Kept by a model, one for each way to draw."""


class CodeStep:
    """The depth decoder's step, the head of its codebook and the draw: one compiled piece, whatever the codebook, where
    all of the decoder's weights are prepared and its heads are alike."""

    def __init__(self, decoder: Transformer, heads: Any, logits: Sequence[Product], draw: Draw):
        """logits: of the first codebook, which is none of these, and of the others, whose layers are `heads`."""
        self._decoder, self._heads, self._logits, self._draw = decoder, heads, logits, draw
        self._kind, self._made_of, self._piece = logits[-1].kind, decoder.row_piece, None
        if self._made_of is not None and self._heads_are_alike():
            self._piece = Piece(self._drawn, self._made_of.made_of)

    def is_current(self) -> bool:
        """Whether it was made of what the model is now made of."""
        if self._decoder.row_piece is not self._made_of or not self._heads_are_alike():
            return False
        return self._piece is None or self._piece.is_current()

    def __call__(
        self, codebook: int, x: mx.array, n_steps: int, noise: Sequence[mx.array], state: CacheState
    ) -> tuple[mx.array, CacheState]:
        """Rows x (B * n_steps, depth dim), those of a sequence together, and the depth decoder's state before them; the
        code (B, 1) of a codebook that the last one predicts, and the state after them."""
        batch, logits = x.shape[0] // n_steps, self._logits[codebook]
        if self._piece is not None:
            at = self._decoder.row_at(state, n_steps, batch, x.dtype)
            head = logits.operands(self._heads, batch, x.dtype)
            if at is not None and head is not None:
                code, keys, values = self._piece(x, head, noise, state["keys"], state["values"], at)
                return code, {**state, "offset": state["offset"] + n_steps, "keys": keys, "values": values}
        y, state = self._decoder.rows(x, n_steps, state, last_only=True)
        return self._draw(logits(self._heads, y), *noise), state

    def _drawn(
        self,
        x: mx.array,
        head: list[mx.array],
        noise: Sequence[mx.array],
        keys: list[mx.array],
        values: list[mx.array],
        at: RowAt,
    ) -> tuple[mx.array, list[mx.array], list[mx.array]]:
        y, keys, values = self._decoder.through_row(x, keys, values, at)
        return self._draw(self._logits[-1].by(head, y), *noise), keys, values

    def _heads_are_alike(self) -> bool:
        return all(product.kind == self._kind for product in self._logits[1:])


class CodeSteps:
    """The last few that a model was asked for."""

    def __init__(self) -> None:
        self._steps: dict[Draw, CodeStep] = {}

    def of(self, draw: Draw, decoder: Transformer, heads: Any, logits: Sequence[Product]) -> CodeStep:
        """For these draws, of what the model is made of now."""
        step = self._steps.get(draw)
        if step is None or not step.is_current():
            # Others than the current ones hold weights that the model no longer has.
            self._steps = {draw: step for draw, step in self._steps.items() if step.is_current()}
            if len(self._steps) == MOST_STEPS:
                del self._steps[next(iter(self._steps))]
            step = self._steps[draw] = CodeStep(decoder, heads, logits, draw)
        return step
