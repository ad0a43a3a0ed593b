"""Prompt rows, as Sesame's generator lays them out."""

from typing import Any

import numpy as np
import pytest
from support.models import ByteTokenizer, csm_config

from csm_mlx.errors import AudioError, ConfigError
from csm_mlx.frames import DelayLine, Turn, TurnRows, check_codes, is_end, text_ids


def test_text_has_its_speaker_between_begin_and_end() -> None:
    ids = text_ids(" Hi there ", 1, ByteTokenizer(), csm_config())
    assert ids == (1, *b"[1]Hi there", 2)
    spaced = csm_config(speaker_format="[{speaker}] ")
    assert text_ids("Hi", 0, ByteTokenizer(), spaced) == (1, *b"[0] Hi", 2)


def test_sound_ends_with_a_frame_of_zeros() -> None:
    codes = np.arange(8, dtype=np.int32).reshape(2, 4)
    rows = TurnRows((1, 2), codes)
    assert rows.n_rows == 5
    assert rows.audio_rows().tolist() == [[0, 1, 2, 3], [4, 5, 6, 7], [0, 0, 0, 0]]
    assert TurnRows((1, 2), None).n_rows == 2


@pytest.mark.parametrize(
    ("codes", "end"), [([0, 0, 0, 0], True), ([0, 0, 0, 9], True), ([0, 0, 9, 0], False), ([9, 0, 0, 0], False)]
)
def test_end_frame(codes: list[int], end: bool) -> None:
    assert is_end(np.array(codes)) is end


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (np.zeros((3, 5), np.int32), "expected (n_frames, 4) integers"),
        (np.zeros((3, 4), np.float32), "float32"),
        (np.full((3, 4), 61), "codes lie in 61 … 61, expected 0 … 60"),
        (np.full((3, 4), -1), "expected 0 … 60"),
    ],
)
def test_codes_that_are_none(codes: np.ndarray, message: str) -> None:
    with pytest.raises(AudioError) as caught:
        check_codes(codes, csm_config())
    assert message in str(caught.value)


def test_turns_that_are_none() -> None:
    with pytest.raises(ConfigError, match="speaker is -1, expected a whole number"):
        Turn(speaker=-1, text="Hi")
    with pytest.raises(ConfigError, match="neither text nor sound"):
        Turn(speaker=0, text="  ")
    with pytest.raises(AudioError, match=r"expected \(n_samples,\)"):
        Turn(speaker=0, text="Hi", pcm=np.zeros((2, 100), np.float32))


@pytest.mark.parametrize(
    ("pcm", "message"),
    [
        (np.ones(1920, np.int16), r"pcm is int16, expected a float32 array in \[-1, 1\]; divide 16-bit samples"),
        ([0.0] * 1920, "pcm is list, expected a float32 array"),
        (np.ones((1, 1920), np.float32), r"pcm has shape \(1, 1920\), expected \(n_samples,\)"),
        (np.full(1920, np.nan, np.float32), "pcm holds NaN or infinite samples, expected numbers"),
    ],
)
def test_sound_that_is_none(pcm: Any, message: str) -> None:
    with pytest.raises(AudioError, match=message):
        Turn(speaker=0, text="x", pcm=pcm)


@pytest.mark.parametrize("delays", [(0,), (0, 1, 1), (0, 2, 1, 0, 2), (3, 3)])
def test_undelaying_what_was_delayed_is_the_identity(delays: tuple[int, ...]) -> None:
    line, frames = DelayLine(delays), np.arange(7 * len(delays)).reshape(7, -1)
    fill = [-1 - k for k in range(len(delays))]
    delayed = line.delayed(frames, fill)
    assert delayed.shape == (7 + max(delays), len(delays))
    for k, delay in enumerate(delays):
        assert delayed[:delay, k].tolist() == [fill[k]] * delay
        assert delayed[delay : delay + 7, k].tolist() == frames[:, k].tolist()
        assert delayed[delay + 7 :, k].tolist() == [fill[k]] * (max(delays) - delay)
    np.testing.assert_array_equal(line.undelayed(delayed), frames)
    assert line.undelayed(delayed[: max(delays)]).shape == (0, len(delays))
