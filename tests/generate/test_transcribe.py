"""Speech to text: words and times through the whole pipe, flushes, guards, and the laws of what streams."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest
from support.moshi import moshi_config, random_moshi
from support.stt import (
    DELAY_FRAMES,
    FRAME_SIZE,
    RATE_HZ,
    codec,
    noise,
    random_stt,
    scripted_stt,
    silent_codes,
    spoken,
    stt_of,
    tokenizer,
    with_timing,
)

from csm_mlx.config import SamplingConfig
from csm_mlx.errors import AudioError, ConfigError
from csm_mlx.generate.duplex import TokenSession
from csm_mlx.generate.reader import SttStep
from csm_mlx.generate.transcribe import SttSession
from csm_mlx.generate.words import GUARD, GuardRule, Word, WordClock
from csm_mlx.stored import SttConfig

TEXT = ("The", "boat", "left", "the", "harbour", "before", "the", "sun", "was", "up.")


def finals(steps: Iterable[SttStep]) -> list[Word]:
    return [word for step in steps for word in step.words if word.final]


def texts(steps: Iterable[SttStep]) -> list[str]:
    return [word.text for word in finals(steps)]


def tokens(steps: Iterable[SttStep]) -> list[int]:
    return [token for step in steps for token in step.tokens]


def frames_of(pcm: np.ndarray) -> Iterator[np.ndarray]:
    return (pcm[i : i + FRAME_SIZE] for i in range(0, len(pcm), FRAME_SIZE))


def heard(session: SttSession, codes: np.ndarray, *, is_voice: bool | None = None) -> list[SttStep]:
    return [session.step_codes(frame, is_voice=is_voice) for frame in codes]


def flushed(session: SttSession, codes: np.ndarray) -> list[SttStep]:
    return [*heard(session, codes), *session.flush()]


def test_words_come_with_their_times() -> None:
    script, codes = spoken(*TEXT)
    session = scripted_stt(script).session()
    steps = flushed(session, codes)
    words = finals(steps)
    assert tuple(word.text for word in words) == TEXT
    # A word begins with its mark, which is the frame before its first id, and ends with the next one's. As in Kyutai's
    # server, times are those of the frame after it.
    n_ids = [len(tokenizer().encode(" " + word)) for word in TEXT]
    marks = [sum(n_ids[:i]) + 3 * i + 2 for i in range(len(TEXT))]
    assert [word.start_s for word in words] == [(mark + 2) / RATE_HZ for mark in marks]
    assert [word.stop_s for word in words[:-1]] == [word.start_s for word in words[1:]]
    assert words[-1].stop_s == len(codes) / RATE_HZ == session.now_s
    partial = [word.text for step in steps for word in step.words if not word.final]
    assert partial[:4] == ["T", "Th", "The", "The"], "as it grows, and whole"


def test_a_flush_anywhere_loses_no_word_and_goes_on() -> None:
    script, codes = spoken(*TEXT[:4])
    stt = scripted_stt(script)
    for n in range(1, len(codes)):
        session = stt.session()
        steps = flushed(session, codes[:n]) + flushed(session, codes[n:])
        assert "".join(texts(steps)) == "".join(TEXT[:4]), n
        assert session.now_s == len(codes) / RATE_HZ
        last_s = 0.0
        for word in finals(steps):
            assert last_s <= word.start_s <= (word.stop_s or 0)
            last_s = word.stop_s or 0


def test_many_flushes_shift_no_time() -> None:
    script, codes = spoken(*TEXT)
    stt = scripted_stt(script)
    expected = [word.start_s for word in finals(flushed(stt.session(), codes))]
    session, found = stt.session(), []
    pads = [i for i in range(1, len(codes)) if (codes[i] == codes[0]).all() and (codes[i - 1] != codes[0]).any()]
    for start, stop in zip([0, *pads], [*pads, len(codes)], strict=True):
        found += finals(flushed(session, codes[start:stop]))
        assert session.flush() == [], "there is nothing left"
    assert [word.text for word in found] == list(TEXT)
    assert [word.start_s for word in found] == expected
    assert session.stats.n_more_frames == len(TEXT) * (DELAY_FRAMES + 1)


def test_a_flush_is_as_long_as_the_delay_and_waits_for_the_last_word() -> None:
    stt = random_stt(n_extra_heads=0)
    assert (stt.delay_frames, stt.flush_frames) == (6, 7)
    session = stt.session(guard=None)
    assert session.flush() == [], "nothing was heard"
    lengths = set()
    sound = list(frames_of(noise(4.8)))
    for i in range(0, len(sound), 3):
        for frame in sound[i : i + 3]:
            session.step(frame)
        steps = session.flush()
        pushed = [stt.tokenizer.decode(step.tokens) for step in steps[:-1]]
        assert 7 <= len(pushed) <= 7 + 13
        lengths.add(len(pushed))
        assert steps[-1].tokens == ()
        assert all(word.final for word in steps[-1].words)
    assert len(lengths) > 1


def test_the_codec_hears_the_sound_alone() -> None:
    """Whoever else takes a session's codes gets those of the sound, flushes or not."""
    stt, pcm = random_stt(), noise(4.0)
    expected = np.array(codec().encode(mx.array(pcm[None, :, None]), n_codebooks=4)[0][0])
    session, found = stt.session(), []
    for i, frame in enumerate(frames_of(pcm)):
        codes = session.encode(frame)
        assert codes.shape == (1, 4)
        found.append(np.array(codes[0]))
        session.step_codes(codes[0])
        if i % 7 == 6:
            session.flush()
    assert np.array_equal(found, expected)


