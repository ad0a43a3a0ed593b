"""One update of the weights by AdamW (https://arxiv.org/abs/1711.05101)."""

from collections.abc import Iterator
from typing import Any

import mlx.core as mx
import mlx.optimizers as optim

from csm_mlx.train.config import TrainConfig
from csm_mlx.train.state import TrainState

UPDATED_ELEMENTS = 1 << 22
"""Weights that an update makes at once: 16 MB, and as much for each moment; a larger one is not divided."""


def update(
    state: TrainState, gradients: dict[str, mx.array], config: TrainConfig, learning_rate: float
) -> Iterator[dict[str, mx.array]]:
    """Changes the weights and moments of `state`, and yields the new weights, a few at a time: the new ones of all
    beside the old ones would take half as much memory again. `gradients` is emptied for the same reason."""
    optimizer = optim.AdamW(
        learning_rate, betas=list(config.betas), weight_decay=config.weight_decay, bias_correction=True
    )
    for names in _groups(gradients, UPDATED_ELEMENTS):
        part = {name: gradients.pop(name) for name in names}
        optimizer.state = {
            "step": mx.array(state.step, mx.uint64),
            "learning_rate": mx.array(learning_rate),
            **{name: {"m": state.m[name], "v": state.v[name]} for name in names},
        }
        weights = optimizer.apply_gradients(part, {name: state.weights[name] for name in names})
        moments: dict[str, Any] = optimizer.state
        mx.eval(weights, moments)
        state.weights |= weights
        state.m |= {name: moments[name]["m"] for name in names}
        state.v |= {name: moments[name]["v"] for name in names}
        yield weights


def _groups(arrays: dict[str, mx.array], n_elements: int) -> list[list[str]]:
    """Names in order, in groups of at most `n_elements` elements or of one larger array."""
    groups, size = [], n_elements
    for name, array in arrays.items():
        if size + array.size > n_elements:
            groups.append([])
            size = 0
        groups[-1].append(name)
        size += array.size
    return groups
