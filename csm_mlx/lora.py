"""Adapters: low-rank changes of named linear layers, beside weights that stay as they are.

LoRA (https://arxiv.org/abs/2106.09685) adds `alpha / rank` (AB)ᵀ to a matrix W. DoRA
(https://arxiv.org/abs/2402.09353) brings the rows of that sum to lengths that are learnt too. W may be quantized, which
is QLoRA (https://arxiv.org/abs/2305.14314).
"""

import math
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_unflatten

from csm_mlx.errors import ConfigError
from csm_mlx.models.csm import CsmModel
from csm_mlx.quantize import dequantized_rows, named_parameters
from csm_mlx.strict import Strict

DEFAULT_TARGETS = ("backbone.*_proj", "depth_decoder.*_proj", "projection")
"""All linear layers but the heads, which are most of what is heard and small enough to train whole."""

Method = Literal["lora", "dora", "full"]


@dataclass(frozen=True, kw_only=True)
class AdapterConfig(Strict):
    """Which layers are adapted and how."""

    method: Literal["lora", "dora"] = "lora"
    rank: int = 8
    alpha: float = 16.0
    """The change counts `alpha / rank` times."""
    dropout: float = 0.0
    """Share of a layer's inputs that the change does not see in training."""
    targets: tuple[str, ...] = DEFAULT_TARGETS
    """Module paths of `CsmModel`, with `*`, `?` and `[...]`; `*` crosses dots."""

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ConfigError(f"rank is {self.rank}, expected 1 or more (8 is usual)")
        if not 0 < self.alpha < math.inf:
            raise ConfigError(f"alpha is {self.alpha}, expected a number above 0 (twice the rank is usual)")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout is {self.dropout}, expected 0 (off) or more and below 1")
        if not self.targets:
            raise ConfigError(f"targets is empty, expected patterns such as {', '.join(DEFAULT_TARGETS)}")

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


class LoraLinear(nn.Module):
    """A linear layer (out, in) without bias, and the low-rank change of it: `lora_a` (in, rank), `lora_b` (rank, out).

    The change is computed in the type of the layer's input; `lora_b` is zero at the start, and the change with it.
    """

    def __init__(self, linear: nn.Linear | nn.QuantizedLinear, config: AdapterConfig, key: mx.array):
        super().__init__()
        n_out, n_in = _shape(linear)
        bound = n_in**-0.5
        self.linear = linear
        self.lora_a = mx.random.uniform(-bound, bound, (n_in, config.rank), key=key)
        self.lora_b = mx.zeros((config.rank, n_out))
        self._scale, self._dropout = config.scale, config.dropout
        self._key: mx.array | None = None

    def _dropped(self, x: mx.array) -> mx.array:
        if not (self.training and self._dropout):
            return x
        kept = mx.random.bernoulli(1 - self._dropout, x.shape, key=self._key)
        return mx.where(kept, x / (1 - self._dropout), 0).astype(x.dtype)

    def __call__(self, x: mx.array) -> mx.array:
        y = self.linear(x)
        low = self._dropped(x).astype(y.dtype) @ self.lora_a.astype(y.dtype)
        return mx.addmm(y, low, self.lora_b.astype(y.dtype), alpha=self._scale)

    def change(self, weight: mx.array, first: int = 0) -> mx.array:
        """Rows `weight` (n, in) of the base, from row `first` on, with the change in them: (n, in) float32."""
        a, b = self.lora_a.astype(mx.float32), self.lora_b.astype(mx.float32)[:, first : first + weight.shape[0]]
        return mx.addmm(weight.astype(mx.float32), b.T, a.T, alpha=self._scale)


class DoraLinear(LoraLinear):
    """A `LoraLinear` whose matrix W + change has rows of the lengths `magnitude` (out,), at the start those of W."""

    def __init__(self, linear: nn.Linear | nn.QuantizedLinear, config: AdapterConfig, key: mx.array):
        super().__init__(linear, config, key)
        self._squares = mx.sum(mx.square(_weight(linear)), axis=1)
        self.magnitude = mx.sqrt(self._squares)
        self._stretch: mx.array | None = None

    def stretch(self) -> mx.array:
        """(out,) float32: what each row of W + change is multiplied with; no gradient through the rows' lengths.

        |w + d|² = |w|² + 2 w·d + |d|² needs no matrix as large as W: w·d goes through the layer, quantized or not.
        """
        a, b = self.lora_a.astype(mx.float32), self.lora_b.astype(mx.float32)
        w_a = self.linear(self.lora_a.T.astype(_dtype(self.linear))).astype(mx.float32)
        squares = self._squares + 2 * self._scale * (w_a * b).sum(axis=0)
        squares = squares + self._scale**2 * (b * ((a.T @ a) @ b)).sum(axis=0)
        return self.magnitude.astype(mx.float32) / mx.stop_gradient(_length(squares))

    def __call__(self, x: mx.array) -> mx.array:
        y = super().__call__(x)
        return y * (self.stretch() if self._stretch is None else self._stretch).astype(y.dtype)

    def change(self, weight: mx.array, first: int = 0) -> mx.array:
        changed = super().change(weight, first)
        lengths = _length(mx.sum(mx.square(changed), axis=1))
        return changed * (self.magnitude[first : first + weight.shape[0]].astype(mx.float32) / lengths)[:, None]


