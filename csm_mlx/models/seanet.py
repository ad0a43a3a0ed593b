"""SEANet: the convolutional encoder and decoder of Mimi (Tagliasacchi et al. 2020, as in EnCodec and Moshi)."""

from typing import Any

import mlx.core as mx
import mlx.nn as nn

from csm_mlx.config import MimiConfig
from csm_mlx.nn.activations import elu
from csm_mlx.nn.conv import CausalConv1d, CausalConvTranspose1d

State = dict[str, Any]
"""A tree of arrays: one entry per streaming layer."""

BLOCK = 16
"""Latents per pass of a long call through the layers of many steps: what they make then stays near the processor. Those
of few steps take all at once: they have nine tenths of the weights, which then are read once."""


class Residual(nn.Module):
    """ELU, convolution, ELU, 1x1 convolution, added to the input."""

    def __init__(self, dim: int, config: MimiConfig, dilation: int):
        super().__init__()
        hidden = dim // config.compress
        self.conv1 = CausalConv1d(dim, hidden, config.residual_kernel_size, dilation=dilation)
        self.conv2 = CausalConv1d(hidden, dim, 1)

    def make_state(self, batch: int, dtype: mx.Dtype) -> State:
        return {"conv1": self.conv1.make_state(batch, dtype), "conv2": self.conv2.make_state(batch, dtype)}

    def __call__(self, x: mx.array, state: State) -> tuple[mx.array, State]:
        y, conv1 = self.conv1(elu(x), state["conv1"])
        y, conv2 = self.conv2(elu(y), state["conv2"], x)
        return y, {"conv1": conv1, "conv2": conv2}


def _residuals(dim: int, config: MimiConfig) -> list[Residual]:
    return [Residual(dim, config, config.dilation_base**j) for j in range(config.n_residual_layers)]


def _run(layers: list[Any], x: mx.array, states: list[State]) -> tuple[mx.array, list[State]]:
    new = []
    for layer, state in zip(layers, states, strict=True):
        x, state = layer(x, state)
        new.append(state)
    return x, new


def _run_in_passes(layers: list[Any], x: mx.array, states: list[State], n_steps: int) -> tuple[mx.array, list[State]]:
    """`_run` over `n_steps` of x at a time."""
    outputs = []
    for start in range(0, x.shape[1], n_steps):
        y, states = _run(layers, x[:, start : start + n_steps], states)
        outputs.append(y)
    return outputs[0] if len(outputs) == 1 else mx.concatenate(outputs, axis=1), states


class EncoderBlock(nn.Module):
    """Residual layers, then a strided convolution to twice the width."""

    def __init__(self, dim: int, ratio: int, config: MimiConfig):
        super().__init__()
        self.residuals = _residuals(dim, config)
        self.down = CausalConv1d(dim, 2 * dim, 2 * ratio, stride=ratio)

    def make_state(self, batch: int, dtype: mx.Dtype) -> State:
        return {
            "residuals": [r.make_state(batch, dtype) for r in self.residuals],
            "down": self.down.make_state(batch, dtype),
        }

    def __call__(self, x: mx.array, state: State) -> tuple[mx.array, State]:
        x, residuals = _run(self.residuals, x, state["residuals"])
        x, down = self.down(elu(x), state["down"])
        return x, {"residuals": residuals, "down": down}


class DecoderBlock(nn.Module):
    """A transposed convolution to half the width, then residual layers."""

    def __init__(self, dim: int, ratio: int, config: MimiConfig):
        super().__init__()
        self.up = CausalConvTranspose1d(dim, dim // 2, ratio)
        self.residuals = _residuals(dim // 2, config)

    def make_state(self, batch: int, dtype: mx.Dtype) -> State:
        return {
            "up": self.up.make_state(batch, dtype),
            "residuals": [r.make_state(batch, dtype) for r in self.residuals],
        }

    def __call__(self, x: mx.array, state: State) -> tuple[mx.array, State]:
        x, up = self.up(elu(x), state["up"])
        x, residuals = _run(self.residuals, x, state["residuals"])
        return x, {"up": up, "residuals": residuals}


class _SeaNet(nn.Module):
    """A first convolution, a block per ratio, a last convolution."""

    init_conv: CausalConv1d
    blocks: list[Any]
    final_conv: CausalConv1d

    def make_state(self, batch: int, dtype: mx.Dtype) -> State:
        return {
            "init_conv": self.init_conv.make_state(batch, dtype),
            "blocks": [block.make_state(batch, dtype) for block in self.blocks],
            "final_conv": self.final_conv.make_state(batch, dtype),
        }

    def __call__(self, x: mx.array, state: State) -> tuple[mx.array, State]:
        layers = [self.init_conv, *self.blocks, lambda x, state: self.final_conv(elu(x), state)]
        states = [state["init_conv"], *state["blocks"], state["final_conv"]]
        x, (init_conv, *blocks, final_conv) = self._run(layers, x, states)
        return x, {"init_conv": init_conv, "blocks": blocks, "final_conv": final_conv}

    def _run(self, layers: list[Any], x: mx.array, states: list[State]) -> tuple[mx.array, list[State]]:
        raise NotImplementedError


class SeaNetEncoder(_SeaNet):
    """PCM (B, n_samples, 1) to latents (B, n_samples / hop, dim)."""

    def __init__(self, config: MimiConfig):
        super().__init__()
        width, self._hop = config.n_filters, config.hop
        self.init_conv = CausalConv1d(1, width, config.kernel_size)
        self.blocks = []
        for ratio in reversed(config.ratios):
            self.blocks.append(EncoderBlock(width, ratio, config))
            width *= 2
        self.final_conv = CausalConv1d(width, config.dim, config.last_kernel_size)

    def _run(self, layers: list[Any], x: mx.array, states: list[State]) -> tuple[mx.array, list[State]]:
        x, many = _run_in_passes(layers[:-2], x, states[:-2], BLOCK * self._hop)
        x, few = _run(layers[-2:], x, states[-2:])
        return x, many + few


class SeaNetDecoder(_SeaNet):
    """Latents (B, T, dim) to PCM (B, T * hop, 1)."""

    def __init__(self, config: MimiConfig):
        super().__init__()
        self._first_ratio = config.ratios[0]
        width = config.n_filters * 2 ** len(config.ratios)
        self.init_conv = CausalConv1d(config.dim, width, config.kernel_size)
        self.blocks = []
        for ratio in config.ratios:
            self.blocks.append(DecoderBlock(width, ratio, config))
            width //= 2
        self.final_conv = CausalConv1d(width, 1, config.last_kernel_size)

    def _run(self, layers: list[Any], x: mx.array, states: list[State]) -> tuple[mx.array, list[State]]:
        x, few = _run(layers[:2], x, states[:2])
        x, many = _run_in_passes(layers[2:], x, states[2:], BLOCK * self._first_ratio)
        return x, few + many
