"""Codes are made once; examples come in an order that only seed and step decide."""

from pathlib import Path

import numpy as np
import pytest
from support.models import csm_config, random_csm, random_csm_model
from support.training import random_examples, tone

from csm_mlx.audio import write_audio
from csm_mlx.errors import CheckpointError, ConfigError
from csm_mlx.generate.session import Csm
from csm_mlx.quantize_report import teacher_forced
from csm_mlx.train import Example, encode_examples, read_manifest
from csm_mlx.train.data import FRAMES, VALIDATION_FRAMES, chosen_frames, data_hash, make_batch, step_examples
from csm_mlx.train.loss import codebook_sums


@pytest.fixture(scope="module")
def csm() -> Csm:
    return random_csm()


@pytest.fixture
def examples(csm: Csm, tmp_path: Path) -> tuple[Example, ...]:
    lines = []
    for i in range(3):
        write_audio(tmp_path / f"{i}.wav", tone(9000 + 3000 * i, i), 24000)
        lines.append(f'{{"speaker": 0, "text": "Text {i}", "audio": "{i}.wav"}}')
    path = tmp_path / "m.jsonl"
    path.write_text("\n".join(lines))
    return read_manifest(path, csm).examples


def test_codes_are_made_once(csm: Csm, examples: tuple[Example, ...], tmp_path: Path) -> None:
    cache, seen = tmp_path / "cache", []
    first = encode_examples(csm, examples, cache=cache, on_clip=lambda n, total: seen.append((n, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]
    files = sorted(cache.iterdir())
    assert len(files) == 3
    times = [file.stat().st_mtime_ns for file in files]
    again = encode_examples(csm, examples, cache=cache)
    assert [file.stat().st_mtime_ns for file in files] == times
    assert data_hash(first) == data_hash(again)
    # A broken or a cut file is noticed and made again.
    whole = files[0].read_bytes()
    for broken in (whole[:-30], whole[:60] + bytes([whole[60] ^ 1]) + whole[61:], b""):
        files[0].write_bytes(broken)
        assert data_hash(encode_examples(csm, examples, cache=cache)) == data_hash(first)
        assert len(files[0].read_bytes()) == len(whole)
    # Another codec makes other codes.
    other = random_csm(seed=5)
    assert data_hash(encode_examples(other, examples, cache=cache)) != data_hash(first)
    assert len(list(cache.iterdir())) == 6


def test_a_cache_that_cannot_be_written(csm: Csm, examples: tuple[Example, ...], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="choose another place"):
        encode_examples(csm, examples, cache=tmp_path / "file")


def test_context_that_does_not_fit_is_left_out() -> None:
    example = random_examples(csm_config(), (3, 8))[1]
    assert example.turn_rows == (10, 3, 14)
    assert example.fitted(27) is example
    assert example.fitted(26).turn_rows == (3, 14)
    assert example.fitted(16).turn_rows == (14,)
    with pytest.raises(ConfigError, match="random:2 takes 14 positions, expected at most 13"):
        example.fitted(13)


def test_every_epoch_is_a_permutation_of_all_examples() -> None:
    drawn = [i for step in range(7) for i in step_examples(3, step, n_examples=10, n_per_step=4)]
    assert sorted(drawn[:10]) == sorted(drawn[10:20]) == list(range(10))
    assert drawn[:10] != drawn[10:20]
    assert [i for step in range(14) for i in step_examples(3, step, 10, 2)] == drawn
    assert step_examples(4, 0, 10, 4) != step_examples(3, 0, 10, 4)
    assert sorted(step_examples(0, 5, n_examples=2, n_per_step=6)) == [0, 0, 0, 1, 1, 1]


def test_frames_are_chosen_evenly_and_at_least_one() -> None:
    counts = np.zeros(32)
    for step in range(2000):
        chosen = chosen_frames(0, FRAMES, step, 1, 32, 1 / 16)
        assert len(chosen) == len(set(chosen)) == 2
        counts[chosen] += 1
    assert 85 < counts.min() <= counts.max() < 170
    assert len(chosen_frames(0, FRAMES, 0, 0, 3, 1 / 16)) == 1
    assert chosen_frames(0, FRAMES, 0, 0, 9, 1.0).tolist() == list(range(9))
    draws = [chosen_frames(0, FRAMES, 5, 1, 500, 0.02), chosen_frames(0, FRAMES, 5, 2, 500, 0.02)]
    draws += [chosen_frames(0, VALIDATION_FRAMES, 5, 1, 500, 0.02), chosen_frames(1, FRAMES, 5, 1, 500, 0.02)]
    assert len({tuple(draw) for draw in draws}) == 4


def test_a_batch_predicts_what_a_conversation_would() -> None:
    """The losses are those of the logits of `teacher_forced`, which feeds turns one after the other to the cache."""
    model = random_csm_model(csm_config(codebook_size=64))  # all that a head knows, or the report would leave some out
    examples = random_examples(model.config, (9, 4, 300))
    expected = np.zeros(model.config.n_codebooks)
    for example in examples:
        logits = np.concatenate([np.array(x) for x in teacher_forced(model, example.turns)])[-example.n_frames :]
        truth = example.turns[-1].audio_rows()
        expected += [_cross_entropy(logits[:, k], truth[:, k]) for k in range(logits.shape[1])]
    batch = make_batch(examples, [np.arange(example.n_frames) for example in examples])
    assert batch.layout.shape == (3, 5 + 301)
    assert np.array(codebook_sums(model, batch)) == pytest.approx(expected, rel=1e-5)


def _cross_entropy(logits: np.ndarray, truth: np.ndarray) -> float:
    top = logits.max(-1, keepdims=True)
    log_sum = np.log(np.exp(logits - top).sum(-1)) + top[:, 0]
    return float((log_sum - logits[np.arange(len(truth)), truth]).sum())


def test_the_hash_of_the_data_tells_differences() -> None:
    config = csm_config()
    examples = random_examples(config)
    hashes = {data_hash(examples), data_hash(examples[::-1]), data_hash(examples[:3]), data_hash(examples, examples)}
    assert len(hashes | {data_hash(random_examples(config, seed=1))}) == 5
    assert data_hash(random_examples(config)) == data_hash(examples)
