"""Quantization: which layer gets how many bits, as a recipe's name or as uniform numbers.

`config.json` records the outcome as mlx-lm does: defaults, and per path the same or false. The codec stays float.
"""

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten

from csm_mlx.errors import ConfigError, QuantizationError

BITS = (2, 3, 4, 5, 6, 8)
GROUP_SIZES = (32, 64, 128)
MODES = {"affine": (64, 4), "mxfp4": (32, 4), "nvfp4": (16, 4), "mxfp8": (32, 8)}
"""MLX's modes, each with its (group size, bits); all but affine know no others."""

DEFAULT_RECIPE = "q4"

Predicate = Callable[[str, nn.Module], bool | dict[str, Any]]
"""As in mlx-lm: what to do with the layer at a path, false for nothing."""


@dataclass(frozen=True)
class Recipe:
    description: str
    bits: int
    """Of the transformers' linear layers."""
    wide_bits: int = 8
    """Of both heads, the projection and the embeddings: few weights read per frame, and most of what is heard."""
    edge_bits: int | None = None
    """Of each transformer's first and last layer and of all down projections; None is `bits`."""

    def bits_of(self, path: str, last_layers: dict[str, int]) -> int:
        """`last_layers`: the index of the last layer by the name of its transformer."""
        match = re.match(r"(\w+(?:\.\d+)?)\.layers\.(\d+)\.", path)
        if match is None:
            return self.wide_bits
        if self.edge_bits is None:
            return self.bits
        edge = int(match[2]) in (0, last_layers[match[1]]) or path.endswith(".down_proj")
        return self.edge_bits if edge else self.bits


RECIPES = {
    "q4": Recipe("4 bits; heads, projection and embeddings 8: the one for Macs", bits=4),
    "q6": Recipe("6 bits; heads, projection and embeddings 8", bits=6),
    "q8": Recipe("8 bits throughout", bits=8),
    "mixed": Recipe("4 bits; first and last layers and down projections 6; heads and the like 8", bits=4, edge_bits=6),
}


@dataclass(frozen=True, kw_only=True)
class Quantization:
    """What to quantize to: a recipe, or the same bits everywhere. With nothing given, the recipe q4.

    `QuantizationError` for a combination that MLX does not have.
    """

    recipe: str | None = None
    bits: int | None = None
    group_size: int | None = None
    mode: str = "affine"

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise QuantizationError(f"quantization mode {self.mode!r} is unknown, expected one of {', '.join(MODES)}")
        if self.recipe is not None and self.recipe not in RECIPES:
            raise QuantizationError(f"recipe {self.recipe!r} is unknown, expected one of {', '.join(RECIPES)}")
        if self.recipe is not None and self.bits is not None:
            raise QuantizationError(f"recipe {self.recipe!r} and {self.bits} bits were both given; choose one")
        if self.mode == "affine":
            check_affine(*self._or(BITS[0], GROUP_SIZES[0]), QuantizationError)
            return
        if self.recipe is not None:
            raise QuantizationError(f"recipe {self.recipe!r} is affine, mode {self.mode!r} was given; choose one")
        group_size, bits = MODES[self.mode]
        if self._or(bits, group_size) != (bits, group_size):
            raise QuantizationError(
                f"mode {self.mode} has {bits} bits and groups of {group_size}, "
                "given were {} bits and groups of {}".format(*self._or(bits, group_size))
            )

    def _or(self, bits: int, group_size: int) -> tuple[int, int]:
        """What was given, or else these."""
        return bits if self.bits is None else self.bits, group_size if self.group_size is None else self.group_size

    @property
    def defaults(self) -> dict[str, Any]:
        """`{"group_size", "bits", "mode"}` of the layers that are no exception."""
        group_size, bits = MODES[self.mode]
        bits, group_size = self._or(self._recipe.bits if self._recipe else bits, group_size)
        return {"group_size": group_size, "bits": bits, "mode": self.mode}

    @property
    def name(self) -> str:
        """For people: `q4`, `5 bits, group 32` or `mxfp4`."""
        if self.mode != "affine":
            return self.mode
        group = f", group {self.group_size}" if self.group_size else ""
        return (self.recipe or DEFAULT_RECIPE if self._recipe else f"{self.bits} bits") + group

    @property
    def _recipe(self) -> Recipe | None:
        if self.mode != "affine" or self.bits is not None:
            return None
        return RECIPES[self.recipe or DEFAULT_RECIPE]

    def predicate(self, model: nn.Module) -> Predicate:
        """What to do with each layer of `model`, ready for `nn.quantize`.

        Where the width is no multiple of the group size, a smaller group that fits is taken; else the layer stays
        float, as one does whose rows MLX's fast kernel cannot take.
        """
        recipe, defaults, last = self._recipe, self.defaults, _last_layers(model)

        def decide(path: str, module: nn.Module) -> bool | dict[str, Any]:
            if not hasattr(module, "to_quantized"):
                return False
            width = _width(module)
            sizes = [s for s in reversed(GROUP_SIZES) if s <= defaults["group_size"]]
            if self.mode != "affine":
                sizes = [defaults["group_size"]]
            fitting = [s for s in sizes if width % s == 0]
            if not fitting or _has_odd_rows(module):
                return False
            bits = recipe.bits_of(path, last) if recipe else defaults["bits"]
            return {"group_size": fitting[0], "bits": bits, "mode": self.mode}

        return decide


