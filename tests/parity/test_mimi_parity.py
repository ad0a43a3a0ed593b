"""Mimi against transformers, Kyutai's PyTorch package and rustymimi: the same codes, always and everywhere.

Kyutai's own streaming encoder is no oracle past 10 s (its ring holds one key too few for the older of a frame's two
latents), so all originals run offline; ours runs whole and in chunks.
"""

from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from support.originals import Reference, RunTorch, read_reference

import csm_mlx
from csm_mlx.checkpoint.convert import convert
from csm_mlx.models.mimi import Mimi

pytestmark = pytest.mark.parity

LAYOUTS = ("kyutai.safetensors", "transformers")
CHUNKS = (1, 2, 3, 5)
WINDOW_FRAMES = 125
"""Attention sees 250 latents of 40 ms; frames from here on are past it."""


@pytest.fixture(scope="module")
def reference(run_torch: RunTorch, scratch: Path) -> Reference:
    run_torch("mimi_reference.py", scratch / "mimi")
    return read_reference(scratch / "mimi")


@pytest.fixture(scope="module")
def codecs(reference: Reference, csm_references: Path, scratch: Path) -> dict[str, Mimi]:
    """The codec of each layout, through `csm convert` beside some CSM."""
    some_csm, found = csm_references / "narrow-1b" / "checkpoint", {}
    for layout in LAYOUTS:
        out = scratch / f"codec-{layout}"
        convert(some_csm, out, codec=reference.folder / layout)
        found[layout] = csm_mlx.load(out).codec
    return found


@pytest.fixture(scope="module", params=LAYOUTS)
def codec(request: pytest.FixtureRequest, codecs: dict[str, Mimi]) -> Mimi:
    return codecs[request.param]


@pytest.fixture(scope="module")
def trained(run_torch: RunTorch, scratch: Path, csm_tiny_hf: Path) -> tuple[Mimi, Reference]:
    """csm-tiny's own codec, converted, and what transformers makes of it."""
    run_torch("mimi_reference.py", scratch / "mimi-tiny", csm_tiny_hf)
    convert(csm_tiny_hf, scratch / "codec-tiny")
    return csm_mlx.load(scratch / "codec-tiny").codec, read_reference(scratch / "mimi-tiny")


def with_window(codec: Mimi, window: int) -> Mimi:
    other = Mimi(replace(codec.config, transformer=replace(codec.config.transformer, window=window)))
    other.update(codec.parameters())
    return other


def encode(codec: Mimi, pcm: np.ndarray, chunk_frames: int | None = None) -> np.ndarray:
    """Codes (T, K) of pcm (n,), whole or in chunks."""
    step = (chunk_frames or -(-len(pcm) // codec.config.frame_size)) * codec.config.frame_size
    codes, state = [], None
    for start in range(0, len(pcm), step):
        new, state = codec.encode(mx.array(pcm[None, start : start + step, None]), state)
        mx.eval(new, state)
        codes.append(np.array(new[0]))
    return np.concatenate(codes)


def decode(codec: Mimi, codes: np.ndarray, chunk_frames: int | None = None) -> np.ndarray:
    """Sound (n,) of codes (T, K), whole or in chunks."""
    step = chunk_frames or len(codes)
    pcm, state = [], None
    for start in range(0, len(codes), step):
        new, state = codec.decode(mx.array(codes[None, start : start + step]), state)
        mx.eval(new, state)
        pcm.append(np.array(new[0, :, 0]))
    return np.concatenate(pcm)


def assert_close(ours: np.ndarray, theirs: np.ndarray, tolerance: float = 1e-4) -> None:
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() < tolerance


def test_the_fixture_is_demanding(reference: Reference) -> None:
    codes = reference["codes.transformers"]
    assert codes.shape == (150, 32)
    assert min(len(np.unique(codes[:, k])) for k in range(32)) > 75, "the codes hardly depend on the sound"
    assert 0.02 < reference["decoded.transformers"].std() < 0.5, "the sound is not at speech level"


def test_both_layouts_load_to_equal_weights(codecs: dict[str, Mimi]) -> None:
    first, second = (dict(tree_flatten(codecs[layout].parameters())) for layout in LAYOUTS)
    assert first.keys() == second.keys()
    assert [name for name in first if not mx.array_equal(first[name], second[name]).item()] == []


def check_equal(codec: Mimi, reference: Reference, chunk_frames: int | None = None) -> None:
    codes = encode(codec, reference["pcm"], chunk_frames)
    pcm = decode(codec, reference["codes.transformers"], chunk_frames)
    for original in ("transformers", "moshi"):
        np.testing.assert_array_equal(codes, reference[f"codes.{original}"], original)
        assert_close(pcm, reference[f"decoded.{original}"])


def test_codes_and_sound_are_equal(codec: Mimi, reference: Reference) -> None:
    check_equal(codec, reference)


@pytest.mark.parametrize("chunk_frames", CHUNKS)
def test_streamed_codes_and_sound_are_equal(codecs: dict[str, Mimi], reference: Reference, chunk_frames: int) -> None:
    check_equal(codecs["transformers"], reference, chunk_frames)


def test_a_clip_of_no_whole_frames_is_padded_as_kyutai_does(codecs: dict[str, Mimi], reference: Reference) -> None:
    codes = encode(codecs["transformers"], reference["pcm"][: 24_000 * 2 + 777])
    np.testing.assert_array_equal(codes, reference["codes_partial.moshi"])


def test_sound_of_the_first_codebooks_is_equal(codecs: dict[str, Mimi], reference: Reference) -> None:
    pcm = decode(codecs["transformers"], reference["codes.transformers"][:, :8])
    assert_close(pcm, reference["decoded8.transformers"])


def test_rustymimi_is_equal_within_its_window(codecs: dict[str, Mimi], reference: Reference) -> None:
    codec = codecs["kyutai.safetensors"]
    codes = encode(codec, reference["pcm"])[:WINDOW_FRAMES]
    np.testing.assert_array_equal(codes, reference["codes.rustymimi"][:WINDOW_FRAMES])
    n_samples = WINDOW_FRAMES * codec.config.frame_size
    pcm = decode(codec, reference["codes.transformers"])[:n_samples]
    assert_close(pcm, reference["decoded.rustymimi"][:n_samples])


@pytest.mark.parametrize("chunk_frames", [None, 2])
def test_rustymimi_is_equal_past_a_window_one_longer(
    codecs: dict[str, Mimi], reference: Reference, chunk_frames: int | None
) -> None:
    """rustymimi 0.4.1 attends to 251 latents where both PyTorch packages attend to 250 (`get_mask` in moshi-core's
    transformer.rs drops a key only when `context` is *less* than its distance), so from frame 125 on it differs from
    them. With its window ours equals it to the end, which shows that nothing else differs."""
    assert not np.array_equal(reference["codes.rustymimi"], reference["codes.moshi"]), "rustymimi has changed"
    codec = with_window(codecs["kyutai.safetensors"], 251)
    np.testing.assert_array_equal(encode(codec, reference["pcm"], chunk_frames), reference["codes.rustymimi"])
    assert_close(decode(codec, reference["codes.transformers"], chunk_frames), reference["decoded.rustymimi"])


@pytest.mark.parametrize("chunk_frames", [None, *CHUNKS])
def test_the_trained_codec_is_equal(trained: tuple[Mimi, Reference], chunk_frames: int | None) -> None:
    codec, reference = trained
    np.testing.assert_array_equal(encode(codec, reference["pcm"], chunk_frames), reference["codes.transformers"])
    assert_close(decode(codec, reference["codes.transformers"], chunk_frames), reference["decoded.transformers"])
