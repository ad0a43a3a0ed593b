"""Against numbers that PyTorch computed once (`tests/golden/make.py`): the embedded voice, and random weights."""

from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from support.originals import (
    TOLERANCE,
    Case,
    check_context,
    check_greedy,
    check_logits,
    check_prompt_ids,
    check_session,
    read_reference,
)

import csm_mlx

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="module")
def tiny() -> Case:
    """The embedded voice: trained, our own format; the numbers are transformers' from the same weights."""
    return Case(csm_mlx.load(dtype=mx.float32), read_reference(GOLDEN, "csm-tiny"))


@pytest.fixture(scope="module")
def random() -> Case:
    """Random weights in the transformers layout: other head dimensions, codebooks and rotary numbers."""
    return Case(csm_mlx.load(GOLDEN / "random", dtype=mx.float32), read_reference(GOLDEN, "random"))


@pytest.fixture(params=["tiny", "random"])
def case(request: pytest.FixtureRequest) -> Case:
    return request.getfixturevalue(request.param)


def test_codes_of_the_context(case: Case) -> None:
    check_context(case)


def test_prompt(case: Case) -> None:
    check_prompt_ids(case)


def test_logits(case: Case) -> None:
    check_logits(case)


def test_greedy_frames(case: Case) -> None:
    check_greedy(case)


def test_session(case: Case) -> None:
    check_session(case)


@pytest.mark.parametrize("chunk_frames", [150, 7])
def test_codec_past_its_attention_window(tiny: Case, chunk_frames: int) -> None:
    codec, reference = tiny.csm.codec, tiny.reference
    chunk, encoder, decoder, codes, sound = chunk_frames * codec.config.frame_size, None, None, [], []
    for start in range(0, len(reference["long.pcm"]), chunk):
        new, encoder = codec.encode(mx.array(reference["long.pcm"][None, start : start + chunk, None]), encoder)
        pcm, decoder = codec.decode(new, decoder)
        codes.append(np.array(new[0]))
        sound.append(np.array(pcm[0, :, 0]))
    np.testing.assert_array_equal(np.concatenate(codes), reference["long.codes"])
    pcm = np.concatenate(sound)
    rms = np.sqrt(np.square(pcm).reshape(-1, codec.config.frame_size).mean(axis=1))
    assert np.abs(rms - reference["long.rms"]).max() < TOLERANCE
    expected = reference["long.end"]
    assert np.abs(pcm[-len(expected) :] - expected).max() < TOLERANCE
