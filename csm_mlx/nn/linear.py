"""Linear layers that read the same input, as one product."""

from typing import Any

import mlx.core as mx
import mlx.nn as nn

from csm_mlx.nn.layout import LARGE_WEIGHT, Factor, laid_out, lies_by_inputs, multiplied_by_each, times

_ARRAYS = ("weight", "scales", "biases")


class Product:
    """The outputs of an owner's bias-free linear layers side by side, (N, dim) to (N, their rows).

    `prepare` lays the layers' weights out one behind the other, as products read them fastest, and makes their own
    arrays slices of that: memory holds them once, under their own names, and they are read in one go. Where a layer
    has been replaced or given another weight since (training, adapters, `update`), each computes for itself until it
    is prepared again; on a CPU slices of joined columns are then copied for each product, so that adapters are better
    put in place first.
    """

    __slots__ = (
        "_factor",
        "_first_rows",
        "_made_of",
        "_n_rows",
        "_names",
        "_options",
        "_stack",
        "_weights",
        "in_parts",
    )

    def __init__(self, *names: str | int, n_rows: int | None = None, in_parts: bool = False):
        """names: of the layers in their owner. n_rows: how many of a single layer's rows are asked for; else all.
        in_parts: the layers have as many rows each, and `parts` is what they are asked for."""
        self._names, self._n_rows, self.in_parts = names, n_rows, in_parts
        self._made_of: list[tuple[str | int, str, mx.array]] = []
        self._factor: Factor | None = None
        self._first_rows: int | None = None
        """Those of the factor's that are asked for, where it has more."""
        self._weights: list[mx.array] = []
        self._options: dict[str, Any] = {}
        self._stack: mx.array | None = None
        """(layers, dim, their rows), where a prefill would have to copy what comes out side by side."""

    @property
    def names(self) -> tuple[str | int, ...]:
        """Of its layers in their owner."""
        return self._names

    def made_of(self, owner: Any) -> list[tuple[Any, str | int, Any]]:
        """What it was prepared from, as (module, name, what had that name there); nothing where it is not prepared."""
        layers = [(owner, name, owner[name]) for name in self._names] if self._made_of else []
        return [*layers, *((owner[name], key, array) for name, key, array in self._made_of)]

    def prepare(self, owner: Any) -> None:
        """Lays the weights out, if they are not and the layers are of one plain kind."""
        if self._made_of and all(owner[name].get(key) is array for name, key, array in self._made_of):
            return
        self._forget()
        layers = [owner[name] for name in self._names]
        options = _options(layers[0])
        if options is None or any(_options(layer) != options for layer in layers):
            return
        if options:
            self._weights = [_joined(layers, name)[: self._n_rows] for name in _ARRAYS if name in layers[0]]
            self._options = options
            mx.eval(self._weights)
        elif layers[0]["weight"].dtype == mx.float32 and lies_by_inputs():
            if self.in_parts and len(layers) * layers[0]["weight"].size >= LARGE_WEIGHT:
                self._stack = _stacked_by_inputs(layers)
            else:
                self._factor = Factor(_joined_by_inputs(layers))
            self._first_rows = self._n_rows  # columns of some rows would be copied for each product
        else:
            self._factor = Factor(_joined(layers, "weight")[: self._n_rows])
        self._made_of = [(name, key, owner[name][key]) for name in self._names for key in _ARRAYS if key in owner[name]]

    def __call__(self, owner: Any, x: mx.array, onto: mx.array | None = None) -> mx.array:
        """The outputs for x (N, dim), added to `onto` if given."""
        operands = self.operands(owner, x.shape[0], x.dtype)
        if operands is not None:
            return self.by(operands, x, onto)
        ys = [owner[name](x) for name in self._names]
        y = ys[0][..., : self._n_rows] if len(ys) == 1 else mx.concatenate(ys, axis=-1)
        return y if onto is None else onto + y

    def parts(self, owner: Any, x: mx.array, *, without_gaps: bool = False) -> list[mx.array]:
        """The outputs of each layer for x (N, dim); without gaps: in memory nothing lies between the numbers of one,
        row by row or column by column."""
        if self._stack is not None and (operands := self.operands(owner, x.shape[0], x.dtype)) is not None:
            return multiplied_by_each(x, operands[0])
        parts = list(mx.split(self(owner, x), len(self._names), axis=-1))
        if not without_gaps or x.shape[0] == 1:
            return parts
        return [mx.contiguous(part, allow_col_major=True) for part in parts]

    def operands(self, owner: Any, n_rows: int, dtype: mx.Dtype) -> list[mx.array] | None:
        """What `by` multiplies so many rows by; None where the layers have changed and each computes for itself."""
        for name, key, array in self._made_of:
            if owner[name].get(key) is not array:
                self._forget()
                return None
        if self._stack is not None:
            return [self._stack]
        return self._weights or (None if self._factor is None else [self._factor.operand(n_rows, dtype)])

    def by(self, operands: list[mx.array], x: mx.array, onto: mx.array | None = None) -> mx.array:
        """`__call__` with operands of this product, or of another of its `kind`."""
        if self._options:
            weight, scales, *biases = operands  # mxfp4 and its like have no biases
            y = mx.quantized_matmul(x, weight, scales, biases[0] if biases else None, **self._options)
        elif self._stack is not None:
            y = mx.concatenate(multiplied_by_each(x, operands[0]), axis=-1)
        elif self._first_rows is None:
            return times(x, operands[0], onto)
        else:
            y = times(x, operands[0])[:, : self._first_rows]
        return y if onto is None else onto + y

    @property
    def kind(self) -> tuple[dict[str, Any], int | None, bool]:
        """Equal where products differ in their operands alone."""
        return self._options, self._first_rows, bool(self._made_of)

    def _forget(self) -> None:
        self._made_of, self._weights, self._options = [], [], {}
        self._factor = self._first_rows = self._stack = None


