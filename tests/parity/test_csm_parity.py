"""CSM against transformers' `CsmForConditionalGeneration`: a conversation of two turns of text and sound, then a reply.

The checkpoints are what `save_pretrained` wrote and `csm convert` read; the prompt is made by `csm_mlx.frames` here and
by transformers' placeholders there.
"""

import shutil
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from support.originals import (
    RANDOM_CASES,
    Case,
    Reference,
    RunTorch,
    check_context,
    check_greedy,
    check_logits,
    check_prompt_ids,
    check_prompt_rows,
    check_session,
    read_reference,
)

import csm_mlx
from csm_mlx.checkpoint.convert import convert
from csm_mlx.config import CsmConfig
from csm_mlx.frames import is_end
from csm_mlx.stored import preset

pytestmark = pytest.mark.parity


def load_converted(checkpoint: Path, reference: Reference, scratch: Path) -> Case:
    converted = scratch / f"converted-{reference.folder.name}"
    convert(checkpoint, converted, dtype="float32")
    return Case(csm_mlx.load(converted, dtype=mx.float32), reference)


@pytest.fixture(scope="module", params=[*RANDOM_CASES, "csm-tiny"])
def case(request: pytest.FixtureRequest, scratch: Path) -> Case:
    if request.param == "csm-tiny":
        checkpoint = request.getfixturevalue("csm_tiny_hf")
        request.getfixturevalue("run_torch")("csm_reference.py", scratch / "csm", checkpoint)
        return load_converted(checkpoint, read_reference(scratch / "csm" / checkpoint.name), scratch)
    reference = read_reference(request.getfixturevalue("csm_references") / request.param)
    return load_converted(reference.folder / "checkpoint", reference, scratch)


def test_a_conversation_is_long_enough(case: Case) -> None:
    frames = case.reference["greedy"]
    assert len(frames) == 25 or is_end(frames[-1])
    assert len(np.unique(frames, axis=0)) > len(frames) // 2, "the frames hardly change"


def test_codes_of_the_context_are_equal(case: Case) -> None:
    check_context(case)


def test_prompts_are_equal(case: Case) -> None:
    check_prompt_ids(case)
    check_prompt_rows(case)


def test_logits_are_equal(case: Case) -> None:
    check_logits(case)


def test_greedy_frames_are_equal(case: Case) -> None:
    check_greedy(case)


def test_the_session_speaks_the_same_frames(case: Case) -> None:
    check_session(case)


@pytest.mark.slow
def test_csm_1b_at_its_true_dimensions(run_torch: RunTorch, scratch: Path) -> None:
    """15 GB of disk and about 10 GB of memory for some minutes; torch is gone before MLX begins."""
    run_torch("csm_reference.py", scratch / "true", "csm-1b")
    reference = read_reference(scratch / "true" / "csm-1b")
    case = load_converted(reference.folder / "checkpoint", reference, scratch)
    shutil.rmtree(reference.folder / "checkpoint")
    _check_dimensions(case.csm.config.csm)
    assert len(reference["greedy"]) == 25
    for check in (check_context, check_prompt_ids, check_prompt_rows, check_logits, check_greedy):
        check(case)


def _check_dimensions(config: CsmConfig) -> None:
    """Those of the preset but for the rotary numbers, which transformers spells differently for the same curve."""
    true = preset("csm-1b").csm
    backbone = replace(config.backbone, rope_scaling=true.backbone.rope_scaling)
    depth = replace(config.depth, rope_scaling=true.depth.rope_scaling)
    assert replace(config, backbone=backbone, depth=depth) == true
