"""The shipped voice, trained: from a manifest to an adapter that speaks."""

import json
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

import csm_mlx
from csm_mlx.audio import write_audio
from csm_mlx.lora import AdapterConfig
from csm_mlx.train import TrainConfig, encode_examples, read_manifest, train

TEXTS = ("good morning", "thank you very much")


def codes_of(csm: csm_mlx.Csm, text: str, n_frames: int) -> np.ndarray:
    session = csm.session()
    list(session.speak(text, speaker=0, max_seconds=(n_frames + 10) * csm.frame_size / csm.sample_rate_hz))
    codes = session.turns[-1].codes
    assert codes is not None
    return codes


@pytest.mark.slow
def test_csm_tiny_learns_to_say_something_else(tmp_path: Path) -> None:
    csm = csm_mlx.load()
    clips = [np.concatenate(list(csm.session().speak(text)))[: csm.frame_size * 8] for text in TEXTS]
    lines = []
    for text, clip, path in zip(reversed(TEXTS), clips, ("0.wav", "1.wav"), strict=True):  # each the other's sound
        write_audio(tmp_path / path, clip, csm.sample_rate_hz)
        lines.append(json.dumps({"speaker": 0, "text": text, "audio": path}))
    (tmp_path / "clips.jsonl").write_text("\n".join(lines))
    manifest = read_manifest(tmp_path / "clips.jsonl", csm)
    examples = encode_examples(csm, manifest.examples, cache=manifest.cache_folder)
    config = TrainConfig(
        adapter=AdapterConfig(targets=("*",), rank=16), steps=60, batch=2, learning_rate=5e-3, depth_share=1.0
    )
    result = train(csm, config, examples, tmp_path / "out")
    assert result.losses
    assert result.losses.total < 0.05
    adapted = csm_mlx.load(adapter=tmp_path / "out")
    for text, example in zip(reversed(TEXTS), examples, strict=True):
        learnt = example.turns[-1].codes
        assert learnt is not None
        for speaker in (csm, adapted):
            assert np.array_equal(codes_of(speaker, text, len(learnt)), learnt)
    assert csm.model.dtype == adapted.model.dtype == mx.float32
