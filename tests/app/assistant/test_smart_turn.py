"""Smart Turn's place in the program, with a small ONNX model of the same inputs: sigmoid(mean(features))."""

from pathlib import Path

import numpy as np
import pytest
from csm_mlx_app.assistant import smart_turn
from csm_mlx_app.assistant.smart_turn import SmartTurn

from csm_mlx.errors import CsmError


def varint(value: int) -> bytes:
    low, rest = value & 0x7F, value >> 7
    return bytes([low | 0x80]) + varint(rest) if rest else bytes([low])


def field(number: int, value: int | bytes | str) -> bytes:
    """One field of a protobuf message."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    value = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(value)) + value


def tensor(name: str, *shape: int) -> bytes:
    dims = b"".join(field(1, field(1, size)) for size in shape)
    return field(1, name) + field(2, field(1, field(1, 1) + field(2, dims)))


def onnx(n_frames: int) -> bytes:
    axes = field(5, field(1, "axes") + b"".join(field(8, axis) for axis in (1, 2)) + field(20, 7))
    keepdims = field(5, field(1, "keepdims") + field(3, 0) + field(20, 2))
    mean = field(1, "input_features") + field(2, "mean") + field(4, "ReduceMean") + axes + keepdims
    sigmoid = field(1, "mean") + field(2, "logits") + field(4, "Sigmoid")
    graph = field(1, mean) + field(1, sigmoid) + field(2, "turn")
    graph += field(11, tensor("input_features", 1, 80, n_frames)) + field(12, tensor("logits", 1))
    return field(1, 8) + field(8, field(1, "") + field(2, 13)) + field(7, graph)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "smart-turn.onnx"
    path.write_bytes(onnx(800))
    return path


def logit(probability: float) -> float:
    return float(np.log(probability / (1 - probability)))


def test_the_last_eight_seconds_count_and_not_how_loud_they_are(model):
    judge = SmartTurn(model)
    sound = np.random.default_rng(0).normal(scale=0.05, size=10 * 24_000).astype(np.float32)
    assert judge.probability(sound) == pytest.approx(judge.probability(sound[-8 * 24_000 :]), abs=0.002)
    assert judge.probability(0.1 * sound) == pytest.approx(judge.probability(sound), abs=0.002)
    assert judge.probability(sound[-24_000:]) < judge.probability(sound) - 0.05, "seven of silence"


def test_silence_comes_before_a_short_sound(model):
    features = SmartTurn(model)._features(np.random.default_rng(0).normal(size=16_000).astype(np.float32))
    assert features.shape == (80, 800)
    assert features.dtype == np.float32
    assert features[:, :690].max() < features[:, 705:].min(), "the last second is the loud one"


def test_the_file_is_found_where_it_is_named_or_lies(model, tmp_path, monkeypatch):
    monkeypatch.setenv("CSM_DATA_DIR", str(tmp_path / "data"))
    assert smart_turn.find() is None
    (tmp_path / "data").mkdir()
    placed = tmp_path / "data" / "smart-turn-v3.onnx"
    placed.write_bytes(model.read_bytes())
    assert smart_turn.find() == placed
    monkeypatch.setenv("CSM_SMART_TURN", str(model))
    assert smart_turn.find() == model
    with pytest.raises(CsmError, match=r"no Smart Turn model at .*gone.onnx"):
        smart_turn.find(tmp_path / "gone.onnx")


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "other.onnx"
    path.write_bytes(b"no model")
    with pytest.raises(CsmError, match="cannot load Smart Turn from"):
        SmartTurn(path)
    path.write_bytes(onnx(3000))
    with pytest.raises(CsmError, match=r"expected input_features of shape \(1, 80, 800\)"):
        SmartTurn(path)