class Layers(nn.Module):
    """Linear layers, some of which read the same input."""

    @property
    def products(self) -> tuple[Product, ...]:
        """All of them."""
        raise NotImplementedError

    def prepare(self) -> None:
        """See `Transformer.prepare`."""
        for product in self.products:
            product.prepare(self)


def _options(layer: nn.Module) -> dict[str, Any] | None:
    """The numbers of a quantized layer, none for a float one; None for a layer that is neither."""
    if type(layer) is nn.QuantizedLinear and "bias" not in layer:
        return {"group_size": layer.group_size, "bits": layer.bits, "mode": layer.mode}
    return {} if type(layer) is nn.Linear and "bias" not in layer else None


def _joined(layers: list[nn.Module], name: str) -> mx.array:
    """One array of the layers one behind the other, of which their own ones become slices."""
    if len(layers) == 1:
        return layers[0][name]
    whole = mx.concatenate([layer[name] for layer in layers])
    _share(layers, name, whole)
    return whole


def _joined_by_inputs(layers: list[nn.Module]) -> mx.array:
    """`_joined` of their weights, lying column by column."""
    if len(layers) == 1:
        layers[0]["weight"] = whole = laid_out(layers[0]["weight"], 1, 0)
        return whole
    whole = mx.concatenate([layer["weight"].T for layer in layers], axis=1).T
    _share(layers, "weight", whole)
    return whole


def _stacked_by_inputs(layers: list[nn.Module]) -> mx.array:
    """Their weights, (layers, dim, rows), each of which their own array is, lying column by column."""
    whole = mx.stack([layer["weight"].T for layer in layers])
    mx.eval(whole)
    for layer, columns in zip(layers, whole, strict=True):
        layer["weight"] = columns.T
        mx.eval(layer["weight"])
    return whole


def _share(layers: list[nn.Module], name: str, whole: mx.array) -> None:
    """Makes the layers' arrays slices of `whole`, whose rows are theirs."""
    mx.eval(whole)
    start = 0
    for layer in layers:
        end = start + layer[name].shape[0]
        layer[name], start = whole[start:end], end
        mx.eval(layer[name])