def test_a_prefix_of_silence_is_heard_first_and_not_counted() -> None:
    script, codes = spoken(*TEXT)
    plain = scripted_stt(script)
    session, prefixed = plain.session(), with_timing(plain, prefix_s=0.5).session()
    steps, after = flushed(session, codes), flushed(prefixed, codes)
    assert finals(after) == finals(steps)
    assert len(after[0].tokens) == 1 + 7
    assert prefixed.stats.n_more_frames == session.stats.n_more_frames + 7
    assert prefixed.stats.n_frames == len(codes)
    # And the codec hears it too, as it does in Kyutai's scripts.
    stt, pcm = random_stt(SttConfig(delay_s=0.5, prefix_s=0.5)), noise(2.0)
    sound = np.concatenate([np.zeros(7 * FRAME_SIZE, np.float32), pcm])
    expected = np.array(codec().encode(mx.array(sound[None, :, None]), n_codebooks=4)[0][0])
    session = TokenSession(stt.model, text=stt.config.text_sampling)
    wanted = [int(np.array(session.step(frame).text)[0]) for frame in expected]
    assert tokens(map(stt.session(guard=None).step, frames_of(pcm))) == wanted


@pytest.mark.parametrize("prefix_s", [0.0, 0.5])
def test_a_whole_sound_gives_the_text_of_its_frames(prefix_s: float) -> None:
    stt, pcm = random_stt(SttConfig(delay_s=0.5, prefix_s=prefix_s)), noise(8.3)
    session = stt.session()
    padded = np.pad(pcm, (0, -len(pcm) % FRAME_SIZE))
    steps = [session.step(frame) for frame in frames_of(padded)] + session.flush(1.0)
    whole = stt.transcribe(pcm)
    assert whole.tokens.tolist() == tokens(steps)
    assert list(whole.words) == finals(steps)
    assert len(whole.words) > 5
    assert whole.text == " ".join(word.text for word in whole.words)
    assert whole.stats.n_frames == 104
    assert whole.stats.sound_s == pytest.approx(104 * 0.08)
    assert whole.stats.work_s > 0
    assert whole.stats.real_time_factor == whole.stats.work_s / whole.stats.sound_s


def test_a_session_writes_what_its_model_says() -> None:
    stt, pcm = random_stt(), noise(3.2)
    codes = np.array(codec().encode(mx.array(pcm[None, :, None]), n_codebooks=4)[0][0])
    session, model = stt.session(guard=None), TokenSession(stt.model, text=stt.config.text_sampling)
    steps = heard(session, codes)
    expected = [int(np.array(model.step(frame).text)[0]) for frame in codes]
    assert tokens(steps) == expected
    assert len(set(expected)) > 5
    machine = WordClock(stt.model.config, tokenizer().decode, delay_frames=6, frame_rate_hz=RATE_HZ)
    assert [step.words for step in steps] == [machine.step(token) for token in expected]
    for step in steps:
        assert len(step.pauses) == stt.model.config.n_extra_heads == 4
        assert all(0 < p < 1 for p in step.pauses)


