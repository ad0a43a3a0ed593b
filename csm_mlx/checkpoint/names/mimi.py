"""What both published layouts of Mimi share: SEANet's numbering, the codebooks, weight norm, and sizes in shapes."""

import re
from collections.abc import Mapping
from dataclasses import replace

import mlx.core as mx

from csm_mlx.checkpoint.names.heads import n_layers
from csm_mlx.checkpoint.read import Tensor
from csm_mlx.config import MimiConfig, TransformerConfig
from csm_mlx.errors import CheckpointError, ConfigError

USAGE_FLOOR = 1e-5
"""A codebook entry is its sum over this at least (Moshi's `EuclideanCodebook`)."""

_SEANET = re.compile(
    r"(encoder|decoder)\.(?:model|layers)\.(\d+)\.(?:block\.(\d+)\.)?(?:conv|convtr)(?:\.(?:conv|convtr))?\.(weight|bias)"
)


def fold_weight_norm(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Pairs of magnitude and direction, in either of torch's spellings, become the weights that they stand for."""
    out = dict(tensors)
    for g_end, v_end in (
        ("weight_g", "weight_v"),
        ("parametrizations.weight.original0", "parametrizations.weight.original1"),
    ):
        for g_name in [name for name in out if name.endswith("." + g_end)]:
            stem = g_name.removesuffix(g_end)
            if stem + v_end not in out:
                continue
            g, v = out.pop(g_name), out.pop(stem + v_end)
            out[stem + "weight"] = _fold(g, v)
    return out


def _fold(g: Tensor, v: Tensor) -> Tensor:
    axes = list(range(1, len(v.shape)))

    def fold(x: mx.array) -> mx.array:
        norm = mx.sqrt(mx.sum(x * x, axis=axes, keepdims=True))
        return x * (g.load().astype(mx.float32) / norm)

    return v.as_float32(fold, v.shape)


def map_seanet(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The two SEANets, numbered in their files as torch's `Sequential`s; other tensors keep their names."""
    out, found = {}, []
    for name, tensor in tensors.items():
        match = _SEANET.fullmatch(name)
        if match:
            found.append((match[1], int(match[2]), match[3], match[4], name))
        else:
            out[name] = tensor
    for half in ("encoder", "decoder"):
        plain = sorted({i for h, i, block, _, _ in found if h == half and block is None})
        residual = sorted({i for h, i, block, _, _ in found if h == half and block is not None})
        for h, i, block, part, name in found:
            if h == half:
                ours = _seanet_name(half, i, block, plain, residual)
                tensor = tensors[name]
                out[f"{ours}.{part}" if ours else name] = swapped(tensor) if part == "weight" else tensor
    return out


def _seanet_name(half: str, index: int, block: str | None, plain: list[int], residual: list[int]) -> str | None:
    """Which layer an index is: residual layers come before their strided convolution in the encoder, after in the
    decoder; the first and the last plain convolution frame them."""
    strided = plain[1:-1]
    if block is None:
        if index in (plain[0], plain[-1]):
            return f"{half}.{'init_conv' if index == plain[0] else 'final_conv'}"
        return f"{half}.blocks.{strided.index(index)}.{'down' if half == 'encoder' else 'up'}"

    def block_of(i: int) -> int:
        before = sum(s < i for s in strided)
        return before if half == "encoder" else before - 1

    conv = {"1": "conv1", "3": "conv2"}.get(block)
    j = [i for i in residual if block_of(i) == block_of(index)].index(index)
    return f"{half}.blocks.{block_of(index)}.residuals.{j}.{conv}" if conv else None


def swapped(tensor: Tensor) -> Tensor:
    """Torch's (out, in, k), or (in, out, k) where transposed, with the kernel in the middle as MLX wants it."""
    if len(tensor.shape) != 3:
        return tensor
    a, b, c = tensor.shape
    return tensor.changed(lambda x: x.swapaxes(1, 2), (a, c, b))


def squeezed(tensor: Tensor) -> Tensor:
    """A 1x1 convolution (out, in, 1) as a linear layer (out, in)."""
    if len(tensor.shape) != 3 or tensor.shape[2] != 1:
        return tensor
    return tensor.changed(lambda x: x[:, :, 0], tensor.shape[:2])


def tap_major(tensor: Tensor) -> Tensor:
    """A depthwise transposed convolution (channels, 1, k) as (k, channels)."""
    if len(tensor.shape) != 3 or tensor.shape[1] != 1:
        return tensor
    channels, _, taps = tensor.shape
    return tensor.changed(lambda x: x[:, 0].T, (taps, channels))


def stacked_codebooks(pairs: list[tuple[Tensor, Tensor]]) -> Tensor:
    """(sum of members, count of members) of each codebook as centroids (n, size, dim), float32."""
    first = pairs[0][0]
    for total, usage in pairs:
        total.require_float()
        usage.require_float()
        if total.shape != first.shape or usage.shape != first.shape[:1]:
            raise CheckpointError(
                f"{total.name!r} has shape {list(total.shape)} and {usage.name!r} {list(usage.shape)}, expected "
                f"{list(first.shape)} and {list(first.shape[:1])} as in the first codebook"
            )

    def centroids(total: Tensor, usage: Tensor) -> mx.array:
        counts = mx.maximum(usage.load().astype(mx.float32), USAGE_FLOOR)
        return total.load().astype(mx.float32) / counts[:, None]

    return replace(
        first,
        stored="F32",
        shape=(len(pairs), *first.shape),
        read=lambda start, stop: mx.stack([centroids(*pair) for pair in pairs[start:stop]]),
    )


def map_codebooks(
    tensors: Mapping[str, Tensor], pattern: str, sums: tuple[str, ...], counts: tuple[str, ...]
) -> tuple[dict[str, Tensor], list[tuple[Tensor, Tensor]]]:
    """Takes one half's codebooks out of `tensors`: (the others, pairs in order).

    `pattern` must match a codebook tensor's whole name with the groups (index, part).
    """
    rest, parts = {}, {}
    for name, tensor in tensors.items():
        match = re.fullmatch(pattern, name)
        if match is None:
            rest[name] = tensor
        elif match[2] in sums or match[2] in counts:
            parts[int(match[1]), match[2] in sums] = tensor
    indices = sorted({i for i, _ in parts})
    for i in indices:
        if i != indices.index(i) or (i, True) not in parts or (i, False) not in parts:
            raise CheckpointError(
                f"the codec's codebook {indices.index(i)} in {next(iter(parts.values())).file} is incomplete: "
                f"expected its {sums[0]} and {counts[0]}; fetch the codec again"
            )
    return rest, [(parts[i, True], parts[i, False]) for i in indices]


HEAD_DIM = 64
"""Of every Mimi published so far, for files that come without a config."""


def infer_config(tensors: Mapping[str, Tensor]) -> MimiConfig:
    """Of canonical tensors. Kyutai's files carry no config; what no shape shows is Mimi's own: 24 kHz, heads of 64, a
    window of 250, rotary base 10000."""

    def shape(name: str, axes: int) -> tuple[int, ...]:
        tensor = tensors.get(name)
        if tensor is None or len(tensor.shape) != axes:
            seen = "is missing" if tensor is None else f"has shape {list(tensor.shape)}, expected {axes} axes"
            raise CheckpointError(f"the codec is incomplete: {name!r} {seen}; fetch it again")
        return tensor.shape

    def count(pattern: str) -> int:
        return len({m[1] for name in tensors if (m := re.match(pattern, name))})

    n_filters, kernel_size, _ = shape("encoder.init_conv.weight", 3)
    dim, last_kernel_size, _ = shape("encoder.final_conv.weight", 3)
    hidden, residual_kernel_size, width = shape("encoder.blocks.0.residuals.0.conv1.weight", 3)
    n_blocks = count(r"decoder\.blocks\.(\d+)\.up\.")
    n_semantic, codebook_size, codebook_dim = shape("quantizer.semantic.codebooks", 3)
    if dim % HEAD_DIM:
        raise ConfigError(f"the codec's transformers are {dim} wide, expected a multiple of Mimi's head_dim {HEAD_DIM}")
    return MimiConfig(
        sample_rate_hz=24_000,
        n_filters=n_filters,
        ratios=tuple(shape(f"decoder.blocks.{i}.up.weight", 3)[1] // 2 for i in range(n_blocks)),
        dim=dim,
        kernel_size=kernel_size,
        last_kernel_size=last_kernel_size,
        residual_kernel_size=residual_kernel_size,
        n_residual_layers=count(r"encoder\.blocks\.0\.residuals\.(\d+)\."),
        dilation_base=2,
        compress=width // hidden,
        downsample_stride=shape("downsample.weight", 3)[1] // 2 if "downsample.weight" in tensors else 1,
        transformer=transformer(
            dim=dim,
            n_layers=n_layers(tensors, "encoder_transformer"),
            head_dim=HEAD_DIM,
            ffn_dim=shape("encoder_transformer.layers.0.mlp.up_proj.weight", 2)[0],
        ),
        codebook_size=codebook_size,
        codebook_dim=codebook_dim,
        n_codebooks=n_semantic + shape("quantizer.acoustic.codebooks", 3)[0],
        n_semantic_codebooks=n_semantic,
    )


def transformer(
    *,
    dim: int,
    n_layers: int,
    head_dim: int,
    ffn_dim: int,
    norm_eps: float = 1e-5,
    window: int = 250,
    rope_base: float = 10_000.0,
) -> TransformerConfig:
    """Mimi's transformer of these sizes."""
    n_heads = dim // head_dim
    return TransformerConfig(
        dim=dim,
        n_layers=n_layers,
        n_heads=n_heads,
        n_kv_heads=n_heads,
        head_dim=head_dim,
        ffn_dim=ffn_dim,
        norm="layer",
        norm_eps=norm_eps,
        mlp="gelu",
        layer_scale=True,
        final_norm=False,
        window=window,
        rope_base=rope_base,
    )
