"""Kyutai's language models against their PyTorch package: given frames, and conversations frame by frame.

Every window is shorter than the run. The package throws the first frame of a conversation away; what it makes of the
others, ours makes of them from the first one on.
"""

from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from support.originals import GREEDY, TOLERANCE, Reference, RunTorch, read_reference

from csm_mlx.checkpoint.moshi import load_lm, open_lm
from csm_mlx.frames import DelayLine
from csm_mlx.generate.duplex import TokenSession
from csm_mlx.models.moshi import MoshiModel

pytestmark = pytest.mark.parity

CASES = ("stt", "moshi", "hibiki", "other")
N_FRAMES = 60


@pytest.fixture(scope="module")
def references(run_torch: RunTorch, scratch: Path) -> Path:
    run_torch("moshi_reference.py", scratch / "moshi", *CASES)
    return scratch / "moshi"


@pytest.fixture(scope="module", params=CASES)
def reference(request: pytest.FixtureRequest, references: Path) -> Reference:
    return read_reference(references / request.param)


@pytest.fixture(scope="module")
def model(reference: Reference) -> MoshiModel:
    return load_lm(reference.folder / "torch")


def hidden_states(model: MoshiModel, codes: np.ndarray) -> tuple[mx.array, np.ndarray]:
    """States (B, T, dim) that predict given frames (B, K, T), and those frames (B, T, K) with their delays."""
    line, initial = DelayLine(model.config.delays), model.config.initial_tokens
    delayed = np.stack([line.delayed(row.T, initial)[: row.shape[1]] for row in codes])
    first = np.broadcast_to(np.array(initial, np.int32), (len(codes), 1, len(initial)))
    inputs = np.concatenate([first, delayed[:, :-1]], axis=1)
    condition = model.condition(dict.fromkeys(model.config.conditions, "very_good"))
    hidden, _ = model(mx.array(inputs), model.make_state(len(codes), chunk_frames=inputs.shape[1]), condition)
    return hidden, delayed


def test_windows_are_shorter_than_the_run(model: MoshiModel, reference: Reference) -> None:
    window = model.config.temporal.window
    assert window is not None
    assert 2 * window <= reference["codes"].shape[2] == N_FRAMES
    assert np.abs(reference["text_logits"]).max() > 1


def test_logits_are_equal(model: MoshiModel, reference: Reference) -> None:
    c = model.config
    hidden, delayed = hidden_states(model, reference["codes"])
    batch, n_frames, dim = hidden.shape
    rows = hidden.reshape(-1, dim)
    text = np.array(model.text_logits(rows)).reshape(batch, n_frames, -1)
    np.testing.assert_allclose(text, reference["text_logits"], atol=TOLERANCE, rtol=0)
    if c.n_extra_heads:
        extra = np.array(model.extra_logits(rows)).reshape(reference["extra_logits"].shape)
        np.testing.assert_allclose(extra, reference["extra_logits"], atol=TOLERANCE, rtol=0)
    if c.n_generated:
        tokens = mx.array(delayed.reshape(-1, delayed.shape[2]))
        ours = np.array(model.frame_logits(rows, tokens)).reshape(batch, n_frames, c.n_generated, -1)
        theirs, known = reference["audio_logits"], reference["audio_mask"].astype(bool)
        assert known.mean() > 0.9
        for k, delay in enumerate(c.delays[1 : 1 + c.n_generated]):
            n = n_frames - delay
            assert known[:, k, :n].all()
            np.testing.assert_allclose(ours[:, delay:, k], theirs[:, k, :n], atol=TOLERANCE, rtol=0)


def test_greedy_conversations_are_equal(model: MoshiModel, reference: Reference) -> None:
    conditions = dict.fromkeys(model.config.conditions, "very_good")
    session = TokenSession(model, text=GREEDY, audio=GREEDY, conditions=conditions)
    text, codes = [], []
    for frame in reference["heard"]:
        step = session.step(frame)
        text += np.array(step.text).tolist()
        if step.codes is not None:
            codes.append(np.array(step.codes[0]))
    # Theirs come a frame's text with its last codes, and with what the throwaway frame says; ours says text at once.
    theirs, late = reference["said"], max(model.config.delays)
    assert len(theirs) == N_FRAMES + 1 - late
    assert text[: N_FRAMES - late] == theirs[1:, 0].tolist()
    assert len(set(text)) > 5, "the text hardly changes"
    if model.config.n_generated:
        np.testing.assert_array_equal(np.stack(codes), theirs[:, 1:])
        assert len(np.unique(theirs[:, 1:], axis=0)) > N_FRAMES / 2, "the codes hardly change"


def test_pause_heads_are_equal(references: Path) -> None:
    reference = read_reference(references / "stt")
    model = load_lm(reference.folder / "torch")
    session = TokenSession(model, text=GREEDY)
    extra = []
    for frame in reference["heard"]:
        session.step(frame)
        extra.append(np.array(mx.softmax(model.extra_logits(session.state["hidden"])[0], axis=-1)))
    np.testing.assert_allclose(np.stack(extra), reference["extra"][1:], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("layout", ["mlx", "candle"])
def test_layouts_load_to_equal_weights(reference: Reference, layout: str) -> None:
    ours, theirs = (load_lm(reference.folder / kind) for kind in ("torch", layout))
    assert ours.config == theirs.config
    expected = dict(tree_flatten(ours.parameters()))
    found = dict(tree_flatten(theirs.parameters()))
    assert expected.keys() == found.keys()
    for name, weight in expected.items():
        assert mx.array_equal(weight, found[name]).item(), name
    sliced = reference.folder.name != "stt"
    assert open_lm(reference.folder / layout).layout == ("kyutai-slices" if sliced or layout == "mlx" else "kyutai")