def test_sessions_know_nothing_of_each_other() -> None:
    stt, one, two = random_stt(), noise(4.0, 1), noise(4.0, 2)

    def separate(pcm: np.ndarray) -> list[SttStep]:
        session = stt.session()
        return [session.step(frame) for frame in frames_of(pcm)] + session.flush()

    a, b = stt.session(), stt.session()
    pairs = [(a.step(x), b.step(y)) for x, y in zip(frames_of(one), frames_of(two), strict=True)]
    assert [x for x, _ in pairs] + a.flush() == separate(one)
    assert [y for _, y in pairs] + b.flush() == separate(two)
    a.reset()
    assert [a.step(frame) for frame in frames_of(two)] + a.flush() == separate(two), "as a new one"
    assert a.stats.n_frames == 50


@pytest.mark.parametrize("prefix_s", [0.0, 0.5])
def test_a_batch_is_as_each_alone(prefix_s: float) -> None:
    stt = random_stt(SttConfig(delay_s=0.5, prefix_s=prefix_s))
    sounds = [noise(seconds, seed) for seed, seconds in enumerate((1.5, 0.05, 1.21, 2.9))]
    rule = GuardRule(max_word_ids=5)
    for guard in (None, rule):
        batch = stt.transcribe_batch(sounds, guard=guard)
        for sound, transcript in zip(sounds, batch, strict=True):
            alone = stt.transcribe(sound, guard=guard)
            assert transcript.words == alone.words
            assert transcript.tokens.tolist() == alone.tokens.tolist()
            assert transcript.stats.n_frames == alone.stats.n_frames
            assert transcript.stats.n_more_frames == alone.stats.n_more_frames
    assert any(transcript.stats.n_restarts for transcript in batch), "one was stuck, and finished alone"

    assert stt.transcribe_batch([]) == []


def test_a_loop_empties_the_memory_and_loses_no_word() -> None:
    words = ("so", "no", "no", "no", "no", "no", "no", "and", "then", "the", "boat")
    script, codes = spoken(*words)
    session = scripted_stt(script).session()
    steps = flushed(session, codes)
    assert tuple(texts(steps)) == words
    assert [step.stuck for step in steps if step.stuck] == ["loop"]
    assert session.stats.n_restarts == 1
    assert session.now_s == len(codes) / RATE_HZ
    free = scripted_stt(script).session(guard=None)
    unguarded = finals(flushed(free, codes))
    assert [w.start_s for w in finals(steps)] == [w.start_s for w in unguarded], "times too"


def test_a_mute_model_hears_again_what_it_did_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    script, codes = spoken(*TEXT, *TEXT)
    stt = scripted_stt(script)
    session = stt.session()
    expected = finals(flushed(session, codes))
    head, mute = stt.model.text_head.weight, scripted_stt({}).model.text_head.weight
    session, begun = stt.session(), SttSession._begun
    silent = np.full((12, 4), next(iter(silent_codes())))
    cured: list[float] = []

    def cure(self: SttSession) -> TokenSession:
        cured.append(self.now_s)
        stt.model.text_head.weight = head
        return begun(self)

    monkeypatch.setattr(SttSession, "_begun", cure)
    cut = next(i for i in range(30, len(codes)) if (codes[i] == codes[0]).all())
    steps = heard(session, codes[:cut], is_voice=True) + heard(session, silent, is_voice=False)
    stt.model.text_head.weight = mute
    steps += heard(session, codes[cut:], is_voice=True)
    steps += heard(session, silent, is_voice=False) + session.flush()
    assert len(cured) == 1
    assert [step.stuck for step in steps if step.stuck] == ["mute"]
    assert tuple(texts(steps)) == (*TEXT, *TEXT)
    late = len(silent) / RATE_HZ
    starts = [word.start_s + (late if i >= texts_before(expected, cut) else 0) for i, word in enumerate(expected)]
    assert [word.start_s for word in finals(steps)] == pytest.approx(starts)


