"""Conversations by sound: what is heard becomes codes, codes become sound and text, each in its step."""

import gc
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from support.models import largest
from support.moshi import GREEDY, hibiki_config, random_conversation, spm_tokenizer, spoken_moshi, stt_config

from csm_mlx.errors import AudioError, ConfigError
from csm_mlx.generate.duplex import TokenSession
from csm_mlx.generate.moshi import Moshi, MoshiSession

CONDITIONS = {"description": "very_good"}
N_FRAMES = 30
"""Past three windows of nine."""


@pytest.fixture(scope="module")
def moshi() -> Moshi:
    return random_conversation()


@pytest.fixture(scope="module")
def hibiki() -> Moshi:
    return random_conversation(hibiki_config())


def sound(moshi: Moshi, n_frames: int, seed: int = 0) -> np.ndarray:
    """(n_frames, frame_size) of noise that gets louder and softer."""
    noise = np.random.default_rng(seed).normal(size=(n_frames, moshi.frame_size))
    return (noise * (0.02 + 0.3 * np.abs(np.sin(np.arange(n_frames)))[:, None])).astype(np.float32)


def greedy(moshi: Moshi, **options: Any) -> MoshiSession:
    return moshi.session(text=GREEDY, audio=GREEDY, **options)


def run(session: MoshiSession, frames: np.ndarray) -> tuple[np.ndarray, list[str | None], np.ndarray, np.ndarray]:
    """pcm (T, frame_size), pieces, text ids (T,) and codes (T, n_generated)."""
    pcm, pieces, ids, codes = [], [], [], []
    for frame in frames:
        said, piece = session.step(frame)
        pcm.append(said)
        pieces.append(piece)
        ids.append(session.text_ids[0])
        codes.append(session.codes[0])
    return np.stack(pcm), pieces, np.array(ids), np.stack(codes)


def test_sound_is_what_its_codes_are_whole(moshi: Moshi) -> None:
    """The streaming codec on both sides equals the offline one around the session of tokens."""
    frames = sound(moshi, N_FRAMES)
    pcm, pieces, ids, codes = run(greedy(moshi), frames)
    heard, _ = moshi.codec.encode(mx.array(frames.reshape(1, -1, 1)), n_codebooks=4)
    session = TokenSession(moshi.model, text=GREEDY, audio=GREEDY)
    steps = [session.step(np.array(code)) for code in np.array(heard[0])]
    np.testing.assert_array_equal(ids, [int(step.text[0]) for step in steps])
    np.testing.assert_array_equal(codes, [np.array(step.codes)[0] for step in steps])
    offline, _ = moshi.codec.decode(mx.array(codes[None]))
    assert largest(mx.clip(offline[0, :, 0], -1, 1) - mx.array(pcm.reshape(-1))) < 1e-4
    c = moshi.config.moshi
    spoken = [int(i) for i in ids if i not in (c.text_pad_id, c.text_word_id)]
    assert "".join(piece or "" for piece in pieces).removeprefix(" ") == spm_tokenizer().decode(spoken)
    assert len({piece for piece in pieces if piece}) > 3, "the text hardly changes"


def test_codes_are_heard_as_their_sound_is(moshi: Moshi) -> None:
    frames = sound(moshi, 10)
    heard, _ = moshi.codec.encode(mx.array(frames.reshape(1, -1, 1)), n_codebooks=4)
    by_codes = greedy(moshi)
    for frame, code in zip(run(greedy(moshi), frames)[0], np.array(heard[0]), strict=True):
        np.testing.assert_allclose(by_codes.step_codes(code)[0], frame, atol=1e-5)


def test_a_frame_changes_the_step_that_hears_it(moshi: Moshi) -> None:
    """Its text and the acoustic codes of what is being said, and nothing earlier; the words that answer begin one frame
    later: 160 ms after its beginning. Whether one conversation shows it is chance; of six, one does."""
    frames, k = sound(moshi, 20), 12

    def semantic(frames: np.ndarray) -> int:
        codes, _ = moshi.codec.encode(mx.array(frames[: k + 1].reshape(1, -1, 1)), n_codebooks=1)
        return int(np.array(codes)[0, k, 0])

    for other in 30 * sound(moshi, 20, seed=1):
        changed = frames.copy()
        changed[k] = other
        if semantic(changed) != semantic(frames):  # its acoustic codes are heard a frame later
            break
    else:
        pytest.fail("no sound has another semantic code")
    first = {"sound": 20, "text": 20, "words": 20}
    for seed in range(6):
        one, other = (run(moshi.session(seed=seed), f[: k + 3]) for f in (frames, changed))
        differs = {"sound": (one[0] != other[0]).any(axis=1), "text": one[2] != other[2]}
        differs["words"] = one[3][:, 0] != other[3][:, 0]
        first = {name: min([n, *np.flatnonzero(differs[name]).tolist()]) for name, n in first.items()}
    assert first == {"sound": k, "text": k, "words": k + 1}


