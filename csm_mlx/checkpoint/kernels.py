"""Whether a device can multiply with a model's quantized layers: MLX's CUDA backend has no kernel for some shapes."""

from collections.abc import Callable, Hashable, Iterator
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from csm_mlx.models.csm import CsmModel
from csm_mlx.models.moshi import MoshiModel
from csm_mlx.nn.linear import Product

N_ROWS = (1, 8)
"""Of the products tried: one row is a step of one conversation; several go to other kernels."""
MESSAGE = "No implementation for problem shape"
"""Of MLX's `[quantized_matmul]`, where a kernel is lacking."""

_Trial = tuple[tuple[str, ...], Callable[[mx.array], mx.array]]
"""Paths of quantized layers that are multiplied with at once, and how."""


def may_lack() -> bool:
    """Whether the default device is one whose kernels have gaps: a GPU that is not Metal's."""
    return mx.default_device().type == mx.DeviceType.gpu and not mx.metal.is_available()


def lacking(model: CsmModel | MoshiModel, run: Callable[[mx.array], object] = mx.eval) -> list[str]:
    """Paths of the quantized layers that `run` cannot compute a product of, each distinct shape tried once.

    The layers are tried as they are used: several as one product where the model joins them, heads without the rows
    that are never drawn. Other errors than the one of a lacking kernel are passed on.
    """
    model.prepare()
    layers, found = dict(model.named_modules()), []
    good: dict[Hashable, bool] = {}
    for paths, multiply in _trials(model):
        members = [layers[path] for path in paths]
        packed = [layer for layer in members if isinstance(layer, nn.QuantizedLinear)]
        if len(packed) < len(members):
            continue
        shape = tuple((*layer.weight.shape, layer.bits, layer.group_size, layer.mode) for layer in packed)
        if shape not in good:
            width = packed[0].weight.shape[1] * 32 // packed[0].bits
            good[shape] = all(_runs(run, multiply, mx.zeros((n, width), model.dtype)) for n in N_ROWS)
        found += [] if good[shape] else paths
    return found


def _runs(run: Callable[[mx.array], object], multiply: Callable[[mx.array], mx.array], x: mx.array) -> bool:
    try:
        run(multiply(x))
    except (RuntimeError, ValueError) as error:
        if MESSAGE not in str(error):
            raise
        return False
    return True


def _trials(model: CsmModel | MoshiModel) -> Iterator[_Trial]:
    if isinstance(model, CsmModel):
        yield ("projection",), model.depth_input
        for codebook in range(model.config.n_codebooks):
            path = f"audio_head.{codebook - 1}" if codebook else "codebook0_head"
            yield (path,), lambda x, codebook=codebook: model.code_logits(x, codebook)
    else:
        yield from _moshi_trials(model)
    for path, module in model.named_modules():
        for product in vars(module).values():
            if path and isinstance(product, Product):
                yield tuple(f"{path}.{name}" for name in product.names), _multiplied(product, module)


def _moshi_trials(model: MoshiModel) -> Iterator[_Trial]:
    """What lies outside of its transformers, joined as the model joins it."""
    together: list[tuple[str, tuple[str | int, ...]]] = [("", ("text_head",))]
    together += [
        (name, tuple(range(len(model[name])))) for name in ("extra_heads", "depth_projections") if name in model
    ]
    together += [("audio_heads", (k,)) for k in range(model.config.n_generated)]
    for prefix, names in together:
        if names:
            owner, product = model[prefix] if prefix else model, Product(*names)
            product.prepare(owner)
            yield tuple(f"{prefix}.{name}".lstrip(".") for name in names), _multiplied(product, owner)


def _multiplied(product: Product, owner: Any) -> Callable[[mx.array], mx.array]:
    return lambda x: product(owner, x)