def texts_before(words: list[Word], n_frames: int) -> int:
    return sum(word.start_s < n_frames / RATE_HZ for word in words)


def test_a_voice_without_words_is_not_asked_for_ever() -> None:
    script, codes = spoken("boat")
    session = scripted_stt(script).session(guard=GuardRule(mute_s=0.8))
    empty = np.full((1, 4), next(iter(silent_codes())))
    when = [i for i in range(400) if session.step_codes(empty[0], is_voice=True).stuck]
    assert when == [16 * n - 1 for n in (1, 3, 7, 15)]
    assert session.stats.n_more_frames <= 4 * (10 + 2 * DELAY_FRAMES)
    assert texts(flushed(session, codes)) == ["boat"]
    quiet = stt_of(scripted_stt(script).model).session()
    assert not any(step.stuck for step in map(quiet.step, frames_of(np.zeros(100 * FRAME_SIZE, np.float32))))


def test_the_same_seed_draws_the_same_text() -> None:
    stt, pcm = random_stt(), noise(3.0)

    def drawn(seed: int) -> list[int]:
        return stt.transcribe(pcm, seed=seed, sampling=SamplingConfig(temperature=1.0, top_k=0)).tokens.tolist()

    assert drawn(1) == drawn(1) != drawn(2)


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (lambda s: s.step(np.zeros(100, np.float32)), "100 samples were heard, expected a frame of 1920"),
        (lambda s: s.encode(np.zeros(2000, np.float32)), "2000 samples were heard, expected a multiple of 1920"),
        (lambda s: s.step(np.full(FRAME_SIZE, np.nan, np.float32)), "NaN or infinite"),
        (lambda s: s.step(np.zeros(FRAME_SIZE, np.int16)), "divide 16-bit samples"),
        (lambda s: s.step_codes(np.zeros(5, int)), r"shape \(5,\)"),
        (lambda s: s.step_codes(np.full(4, 99)), "codes lie in 99"),
        (lambda s: list(s.follow(np.zeros(0, np.float32))), "at least one sample"),
    ],
)
def test_what_is_no_sound_is_refused(given: Callable[[SttSession], object], why: str) -> None:
    session = random_stt().session()
    with pytest.raises(AudioError, match=why):
        given(session)
    assert session.step(np.zeros(FRAME_SIZE, np.float32)).tokens, "and it goes on"


def test_what_cannot_transcribe_is_refused() -> None:
    stt = random_stt()
    with pytest.raises(ConfigError, match="seed is -1"):
        stt.session(seed=-1)
    moshi = random_moshi(moshi_config(codebook_size=61))
    with pytest.raises(ConfigError, match="says 4 codebooks; transcribing needs"):
        replace(stt, model=moshi, config=replace(stt.config, moshi=moshi.config, stt=None))


def memory_over(n_frames: int) -> tuple[int, int]:
    """MLX's arrays after a first fifth, and at most in the rest, with flushes and restarts."""
    stt = random_stt()
    session, rng = stt.session(guard=GuardRule(max_word_ids=5)), np.random.default_rng(0)
    sound = list(frames_of(noise(4.0)))
    settled = most = 0
    for i in range(n_frames):
        if i % 100 < 10:
            session.step(sound[i % len(sound)])
        else:
            session.step_codes(rng.integers(0, 61, 4), is_voice=True)
        if i % 100 == 99:
            session.flush()
        if i < n_frames // 5:
            settled = max(settled, mx.get_active_memory())
        else:
            most = max(most, mx.get_active_memory())
    assert session.stats.n_restarts > 5
    return settled, most


@pytest.mark.parametrize("n_frames", [300, pytest.param(10_000, marks=pytest.mark.slow)])
def test_memory_is_flat(n_frames: int) -> None:
    settled, most = memory_over(n_frames)
    assert most <= settled + 50_000, "sessions have no end"


def test_the_default_guard_is_the_rule_of_kyutais_users() -> None:
    assert GuardRule(mute_s=4.0, max_loop_words=8, max_word_ids=40) == GUARD