def test_the_first_frame_of_moshi_sounds_and_hibiki_begins_with_one_of_silence(moshi: Moshi, hibiki: Moshi) -> None:
    session = greedy(moshi)
    assert np.abs(session.step(sound(moshi, 1)[0])[0]).max() > 0
    session = greedy(hibiki, conditions=CONDITIONS)
    pcm, _, _, codes = run(session, sound(hibiki, 4))
    assert (np.abs(pcm).max(axis=1) > 0).tolist() == [False, True, True, True]
    assert (codes[0] == 40).all()
    assert codes[1:].max() < 40
    assert codes.shape == (4, 16)


def test_hibiki_hears_the_end_and_goes_on(hibiki: Moshi) -> None:
    frames = sound(hibiki, 6)
    ended, other = (greedy(hibiki, conditions=CONDITIONS) for _ in range(2))
    run(ended, frames)
    run(other, frames)
    ended.end()
    other.step(np.zeros(hibiki.frame_size, np.float32))
    silence = np.zeros((6, hibiki.frame_size), np.float32)
    assert (run(ended, silence)[3] != run(other, silence)[3]).any()
    with pytest.raises(ConfigError, match="expected one value each of description: very_bad, very_good"):
        hibiki.session()


def test_the_same_seed_says_the_same_and_another_does_not(moshi: Moshi) -> None:
    frames = sound(moshi, 10)
    one, same, other = (run(moshi.session(seed=seed), frames) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one[0], same[0])
    assert one[1] == same[1]
    assert (one[3] != other[3]).any()


def test_interleaved_conversations_equal_separate_ones(moshi: Moshi) -> None:
    sounds = [sound(moshi, 15, seed=i) for i in range(2)]
    apart = [run(moshi.session(seed=i), frames)[0] for i, frames in enumerate(sounds)]
    sessions = [moshi.session(seed=i) for i in range(2)]
    for k in range(15):
        for i in range(2):
            np.testing.assert_array_equal(sessions[i].step(sounds[i][k])[0], apart[i][k])


def test_a_batch_of_two_equals_two_singles(moshi: Moshi) -> None:
    frames = np.stack([sound(moshi, 15, seed=i) for i in range(2)], axis=1)
    batch = greedy(moshi, batch=2)
    both = [batch.step_rows(rows) for rows in frames]
    for i in range(2):
        pcm, pieces, _, _ = run(greedy(moshi), frames[:, i])
        np.testing.assert_allclose(np.stack([rows[i] for rows, _ in both]), pcm, atol=1e-4)
        assert [texts[i] for _, texts in both] == pieces
    with pytest.raises(ConfigError, match="holds 2 conversations"):
        batch.step(frames[0, 0])


def test_a_snapshot_brings_all_of_it_back(moshi: Moshi) -> None:
    frames, session = sound(moshi, 20), moshi.session()
    run(session, frames[:8])
    kept = session.snapshot()
    there = run(session, frames[8:])
    session.rewind(kept)
    for before, after in zip(there, run(session, frames[8:]), strict=True):
        np.testing.assert_array_equal(before, after)


def test_half_a_character_is_rewound_too(moshi: Moshi) -> None:
    session = moshi.session()
    session._streams[0].pending = "é".encode()[:1]
    kept = session.snapshot()
    session._streams[0].pending = b""
    session.rewind(kept)
    byte = next(i for i in range(300) if spm_tokenizer().piece_bytes(i) == "é".encode()[1:])
    assert session._piece(session._streams[0], byte) == "é"


def test_a_bias_for_silence_makes_it_quiet(moshi: Moshi) -> None:
    frames, pad = sound(moshi, 12), moshi.config.moshi.text_pad_id
    quiet, loud = (run(moshi.session(pad_bias=bias), frames)[2] for bias in (100.0, -100.0))
    assert (quiet == pad).all()
    assert (loud != pad).all()
    assert run(moshi.session(pad_bias=100.0), frames)[1] == [None] * 12


