"""The safetensors reader: exact rows, and a message for each way in which a file can be broken."""

import json
import struct
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from csm_mlx.checkpoint import read
from csm_mlx.checkpoint.read import read_tensors
from csm_mlx.errors import CheckpointError


def write(path: Path, header: Any, data: bytes = b"") -> Path:
    raw = json.dumps(header).encode() if not isinstance(header, bytes) else header
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + data)
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.safetensors"


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16, mx.uint32, mx.int32, mx.uint8, mx.bool_])
def test_what_mlx_wrote_is_read_back_whole_and_by_rows(dtype: mx.Dtype, path: Path) -> None:
    x = (mx.random.normal((5, 3, 2), key=mx.random.key(0)) * 100).astype(dtype)
    mx.save_safetensors(str(path), {"a": mx.zeros((3,)), "x": x})

    tensors = read_tensors(path)

    assert set(tensors) == {"a", "x"}
    assert (tensors["x"].shape, tensors["x"].dtype, tensors["x"].n_bytes) == ((5, 3, 2), dtype, x.nbytes)
    assert mx.array_equal(tensors["x"].load(), x)
    assert mx.array_equal(tensors["x"].read(1, 4), x[1:4])


def test_blocks_cover_a_tensor_in_order(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x = mx.arange(70, dtype=mx.float32).reshape(10, 7)
    mx.save_safetensors(str(path), {"x": x})
    monkeypatch.setattr(read, "BLOCK_ELEMENTS", 21)

    blocks = list(read_tensors(path)["x"].blocks())

    assert [first for first, _ in blocks] == [0, 3, 6, 9]
    assert mx.array_equal(mx.concatenate([rows for _, rows in blocks]), x)


def test_views_of_a_tensor(path: Path) -> None:
    x = mx.arange(24, dtype=mx.float32).reshape(4, 3, 2)
    mx.save_safetensors(str(path), {"x": x})
    tensor = read_tensors(path)["x"]

    assert mx.array_equal(tensor.rows(1, 3).read(1, 2), x[2:3])
    assert mx.array_equal(tensor.row(2).read(1, 3), x[2, 1:3])
    padded = tensor.row(1).padded(8)
    assert padded.shape == (8, 2)
    assert mx.array_equal(padded.load(), mx.pad(x[1], [(0, 5), (0, 0)]))
    assert mx.array_equal(tensor.changed(lambda t: t.swapaxes(1, 2), (4, 2, 3)).read(3, 4), x.swapaxes(1, 2)[3:4])


def test_an_empty_and_a_zero_dimensional_tensor(path: Path) -> None:
    header = {
        "empty": {"dtype": "F32", "shape": [0, 4], "data_offsets": [0, 0]},
        "scalar": {"dtype": "F32", "shape": [], "data_offsets": [0, 4]},
    }
    tensors = read_tensors(write(path, header, struct.pack("<f", 2.5)))

    assert tensors["empty"].load().shape == (0, 4)
    assert tensors["scalar"].load().item() == 2.5


ENTRY = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}


@pytest.mark.parametrize(
    ("header", "data", "message"),
    [
        ({"x": ENTRY | {"dtype": ["F32"]}}, bytes(16), r"'x' has the type \['F32'\]"),
        (b"[" * 200_000, b"", "has a broken header"),
        ({"x": ENTRY}, bytes(15), r"is cut short: its header promises 89 bytes, the file has 88; fetch it again"),
        ({"x": ENTRY}, bytes(20), r"is 93 bytes long, its header describes 89"),
        (b"{nonsense", bytes(16), r"has a broken header \(.*\); fetch it again"),
        ([1, 2], b"", r"has a broken header: list, expected an object"),
        ({"x": ENTRY | {"dtype": "F99"}}, bytes(16), r"'x' has the type 'F99'"),
        ({"x": ENTRY | {"shape": [2, -2]}}, bytes(16), r"'x' has the shape \[2, -2\]"),
        ({"x": ENTRY | {"shape": "2x2"}}, bytes(16), r"'x' has the shape '2x2'"),
        ({"x": ENTRY | {"data_offsets": [0]}}, bytes(16), r"'x' has data_offsets \[0\]"),
        ({"x": 3}, bytes(16), r"'x' has data_offsets None"),
        ({"x": ENTRY | {"shape": [2, 3]}}, bytes(16), r"shape \[2, 3\] needs 24 bytes from 0, the header says 0 to 16"),
        ({"x": ENTRY, "y": ENTRY}, bytes(16), r"'y' .* needs 16 bytes from 16, the header says 0 to 16"),
        ({"x": ENTRY | {"data_offsets": [4, 20]}}, bytes(20), r"needs 16 bytes from 0, the header says 4 to 20"),
    ],
)
def test_a_broken_file_is_refused_with_what_is_wrong(header: Any, data: bytes, message: str, path: Path) -> None:
    write(path, header, data)

    with pytest.raises(CheckpointError, match=message):
        read_tensors(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is cut short: 0 bytes hold no safetensors header"),
        (b"abc", "is cut short: 3 bytes hold no safetensors header"),
        (struct.pack("<Q", 500) + b"{}", "is cut short: its header alone takes 508 bytes, the file has 10"),
        (b"<!DOCTYPE html><html>", "is no safetensors file: it begins with b'<!DOCTYP'"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "is a Git LFS pointer.*git lfs pull"),
        (b"PK\x03\x04" + bytes(20), "is a pickle or zip archive under a safetensors name.*can run any program"),
        (b"\x80\x02}q\x00." + bytes(20), "is a pickle or zip archive"),
    ],
)
def test_what_is_no_safetensors_file_is_told_apart(content: bytes, message: str, path: Path) -> None:
    path.write_bytes(content)

    with pytest.raises(CheckpointError, match=message):
        read_tensors(path)


def test_a_missing_file_is_a_checkpoint_error(path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"cannot read .*model.safetensors: No such file"):
        read_tensors(path)


def test_a_file_that_shrinks_while_it_is_read_is_noticed(path: Path) -> None:
    mx.save_safetensors(str(path), {"x": mx.zeros((100, 100))})
    tensor = read_tensors(path)["x"]
    path.write_bytes(path.read_bytes()[:1000])

    with pytest.raises(CheckpointError, match="ended while 'x' was read"):
        tensor.load()


@pytest.mark.parametrize("stored", ["F64", "F8_E4M3"])
def test_types_that_no_weight_may_have_are_refused_when_used(stored: str, path: Path) -> None:
    size = 8 if stored == "F64" else 1
    header = {"x": {"dtype": stored, "shape": [2], "data_offsets": [0, 2 * size]}}
    tensor = read_tensors(write(path, header, bytes(2 * size)))["x"]

    with pytest.raises(
        CheckpointError, match=rf"'x' in model.safetensors is stored as {stored}, expected F32, F16 or BF16"
    ):
        tensor.require_float()


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16])
def test_no_number_goes_unnoticed(dtype: mx.Dtype) -> None:
    x = np.ones((4, 5), np.float32)
    assert read.is_finite(mx.array(x).astype(dtype)).item()
    for value in (np.nan, np.inf, -np.inf):
        x[2, 3] = value
        assert not read.is_finite(mx.array(x).astype(dtype)).item()


@pytest.mark.parametrize("length", [640, 1152])
def test_a_header_whose_length_begins_like_a_pickle_is_none(length: int, path: Path) -> None:
    header = json.dumps({"x": ENTRY}).encode().ljust(length)
    assert list(read_tensors(write(path, header, bytes(16)))) == ["x"]