def check_affine(bits: Any, group_size: Any, error: type[Exception]) -> None:
    """Raises `error` for numbers that MLX's affine quantization does not have."""
    if bits not in BITS:
        raise error(f"{bits} bits were asked for, expected one of {', '.join(map(str, BITS))}")
    if group_size not in GROUP_SIZES:
        raise error(f"groups of {group_size} were asked for, expected one of {', '.join(map(str, GROUP_SIZES))}")


def _width(module: nn.Module) -> int:
    weight = module.weight
    assert isinstance(weight, mx.array)  # of whatever has `to_quantized`
    return weight.shape[-1]


def _has_odd_rows(module: nn.Module) -> bool:
    """Of a product, which is fast for rows by the eight only: the pause heads of speech-to-text have six."""
    return isinstance(module, nn.Linear) and module.weight.shape[0] % 8 != 0


def named_parameters(module: nn.Module) -> dict[str, mx.array]:
    """All parameters of a module by their paths, which are the names of tensors on disk."""
    return dict(cast("list[tuple[str, mx.array]]", tree_flatten(module.parameters())))


def _last_layers(model: nn.Module) -> dict[str, int]:
    last: dict[str, int] = {}
    for path, _ in model.named_modules():
        if match := re.fullmatch(r"(\w+(?:\.\d+)?)\.layers\.(\d+)", path):
            last[match[1]] = max(last.get(match[1], 0), int(match[2]))
    return last


def plan(model: nn.Module, quantization: Quantization) -> tuple[dict[str, Any], list[str]]:
    """(what config.json records, notes on layers that took a smaller group or stay float); the model is left alone."""
    decide, defaults = quantization.predicate(model), quantization.defaults
    config, notes = dict(defaults), []
    for path, module in sorted(model.named_modules()):
        if not hasattr(module, "to_quantized"):
            continue
        decision = decide(path, module)
        width = _width(module)
        if not isinstance(decision, dict):
            config[path] = False
            odd = "its rows are no multiple of 8" if _has_odd_rows(module) else ""
            notes.append(f"{path} stays float: {odd or f'its width {width} is no multiple of a group size'}")
            continue
        if decision["group_size"] != defaults["group_size"]:
            notes.append(f"{path} has groups of {decision['group_size']}: its width is {width}")
        if decision != defaults:
            config[path] = decision
    return config, notes


def quantize_model(model: nn.Module, quantization: Quantization) -> dict[str, Any]:
    """Quantizes the layers of a float model in place; returns what config.json records."""
    if any(isinstance(m, nn.QuantizedLinear | nn.QuantizedEmbedding) for _, m in model.named_modules()):
        raise QuantizationError("the model is quantized already; quantize its float original")
    config, _ = plan(model, quantization)
    apply_quantization(model, config)
    return config


def dequantized(layer: nn.QuantizedLinear | nn.QuantizedEmbedding, dtype: mx.Dtype | None = None) -> mx.array:
    """The weights that a quantized layer stands for; by default in the type of its scales, bfloat16 if that is none."""
    return mx.dequantize(
        layer["weight"],
        layer["scales"],
        layer.get("biases"),
        layer.group_size,
        layer.bits,
        mode=layer.mode,
        dtype=dtype,
    )


def dequantized_rows(
    weight: mx.array, scales: mx.array, biases: mx.array | None, *, group_size: int, bits: int, mode: str
) -> mx.array:
    """Rows of packed weights as the float32 that they stand for, without the rounding of their scales' type."""
    scales = scales if scales.dtype == mx.uint8 else scales.astype(mx.float32)
    biases = None if biases is None else biases.astype(mx.float32)
    return mx.dequantize(weight, scales, biases, group_size, bits, mode=mode, dtype=mx.float32)


