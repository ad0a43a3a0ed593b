"""Mimi's front door: shapes, padding, how many codebooks, and what is refused."""

from concurrent.futures import ThreadPoolExecutor

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from support.models import largest, mimi_config, random_mimi

from csm_mlx.errors import AudioError
from csm_mlx.models.mimi import Mimi


@pytest.fixture(scope="module")
def codec() -> Mimi:
    return random_mimi()


def test_a_clip_is_padded_to_whole_frames(codec: Mimi) -> None:
    pcm = 0.1 * mx.random.normal((1, 5000, 1))
    codes, _ = codec.encode(pcm)
    padded, _ = codec.encode(mx.pad(pcm, [(0, 0), (0, 760), (0, 0)]))
    assert codes.shape == (1, 3, 4)
    assert codes.dtype == mx.int32
    assert mx.array_equal(codes, padded)
    sound, _ = codec.decode(codes)
    assert sound.shape == (1, 3 * 1920, 1)


def test_another_thread_uses_what_one_has_loaded() -> None:
    """Arrays that a model holds besides its weights are made when it is: what is left to be made, is by no other."""
    codec = random_mimi()
    mx.eval(codec.parameters())
    with ThreadPoolExecutor(1) as other:
        codes = other.submit(lambda: np.array(codec.encode(mx.ones((1, 3840, 1)))[0])).result()
        sound = other.submit(lambda: np.array(codec.decode(mx.array(codes))[0])).result()
    assert np.array_equal(codes, codec.encode(mx.ones((1, 3840, 1)))[0])
    assert np.allclose(sound, codec.decode(mx.array(codes))[0], atol=1e-6)


def test_a_stream_takes_whole_frames_only(codec: Mimi) -> None:
    _, state = codec.encode(mx.zeros((1, 1920, 1)))
    with pytest.raises(AudioError, match=r"given 5000 samples, expected a multiple of 1920 \(80 ms\)"):
        codec.encode(mx.zeros((1, 5000, 1)), state)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_fewer_codebooks(codec: Mimi, n: int) -> None:
    pcm = 0.1 * mx.random.normal((1, 4 * 1920, 1))
    codes, _ = codec.encode(pcm)
    fewer, _ = codec.encode(pcm, n_codebooks=n)
    assert mx.array_equal(fewer, codes[..., :n])
    sound, _ = codec.decode(fewer)
    whole, _ = codec.decode(codes)
    assert sound.shape == whole.shape
    assert largest(sound - whole) > 1e-4  # every codebook is heard


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda c: c.encode(mx.zeros((1, 1920))), "expected (batch, n_samples, 1)"),
        (lambda c: c.encode(mx.zeros((1, 0, 1))), "at least one sample"),
        (
            lambda c: c.encode(mx.zeros((1, 1920, 1)), n_codebooks=5),
            "5 codebooks were asked for, this codec has 1 to 4",
        ),
        (lambda c: c.decode(mx.zeros((1, 3, 5), mx.int32)), "5 codebooks were asked for"),
        (lambda c: c.decode(mx.zeros((3, 4), mx.int32)), "expected (batch, n_frames, n_codebooks)"),
    ],
)
def test_other_shapes_are_refused(codec: Mimi, call, message: str) -> None:
    with pytest.raises(AudioError) as caught:
        call(codec)
    assert message in str(caught.value)


def test_frames_of_one_latent() -> None:
    """csm-tiny may have 40 ms frames: then nothing is resampled, and no such weights exist."""
    codec = random_mimi(mimi_config(downsample_stride=1))
    assert codec.config.frame_rate_hz == 25
    assert not {"upsample", "downsample"} & set(codec.parameters())
    codes, _ = codec.encode(0.1 * mx.random.normal((1, 960 * 7, 1)))
    assert codes.shape == (1, 7, 4)
    assert codec.decode(codes)[0].shape == (1, 960 * 7, 1)


def test_how_a_stream_began_decides_nothing() -> None:
    """Long calls after a short first one run in more steps than those of a stream that began with them."""
    codec = random_mimi(mimi_config())
    pcm = 0.3 * mx.random.normal((1, 90 * 1920, 1))
    codes, _ = codec.encode(pcm)
    sound, _ = codec.decode(codes)
    for n_first in (1, 70):
        first, state = codec.encode(pcm[:, : n_first * 1920])
        rest, _ = codec.encode(pcm[:, n_first * 1920 :], state)
        assert mx.array_equal(mx.concatenate([first, rest], axis=1), codes)
        first, state = codec.decode(codes[:, :n_first])
        rest, _ = codec.decode(codes[:, n_first:], state)
        assert largest(mx.concatenate([first, rest], axis=1) - sound) < 2e-5


def test_one_model_keeps_no_state(codec: Mimi) -> None:
    pcm = 0.1 * mx.random.normal((1, 5 * 1920, 1))
    before = np.array(codec.encode(pcm)[0])
    _, abandoned = codec.encode(pcm)
    codec.encode(pcm, abandoned)
    assert np.array_equal(before, np.array(codec.encode(pcm)[0]))
    codec.freeze()  # works: no layer hides its parameters from MLX
    assert not tree_flatten(codec.trainable_parameters())


def test_whole_numbers_are_no_sound() -> None:
    with pytest.raises(AudioError, match=r"pcm is mlx.core.int16, expected floats in \[-1, 1\]; divide 16-bit"):
        random_mimi().encode(mx.zeros((1, 1920, 1), mx.int16))


def test_the_state_after_a_long_chunk_keeps_no_more_than_itself(codec: Mimi) -> None:
    def held(n_frames: int) -> int:
        _, encoded = codec.encode(mx.zeros((1, n_frames * 1920, 1)))
        _, decoded = codec.decode(mx.zeros((1, n_frames, 4), mx.int32))
        mx.eval(encoded, decoded)
        before = mx.get_active_memory()
        del encoded, decoded
        return before - mx.get_active_memory()

    limit = mx.set_cache_limit(0)  # else an array may be given a larger buffer that another test left
    few, many = held(2), held(60)
    mx.set_cache_limit(limit)
    assert many < 2 * few
