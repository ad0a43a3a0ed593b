"""Quantized layers that a device has no kernel for become float ones at loading, and the user is told."""

from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import pytest
from support import layouts

from csm_mlx.checkpoint import kernels
from csm_mlx.checkpoint.convert import convert
from csm_mlx.checkpoint.load import load_checkpoint
from csm_mlx.models.csm import CsmModel
from csm_mlx.quantize import Quantization

MESSAGE = "[quantized_matmul] No implementation for problem shape: 1x24x64 transpose: true, bits: 4, group_size: 64"
"""As MLX's CUDA backend says it."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    layouts.write_own(tmp_path / "own", layouts.make_tiny())
    convert(tmp_path / "own", tmp_path / "q4", quantization=Quantization(bits=4))
    return tmp_path / "q4"


def without(*n_outputs: int, message: str = MESSAGE) -> Callable[[mx.array], None]:
    """A device without a kernel for products of so many outputs."""

    def run(y: mx.array) -> None:
        if y.shape[-1] in n_outputs:
            raise RuntimeError(message)
        mx.eval(y)

    return run


def quantized(model: CsmModel) -> set[str]:
    return {path for path, layer in model.named_modules() if isinstance(layer, nn.QuantizedLinear)}


def test_each_distinct_shape_is_tried_once_with_one_row_and_with_several(folder: Path) -> None:
    model = load_checkpoint(folder, unpack=False).model
    shapes: list[tuple[int, ...]] = []

    assert kernels.lacking(model, lambda y: shapes.append(y.shape)) == []

    assert {shape[0] for shape in shapes} == {1, 8}
    # Both transformers' four products and the two kinds of head; the projection has the shape of a down projection.
    assert len(shapes) == 2 * (4 + 4 + 2)
    csm = layouts.CONFIG.csm
    assert (1, csm.codebook_size) in shapes  # heads as they are used: without padding


def test_layers_that_are_joined_fall_together(folder: Path) -> None:
    model = load_checkpoint(folder, unpack=False).model
    c = layouts.CONFIG.csm.backbone

    found = kernels.lacking(model, without(2 * c.ffn_dim))

    names = [f"backbone.layers.{i}.mlp.{name}_proj" for i in range(c.n_layers) for name in ("gate", "up")]
    assert sorted(found) == sorted(names)


def test_another_error_is_passed_on(folder: Path) -> None:
    model = load_checkpoint(folder, unpack=False).model
    with pytest.raises(RuntimeError, match="out of memory"):
        kernels.lacking(model, without(layouts.CONFIG.csm.codebook_size, message="out of memory"))


def test_loading_dequantizes_what_the_device_lacks_and_says_so(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = load_checkpoint(folder, unpack=False).model
    lacking = kernels.lacking
    monkeypatch.setattr(kernels, "may_lack", lambda: True)
    monkeypatch.setattr(kernels, "lacking", lambda model: lacking(model, without(layouts.CONFIG.csm.codebook_size)))
    notes: list[str] = []

    model = load_checkpoint(folder, unpack=False, on_note=notes.append).model

    heads = {path for path in quantized(packed) if "head" in path}
    assert len(heads) == layouts.CONFIG.csm.n_codebooks
    assert quantized(model) == quantized(packed) - heads
    assert [note.startswith(f"{len(heads)} quantized layers have a shape") for note in notes] == [True]
    assert "float32: " in notes[0]
    csm = layouts.CONFIG.csm
    for codebook, width in ((0, csm.backbone.dim), (1, csm.depth.dim)):
        x = mx.random.normal((3, width), key=mx.random.key(codebook))
        plain, reference = (m.code_logits(x, codebook) for m in (model, packed))
        assert mx.allclose(plain, reference, atol=1e-5)


def test_a_cpu_is_not_tried(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: CsmModel) -> list[str]:
        raise AssertionError

    monkeypatch.setattr(kernels, "lacking", refuse)
    if mx.default_device().type == mx.DeviceType.cpu:
        load_checkpoint(folder, unpack=False)