def test_what_was_said_lately_is_not_said_again(moshi: Moshi) -> None:
    """With a penalty that lets nothing come back, until it is forgotten; pads are free."""
    c, n = moshi.config.moshi, 40
    frames = sound(moshi, n)
    silent = (c.text_pad_id, c.text_word_id)

    def spoken(**options: Any) -> list[int]:
        ids = run(moshi.session(text=GREEDY, audio=GREEDY, pad_bias=-100.0, **options), frames)[2]
        return [int(i) for i in ids if i not in silent]

    def nearest(ids: list[int]) -> int:
        """Of two equal tokens, how many lie between at least."""
        last: dict[int, int] = {}
        between = []
        for place, i in enumerate(ids):
            between += [place - last[i]] if i in last else []
            last[i] = place
        return min(between, default=n)

    free, penalized = spoken(), spoken(repetition_penalty=100.0, repetition_context=8)
    assert nearest(free) <= 8, "nothing repeats by itself: this shows nothing"
    assert nearest(penalized) > 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": -1}, "seed is -1, expected a whole number from 0"),
        ({"batch": 0}, "batch is 0, expected a whole number from 1"),
        ({"repetition_penalty": 0.0}, "repetition_penalty is 0.0, expected above 0"),
        ({"repetition_context": 0}, "repetition_context is 0, expected 1 to"),
        ({"pad_bias": float("nan")}, "pad_bias is nan, expected -100 to 100"),
        ({"conditions": {"pace": "slow"}}, "expected one value each of none"),
    ],
)
def test_options_out_of_range_are_refused(moshi: Moshi, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        moshi.session(**options)


def test_only_frames_of_sound_are_heard(moshi: Moshi) -> None:
    session = moshi.session()
    with pytest.raises(AudioError, match=r"a frame of shape \(960,\).*expected 1920 floats"):
        session.step(np.zeros(960, np.float32))
    with pytest.raises(AudioError, match="type int16"):
        session.step(np.zeros(1920, np.int16))
    with pytest.raises(AudioError, match="NaN"):
        session.step(np.full(1920, np.nan, np.float32))
    with pytest.raises(AudioError, match=r"expected 1920 floats in .* for each of 2 conversations"):
        moshi.session(batch=2).step_rows(np.zeros((1, 1920), np.float32))
    assert session.stats.n_frames == 0


def test_a_model_that_says_nothing_takes_part_in_no_conversation() -> None:
    moshi = random_conversation(spoken_moshi())
    silent = Moshi(moshi.model, moshi.codec, moshi.tokenizer, _stt(moshi), moshi.path)
    with pytest.raises(ConfigError, match="random only writes down what it hears"):
        silent.session()


def _stt(moshi: Moshi) -> Any:
    from dataclasses import replace

    from csm_mlx.stored import SttConfig

    return replace(moshi.config, moshi=stt_config(), stt=SttConfig(delay_s=0.5))


def test_work_is_counted(moshi: Moshi) -> None:
    session = moshi.session()
    assert session.stats.real_time_factor is None
    run(session, sound(moshi, 5))
    stats = session.stats
    assert (stats.n_frames, stats.sound_s) == (5, pytest.approx(0.4))
    assert 0 < stats.last_s < stats.work_s
    assert stats.real_time_factor == pytest.approx(stats.work_s / 0.4)


def held(session: MoshiSession, n_steps: int, n_times: int) -> list[int]:
    """Active memory after each of `n_times` times `n_steps`."""
    frames, sizes = sound(session._moshi, 50), []
    for _ in range(n_times):
        for k in range(n_steps):
            session.step(frames[k % 50])
        gc.collect()
        sizes.append(mx.get_active_memory())
    return sizes


def test_memory_is_flat(moshi: Moshi) -> None:
    sizes = held(moshi.session(repetition_penalty=1.2), 25, 6)
    assert max(sizes[1:]) - min(sizes[1:]) < 100_000


@pytest.mark.slow
def test_memory_is_flat_over_ten_thousand_steps(moshi: Moshi) -> None:
    sizes = held(moshi.session(repetition_penalty=1.2), 1000, 10)
    assert max(sizes[1:]) - min(sizes[1:]) < 100_000
