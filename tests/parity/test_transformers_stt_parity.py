"""Speech-to-text against transformers, on a random model that it saved itself."""

from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from support.moshi import write_spm
from support.originals import GREEDY, TOLERANCE, Reference, RunTorch, read_reference

from csm_mlx.checkpoint.load import load_codec
from csm_mlx.checkpoint.moshi import load_lm, open_lm
from csm_mlx.checkpoint.source import open_moshi
from csm_mlx.generate.duplex import TokenSession
from csm_mlx.models.moshi import MoshiModel

pytestmark = pytest.mark.parity


@pytest.fixture(scope="module")
def reference(run_torch: RunTorch, scratch: Path) -> Reference:
    run_torch("transformers_stt_reference.py", scratch / "transformers-stt")
    return read_reference(scratch / "transformers-stt")


@pytest.fixture(scope="module")
def model(reference: Reference) -> MoshiModel:
    return load_lm(reference.folder / "checkpoint")


def test_it_was_saved_in_shards_of_its_layout(reference: Reference) -> None:
    assert open_lm(reference.folder / "checkpoint").layout == "kyutai-transformers"
    assert len(list((reference.folder / "checkpoint").glob("model-*.safetensors"))) > 2


def test_logits_are_equal(model: MoshiModel, reference: Reference) -> None:
    tokens, expected = mx.array(reference["tokens"]), reference["logits"]
    hidden, _ = model(tokens, model.make_state(len(tokens), chunk_frames=tokens.shape[1]))
    ours = np.array(model.text_logits(hidden.reshape(-1, hidden.shape[-1]))).reshape(expected.shape)
    assert np.abs(expected).max() > 1
    np.testing.assert_allclose(ours, expected, atol=TOLERANCE, rtol=0)


def test_sound_becomes_the_same_codes_and_the_same_text(model: MoshiModel, reference: Reference) -> None:
    source = open_moshi(reference.folder / "checkpoint", "stt", tokenizer=write_spm(reference.folder / "any.model"))
    codes, _ = load_codec(source).encode(mx.array(reference["pcm"])[None, :, None])
    np.testing.assert_array_equal(codes[0], reference["codes"])
    session = TokenSession(model, text=GREEDY)
    text = [np.array(session.step(frame).text).item() for frame in np.array(codes[0])]
    # The token that a stream begins with, and the one that is said before it hears anything, are not of the sound.
    first, _, *said = reference["said"].tolist()
    assert first == model.config.text_vocab_size
    assert text[:-1] == said
    assert len(set(said)) > 5, "the text hardly changes"
