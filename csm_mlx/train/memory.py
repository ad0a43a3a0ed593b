"""What a training will need, told before it starts, and what to change where that is too much."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import mlx.core as mx

from csm_mlx.config import CsmConfig, TransformerConfig
from csm_mlx.generate.session import Csm
from csm_mlx.lora import adapter_shapes
from csm_mlx.quantize import bits_per_weight, named_parameters
from csm_mlx.train.config import TrainConfig
from csm_mlx.train.data import n_chosen_frames, n_fitting
from csm_mlx.train.update import UPDATED_ELEMENTS

_LOGITS_COPIES = 3.5
_Q4_BITS = 5.0
"""A weight of a q4 model, its wide layers included."""


class Lengths(Protocol):
    """What an example, encoded or not, tells of its size."""

    @property
    def turn_rows(self) -> tuple[int, ...]: ...

    @property
    def n_frames(self) -> int: ...


@dataclass(frozen=True, kw_only=True)
class MemoryEstimate:
    """Bytes at the peak."""

    weights_bytes: int
    """The model and its codec."""
    training_bytes: int
    """Beside them: float32 weights that are trained, their gradients and moments, and the update's own."""
    activation_bytes: int
    """What the longest batch keeps for the way back."""
    n_trainable: int
    smaller: tuple[tuple[str, int], ...] = ()
    """(what to change, total bytes with that change), the least loss of comfort first."""

    @property
    def total_bytes(self) -> int:
        return self.weights_bytes + self.training_bytes + self.activation_bytes

    def advice(self, available_bytes: int) -> str | None:
        """What to change when that is all there is; None where it suffices."""
        if self.total_bytes <= available_bytes:
            return None
        changes = [f"{what} ({_gb(n)})" for what, n in self.smaller if n < 0.98 * self.total_bytes]
        return (
            f"this training needs about {_gb(self.total_bytes)} (model {_gb(self.weights_bytes)}, what is trained "
            f"{_gb(self.training_bytes)}, activations {_gb(self.activation_bytes)}), here are {_gb(available_bytes)}; "
            f"each of these alone makes it: {', '.join([*changes, 'shorter clips'])}"
        )


def _gb(n_bytes: float) -> str:
    return f"{n_bytes / 1e9:.1f} GB"


