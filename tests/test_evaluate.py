"""Evaluation with the real recognizer: on real speech, and on the embedded voice."""

from pathlib import Path

import numpy as np
import pytest
from support.models import random_csm

import csm_mlx
from csm_mlx.audio import read_audio
from csm_mlx.config import SamplingConfig
from csm_mlx.errors import ConfigError, CsmError
from csm_mlx.evaluate import Evaluation, Utterance, compare, evaluate, plot
from csm_mlx.recognize import Whisper

CLIP = Path(__file__).parent / "data" / "harbour.flac"


@pytest.fixture(scope="module")
def whisper() -> Whisper:
    return Whisper()


def utterance(n_words: int, n_wrong: int, **changes) -> Utterance:
    values = {"text": "a", "heard": "b", "sound_s": 2.0, "work_s": 1.0, "first_audio_s": 0.1, "quality": None}
    values |= {"early_end": False, "missing_end": False, "pitch_hz": None}
    return Utterance(n_words=n_words, n_wrong=n_wrong, **{**values, **changes})


def test_whisper_hears_real_speech(whisper: Whisper) -> None:
    heard = whisper.transcribe(read_audio(CLIP, 24_000), 24_000)
    assert compare("The harbour was quiet when the ferry came in.", heard) == (9, 0, False)


@pytest.mark.parametrize(
    ("text", "heard", "expected"),
    [
        ("It's 20 dollars, Mr. Smith!", "it is twenty dollars mister smith", (5, 0, False)),
        ("one small step for me", "one small step", (5, 2, True)),
        ("one small step", "one step", (3, 1, False)),
        ("one small step", "one small step and more", (3, 2, False)),
        ("one small step", "", (3, 3, True)),
    ],
)
def test_words_are_compared_as_they_sound(text: str, heard: str, expected: tuple[int, int, bool]) -> None:
    assert compare(text, heard) == expected


def test_rates_are_over_all_words() -> None:
    result = Evaluation((utterance(8, 1), utterance(2, 2, missing_end=True, early_end=True, sound_s=4.0)))
    assert result.word_error_rate == pytest.approx(0.3)
    assert result.words_per_minute == pytest.approx(100)
    assert result.real_time_factor == pytest.approx(1 / 3)
    assert (result.n_missing_ends, result.n_early_ends, result.quality) == (1, 1, None)


def test_the_embedded_voice_is_evaluated_reproducibly(whisper: Whisper, tmp_path: Path) -> None:
    csm = csm_mlx.load()
    sentences = ["What time is it?", "The children are playing in the garden."]
    greedy = SamplingConfig(temperature=0.0)
    judged: list[int] = []

    def judge(pcm: np.ndarray, sample_rate_hz: int) -> dict[str, float]:
        judged.append(len(pcm))
        return {"peak": float(np.abs(pcm).max()), "rate": float(sample_rate_hz)}

    runs = [tuple(evaluate(csm, said, whisper, sampling=greedy, judge=judge)) for said in (sentences, sentences[:1])]
    result = Evaluation(runs[0])
    assert runs[0][0].heard == runs[1][0].heard
    assert judged[0] == judged[2]
    assert [u.text for u in runs[0]] == sentences
    assert [u.n_words for u in runs[0]] == [4, 7]
    assert [round(24_000 * u.sound_s) for u in runs[0]] == judged[:2]
    assert result.n_missing_ends == 0
    assert result.to_dict()["quality"]["rate"] == 24_000
    plot(result, tmp_path / "errors.png", "csm-tiny")
    assert (tmp_path / "errors.png").read_bytes().startswith(b"\x89PNG")


def test_bad_input_is_refused_before_anything_is_said(whisper: Whisper) -> None:
    with pytest.raises(ConfigError, match=r"sentence 2 of 2 is '…', expected at least one word"):
        next(evaluate(random_csm(), ["Hello.", "…"], whisper))
    with pytest.raises(CsmError, match=r"cannot load whisper '/nowhere/at-all' .* give a folder"):
        Whisper("/nowhere/at-all").transcribe(np.zeros(24_000, np.float32), 24_000)
