"""What stays on the disk until it is asked for: equal to what was read at once, checked at loading, safe afterwards."""

import shutil
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from support import layouts
from support.memory import arrays_of_others
from support.models import n_bytes

from csm_mlx.checkpoint import later, load
from csm_mlx.checkpoint.convert import convert
from csm_mlx.checkpoint.load import load_checkpoint
from csm_mlx.checkpoint.source import open_source
from csm_mlx.errors import CheckpointError
from csm_mlx.quantize import Quantization, named_parameters

IDS = mx.array([[3, 0, 24, 3]])


@pytest.fixture(params=["affine", "mxfp4"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    layouts.write_own(tmp_path / "own", layouts.make_tiny())
    convert(tmp_path / "own", tmp_path / "packed", quantization=Quantization(mode=request.param))
    return tmp_path / "packed"


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
def test_rows_on_the_disk_equal_those_in_memory(folder: Path, dtype: mx.Dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    held = load_checkpoint(folder, dtype=dtype, unpack=False).model
    monkeypatch.setattr(load, "ON_DISK_BYTES", 1)
    model = load_checkpoint(folder, dtype=dtype, unpack=False).model
    shutil.rmtree(folder)  # the opened file stays readable

    assert isinstance(model.text_embeddings, later.EmbeddingOnDisk)
    assert mx.array_equal(model.embed_text(IDS), held.embed_text(IDS))
    assert not [name for name in named_parameters(model) if name.startswith("text_embeddings")]


def test_what_is_unpacked_or_made_of_other_tensors_is_read_at_once(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load, "ON_DISK_BYTES", 1)
    layouts.write_senstella(tmp_path / "foreign", layouts.make_tiny())

    assert "text_embeddings.weight" in named_parameters(load_checkpoint(folder, unpack=True).model)
    assert "text_embeddings.weight" in named_parameters(load_checkpoint(tmp_path / "foreign").model)
    source = open_source(tmp_path / "foreign")
    assert not later.is_stored(source.codec["encoder.init_conv.weight"])  # its axes are turned


def test_a_file_cut_short_after_loading_is_an_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "ON_DISK_BYTES", 1)
    model = load_checkpoint(folder, unpack=False).model
    with (folder / "model.safetensors").open("r+b") as file:
        file.truncate(100)

    with pytest.raises(CheckpointError, match=r"ended while 'text_embeddings\.\w+' was read"):
        model.embed_text(IDS)


def test_an_index_out_of_the_table_is_an_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "ON_DISK_BYTES", 1)
    model = load_checkpoint(folder, unpack=False).model

    for index in (-1, 25):
        with pytest.raises(IndexError, match=f"{index} .* 25 rows"):
            model.embed_text(mx.array([[index]]))


def test_the_encoder_is_read_when_sound_is_encoded(tmp_path: Path) -> None:
    layouts.write_own(tmp_path / "own", layouts.make_tiny())
    pcm = 0.1 * mx.random.normal((1, 960, 1), key=mx.random.key(0))

    before = arrays_of_others()
    codec = load_checkpoint(tmp_path / "own").codec
    parts = {name: n_bytes(codec[name].parameters()) for name in load._ENCODER}
    held = mx.get_active_memory() - before
    shutil.rmtree(tmp_path / "own")
    codes = codec.encode(pcm)[0]
    mx.eval(codes)

    reference = layouts.make_tiny().codec
    for name, w in named_parameters(codec).items():
        assert np.array_equal(np.asarray(w), reference[name])
    assert mx.get_active_memory() - before >= held + sum(parts.values()) - 1000


@pytest.mark.parametrize("name", ["encoder.init_conv.weight", "encoder_transformer.layers.0.mlp.up_proj.weight"])
def test_what_is_read_later_is_checked_at_loading(name: str, tmp_path: Path) -> None:
    tiny = layouts.make_tiny()
    tiny.codec[name] = tiny.codec[name].copy()
    tiny.codec[name].flat[-1] = np.nan
    layouts.write_own(tmp_path / "own", tiny)

    with pytest.raises(CheckpointError, match=f"'{name}' in codec.safetensors holds 1 NaN"):
        load_checkpoint(tmp_path / "own")