def estimate(csm: Csm, config: TrainConfig, examples: Sequence[Lengths]) -> MemoryEstimate:
    """The peak of training `csm`, its adapter not yet attached, on these examples; computed from sizes alone.

    Within a factor of 1.5 of what MLX reports on the shapes tried (`tests/train/test_memory.py`).
    """
    codec_bytes = sum(p.nbytes for p in named_parameters(csm.codec).values())
    plain = _estimate(csm, config, examples, codec_bytes)
    quantized_bytes = int((plain.weights_bytes - codec_bytes) * _Q4_BITS / max(_Q4_BITS, bits_per_weight(csm.model)))
    changes = [
        ("--checkpoint-grads", replace(config, checkpoint_blocks=True)),
        (f"--batch 1 --accumulate {config.batch * config.accumulate}", replace(config, batch=1)),
    ]
    if config.method == "full":
        changes.append(("--method lora", replace(config, method="lora")))
    smaller = [(what, _estimate(csm, changed, examples, codec_bytes).total_bytes) for what, changed in changes]
    if (adapter := config.adapter_config) is not None:
        lower = replace(adapter, rank=max(1, adapter.rank // 4))
        changed = _estimate(csm, replace(config, adapter=lower), examples, codec_bytes)
        smaller.append((f"--rank {lower.rank} or fewer targets", changed.total_bytes))
        smaller.append(("a base at q4", plain.total_bytes - plain.weights_bytes + codec_bytes + quantized_bytes))
    return replace(plain, smaller=tuple(smaller))


def _estimate(csm: Csm, config: TrainConfig, examples: Sequence[Lengths], codec_bytes: int) -> MemoryEstimate:
    model, parameters = csm.model, named_parameters(csm.model)
    if config.adapter_config is None:
        sizes = [p.size for p in parameters.values()]
    else:
        sizes = [_product(shape) for shape in adapter_shapes(model, config.adapter_config).values()]
    n_trainable = sum(sizes)
    in_float32 = config.adapter_config is not None or model.dtype == mx.float32
    n_arrays = 3 + (0 if config.adapter_config is None and in_float32 else 1)  # gradient, moments, float32 weights
    # Of what is updated at once the new weights and moments, and on the way to them four more of one array.
    update = 4 * (3 * min(n_trainable, max(UPDATED_ELEMENTS, *sizes)) + 4 * max(sizes))
    backward = _activation_bytes(model.config, model.dtype.size, config, examples)
    if config.accumulate > 1:
        backward += 4 * n_trainable
    if config.adapter_config is None:
        backward += 8 * max(sizes)  # the embeddings' gradients, one per look-up
    return MemoryEstimate(
        weights_bytes=codec_bytes + sum(p.nbytes for p in parameters.values()),
        training_bytes=4 * n_arrays * n_trainable + max(0, update - backward),
        activation_bytes=backward,
        n_trainable=n_trainable,
    )


def _product(shape: tuple[int, ...]) -> int:
    size = 1
    for n in shape:
        size *= n
    return size


def _activation_bytes(model: CsmConfig, itemsize: int, config: TrainConfig, examples: Sequence[Lengths]) -> int:
    """Of the batch of the longest examples: both transformers, the larger one's way back, and the logits."""
    max_rows = min(config.max_rows or model.max_positions, model.max_positions)
    rows = sorted(_kept_rows(example.turn_rows, max_rows) for example in examples)[-config.batch :]
    frames = sorted(example.n_frames for example in examples)[-config.batch :]
    repeats = -(-config.batch // len(rows))  # fewer examples than a batch come several times
    n_chosen = repeats * sum(n_chosen_frames(n, config.depth_share) for n in frames)
    shapes = ((model.backbone, config.batch, rows[-1]), (model.depth, n_chosen, model.n_codebooks))
    kept, backwards = zip(*(_stack_bytes(c, batch, length, config) for c, batch, length in shapes), strict=True)
    embedded = n_chosen * model.n_codebooks * (2 * model.backbone.dim + model.depth.dim) * itemsize
    embedded += 3 * config.batch * rows[-1] * model.backbone.dim * itemsize
    n_logits = (repeats * sum(frames) + n_chosen * model.n_codebooks) * model.head_rows
    return int(sum(kept) * itemsize + max(backwards) * itemsize + embedded + _LOGITS_COPIES * 4 * n_logits)


def _kept_rows(turn_rows: tuple[int, ...], max_rows: int) -> int:
    return sum(turn_rows[-max(1, n_fitting(turn_rows, max_rows)) :])


def _stack_bytes(c: TransformerConfig, batch: int, length: int, config: TrainConfig) -> tuple[int, int]:
    """(what a transformer's blocks keep, what the way back through one of them takes besides), in elements."""
    adapter, rows = config.adapter_config, batch * length
    q, kv = c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim
    per_row = 4 * c.dim + 2 * q + 2 * kv + 5 * c.ffn_dim
    if adapter is not None:
        per_row += 7 * adapter.rank
        if adapter.method == "dora":  # what the magnitudes scale
            per_row += 2 * c.dim + q + 2 * kv + 2 * c.ffn_dim
        if adapter.dropout:  # what was not dropped, and where
            per_row += 5 * (5 * c.dim + q + c.ffn_dim) // 4
    scores = batch * c.n_heads * length * length
    block = rows * per_row + scores
    if config.checkpoint_blocks:
        return c.n_layers * rows * (3 * c.dim + 4 * kv), 2 * block + scores
    return c.n_layers * block, block + scores