_LINEAR = (nn.Linear, nn.QuantizedLinear)
_LAYERS = {"lora": LoraLinear, "dora": DoraLinear}
_PARTS = ("lora_a", "lora_b", "magnitude")


def _length(squares: mx.array) -> mx.array:
    return mx.sqrt(mx.maximum(squares, 1e-24))  # the rows that pad a head are zero


def _shape(linear: nn.Linear | nn.QuantizedLinear) -> tuple[int, int]:
    n_out, width = linear["weight"].shape
    return n_out, width * 32 // linear.bits if isinstance(linear, nn.QuantizedLinear) else width


def _dtype(linear: nn.Linear | nn.QuantizedLinear) -> mx.Dtype:
    """Of the inputs that a layer is made for."""
    dtype = linear["scales" if isinstance(linear, nn.QuantizedLinear) else "weight"].dtype
    return mx.float32 if dtype == mx.uint8 else dtype  # the scales of mxfp4 and its like tell nothing


def _weight(linear: nn.Linear | nn.QuantizedLinear) -> mx.array:
    """(out, in) float32."""
    if not isinstance(linear, nn.QuantizedLinear):
        return linear["weight"].astype(mx.float32)
    numbers = {"group_size": linear.group_size, "bits": linear.bits, "mode": linear.mode}
    return dequantized_rows(linear["weight"], linear["scales"], linear.get("biases"), **numbers)


def _linears(model: CsmModel) -> dict[str, nn.Linear | nn.QuantizedLinear]:
    """The model's own linear layers by path, whether adapted or not."""
    return {p.removesuffix(".linear"): m for p, m in model.named_modules() if isinstance(m, _LINEAR)}


def target_paths(model: CsmModel, targets: tuple[str, ...]) -> list[str]:
    """The linear layers that the patterns name, sorted; `ConfigError` for a pattern that names none."""
    paths = sorted(_linears(model))
    for pattern in targets:
        if not any(fnmatchcase(path, pattern) for path in paths):
            raise ConfigError(
                f"the target {pattern!r} names no layer of this model; name some of "
                f"{', '.join(_abridged(paths))}, with * for any part"
            )
    return [path for path in paths if any(fnmatchcase(path, pattern) for pattern in targets)]


def _abridged(paths: list[str]) -> list[str]:
    """Paths with `*` for the numbers of layers, each once."""
    return list(dict.fromkeys(".".join("*" if part.isdigit() else part for part in p.split(".")) for p in paths))


def adapters(model: nn.Module) -> dict[str, LoraLinear]:
    """The adapted layers by path, sorted."""
    return dict(sorted((path, m) for path, m in model.named_modules() if isinstance(m, LoraLinear)))


def adapted(model: CsmModel, config: AdapterConfig, *, seed: int = 0) -> dict[str, LoraLinear]:
    """The layers that `attach` puts into a model, by path; nothing is computed yet.

    `ConfigError` when the model is adapted already, a target names no layer, or the rank is above a layer's.
    """
    if adapters(model):
        raise ConfigError("the model has an adapter already; fuse or detach it first")
    layers = _linears(model)
    paths = target_paths(model, config.targets)
    for path in paths:
        n_out, n_in = _shape(layers[path])
        if config.rank > min(n_out, n_in):
            raise ConfigError(
                f"rank is {config.rank}, but {path} is {n_in} by {n_out}; give at most {min(n_in, n_out)}, "
                "or leave that layer out of the targets"
            )
    make, keys = _LAYERS[config.method], mx.random.split(mx.random.key(seed), len(paths))
    return {path: make(layers[path], config, key) for path, key in zip(paths, keys, strict=True)}