def dequantize_model(model: nn.Module, dtype: mx.Dtype, paths: Collection[str] | None = None) -> None:
    """Makes the quantized layers of a model float ones of the same values and of type `dtype`, in place; of all, or of
    those at `paths`."""
    plain = []
    for path, layer in model.named_modules():
        if paths is not None and path not in paths:
            continue
        if isinstance(layer, nn.QuantizedLinear | nn.QuantizedEmbedding):
            twin = nn.Linear(1, 1, bias=False) if isinstance(layer, nn.QuantizedLinear) else nn.Embedding(1, 1)
            twin.weight = dequantized(layer, dtype)
            plain.append((path, twin))
    model.update_modules(tree_unflatten(plain))


def apply_quantization(model: nn.Module, config: dict[str, Any]) -> None:
    """Makes a model's layers quantized ones as `config.json` records, so that its weights load strictly.

    `ConfigError` for an unknown path or for numbers that MLX does not have.
    """
    defaults: dict[str, Any] = {name: config.get(name) for name in ("group_size", "bits", "mode")}
    defaults["mode"] = defaults["mode"] or "affine"
    _check(defaults, "quantization")
    layers = {path for path, module in model.named_modules() if hasattr(module, "to_quantized")}
    for path, value in config.items():
        if path in defaults:
            continue
        if path not in layers:
            raise ConfigError(f"quantization names {path!r}, which is no layer of this model that can be quantized")
        if isinstance(value, dict):
            _check(defaults | value, f"quantization.{path}")
        elif not isinstance(value, bool):
            raise ConfigError(f"quantization.{path} is {value!r}, expected an object, true or false")

    def decide(path: str, module: nn.Module) -> bool | dict[str, Any]:
        value = config.get(path, True)
        if not hasattr(module, "to_quantized") or value is False:
            return False
        numbers = defaults | (value if isinstance(value, dict) else {})
        width = _width(module)
        if width % numbers["group_size"]:
            raise ConfigError(
                f"quantization gives {path} groups of {numbers['group_size']}, which do not divide its width {width}"
            )
        return numbers

    nn.quantize(model, defaults["group_size"], defaults["bits"], mode=defaults["mode"], class_predicate=decide)


def _check(numbers: dict[str, Any], where: str) -> None:
    unknown = set(numbers) - {"group_size", "bits", "mode"}
    if unknown:
        raise ConfigError(f"{where} has the unknown field {sorted(unknown)[0]!r}; known are bits, group_size, mode")
    mode = numbers["mode"]
    if mode not in MODES:
        raise ConfigError(f"{where}.mode is {mode!r}, expected one of {', '.join(MODES)}")
    if mode == "affine":
        try:
            check_affine(numbers["bits"], numbers["group_size"], ConfigError)
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from None
    elif (numbers["group_size"], numbers["bits"]) != MODES[mode]:
        raise ConfigError(f"{where} has mode {mode}, which has (group size, bits) {MODES[mode]}")


def stored_bytes(model: nn.Module, quantization: Quantization | None) -> int:
    """What the weights of a float model take, scales and biases included, once it is quantized so; or as it is."""
    n_bytes = sum(p.nbytes for p in named_parameters(model).values())
    if quantization is None:
        return n_bytes
    decide = quantization.predicate(model)
    for path, module in model.named_modules():
        decision = decide(path, module)
        if not isinstance(decision, dict):
            continue
        weight = module.weight
        assert isinstance(weight, mx.array)
        n_groups = weight.size // decision["group_size"]
        n_parts = 2 if decision["mode"] == "affine" else 1
        scale_bytes = weight.dtype.size if decision["mode"] == "affine" else mx.uint8.size
        n_bytes += weight.size * decision["bits"] // 8 + n_parts * n_groups * scale_bytes - weight.nbytes
    return n_bytes


def bits_per_weight(model: nn.Module) -> float:
    """Bits that the model's parameters take, scales and biases included, over the number of its weights."""
    n_bits = sum(p.nbytes * 8 for p in named_parameters(model).values())
    n_weights = 0
    for _, module in model.named_modules():
        for name, p in module.items():
            if not isinstance(p, mx.array) or name.startswith("_") or name in ("scales", "biases"):
                continue
            packed = name == "weight" and p.dtype == mx.uint32
            n_weights += p.size * 32 // module.bits if packed else p.size
    return n_bits / n_weights