def attach(model: CsmModel, config: AdapterConfig, *, seed: int = 0) -> list[str]:
    """Adapts the layers that `config` names, in place and changing nothing yet; returns their paths.

    `ConfigError` as `adapted`.
    """
    layers = adapted(model, config, seed=seed)
    for layer in layers.values():
        layer.linear.freeze()
        layer.train(model.training)
        mx.eval(layer)
    model.update_modules(tree_unflatten(list(layers.items())))
    return list(layers)


def detach(model: CsmModel) -> None:
    """Gives the model its own layers back, in place; the adapter is lost."""
    model.update_modules(tree_unflatten([(path, layer.linear) for path, layer in adapters(model).items()]))


def adapter_parameters(model: nn.Module) -> dict[str, mx.array]:
    """The adapter's own arrays by name, such as `backbone.layers.0.self_attn.q_proj.lora_a`, sorted."""
    found = {}
    for path, layer in adapters(model).items():
        found |= {f"{path}.{name}": layer[name] for name in _PARTS if name in layer}
    return found


def adapter_shapes(model: CsmModel, config: AdapterConfig) -> dict[str, tuple[int, ...]]:
    """The shapes of `adapter_parameters` once `config` is attached to `model`, by name.

    `ConfigError` for a target that names no layer.
    """
    layers, shapes = _linears(model), {}
    for path in target_paths(model, config.targets):
        n_out, n_in = _shape(layers[path])
        shapes |= {f"{path}.lora_a": (n_in, config.rank), f"{path}.lora_b": (config.rank, n_out)}
        if config.method == "dora":
            shapes[f"{path}.magnitude"] = (n_out,)
    return shapes


def trainable(model: CsmModel, method: Method) -> dict[str, mx.array]:
    """Freezes all that `method` does not train, in place; returns what it does, by name.

    `ConfigError` for `lora` and `dora` without an adapter, and for `full` with one or with quantized layers.
    """
    present = adapters(model)
    if method == "full":
        if present:
            raise ConfigError("full fine-tuning was asked for, but the model has an adapter; fuse or detach it first")
        if any(isinstance(m, nn.QuantizedLinear | nn.QuantizedEmbedding) for _, m in model.named_modules()):
            raise ConfigError(
                "full fine-tuning needs float weights, this model is quantized; give its float original, or train "
                "an adapter with lora or dora"
            )
        model.unfreeze()
        return named_parameters(model)
    if not present or any(type(layer) is not _LAYERS[method] for layer in present.values()):
        raise ConfigError(f"{method} was asked for, but no such adapter is attached; attach one first")
    model.freeze()
    for layer in present.values():
        layer.unfreeze(keys=[name for name in _PARTS if name in layer], recurse=False)
    return adapter_parameters(model)


def seed_dropout(model: nn.Module, key: mx.array) -> None:
    """Draws every layer's dropout from `key` from now on, so that a recomputed forward drops the same.

    A layer that is called twice drops the same places both times: give a new key for every micro-batch. Without
    one, MLX's global state is drawn from.
    """
    layers = list(adapters(model).values())
    for layer, own in zip(layers, mx.random.split(key, len(layers)), strict=True):
        layer._key = own


def settle(model: CsmModel) -> None:
    """Makes an adapter ready to speak, not to be trained on: in the model's type, with DoRA's factors computed."""
    for layer in adapters(model).values():
        if isinstance(layer, DoraLinear):
            layer._stretch = layer.stretch().astype(model.dtype)
        layer.lora_a, layer.lora_b = layer.lora_a.astype(model.dtype), layer.lora_b.astype(model.dtype)
        mx.eval(layer)
        layer.freeze()


def fuse_model(model: CsmModel, *, dequantize: bool = False, only_float: bool = False) -> None:
    """Puts the adapter into the layers' own weights, in place; computed in float32, one layer at a time.

    Quantized layers are quantized again as they were, which rounds the change too.

    dequantize: leave them float instead, of the model's type.
    only_float: leave them adapted instead.
    """
    for path, layer in adapters(model).items():
        base = layer.linear
        quantized = isinstance(base, nn.QuantizedLinear)
        if quantized and only_float:
            continue
        fused = nn.Linear(1, 1, bias=False)
        dtype = model.dtype if quantized and dequantize else _dtype(base)
        fused.weight = layer.change(_weight(base)).astype(dtype)
        if isinstance(base, nn.QuantizedLinear) and not dequantize:
            fused = nn.QuantizedLinear.from_linear(fused, base.group_size, base.bits, mode=base.mode)
        fused.train(model.training)
        mx.eval(fused.parameters())
        model.update_modules(tree_unflatten([(path, fused)]))
