"""Words and their times out of scripted text ids, by the rules of Kyutai's server."""

import numpy as np
import pytest
from support.moshi import moshi_config, random_frames, random_moshi, stt_config

from csm_mlx.errors import ConfigError
from csm_mlx.generate.transcribe import PauseRule, PauseWatch, SttSession, Word, WordClock

MARK, PAD = 0, 3
RATE_HZ = 12.5
DELAY = 4
VOCABULARY = {10: " Hel", 11: "lo", 12: " world", 13: ".", 14: " I", 15: " am"}


def decode(ids) -> str:
    return "".join(VOCABULARY.get(i, f" <{i}>") for i in ids)


def clock(delay: int = DELAY) -> WordClock:
    return WordClock(stt_config(), decode, delay_frames=delay, frame_rate_hz=RATE_HZ)


def reference(tokens: list[int], delay: int = DELAY) -> list[tuple[str, float, float | None]]:
    """`asr.rs` of moshi-core at e6a55d2, told again: (text, start, stop), where it counts the step before the first
    frame."""
    found: list[tuple[str, float, float | None]] = []
    step, word, unended, last_stop = 1, [], False, 0.0
    for token in tokens:
        step += 1
        if step < delay:
            continue
        if token in (PAD, MARK):
            if word:
                found.append((decode(word).strip(), last_stop, None))
                word, unended = [], True
        else:
            word.append(token)
        if token == MARK:
            stop = (step - delay) / RATE_HZ
            if unended:
                found[-1] = (*found[-1][:2], stop)
                unended = False
            last_stop = stop
    return found


SCRIPT = [PAD, PAD, PAD, PAD, PAD, MARK, 10, 11, PAD, PAD, MARK, 12, 13, MARK, PAD, PAD, MARK, 14, 15, PAD, MARK]


def finals(words: list[Word]) -> list[tuple[str, float, float | None]]:
    return [(w.text, w.start_s, w.stop_s) for w in words if w.final]


@pytest.mark.parametrize("delay", [0, 1, 4, 6])
def test_words_and_times_are_those_of_the_reference(delay: int) -> None:
    machine = clock(delay)
    words = [word for token in SCRIPT for word in machine.step(token)]
    expected = reference(SCRIPT, delay)
    assert finals(words) == expected
    assert [text for text, _, _ in expected] == ["Hello", "world.", "I am"]


def test_random_streams_agree_with_the_reference() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        # After a pad, Kyutai's models write a mark before they write a word.
        tokens, last = [], PAD
        for token in rng.choice([MARK, PAD, 10, 11, 12, 13], size=60, p=[0.25, 0.35, 0.1, 0.1, 0.1, 0.1]).tolist():
            last = MARK if last == PAD and token >= 10 else token
            tokens.append(last)
        machine = clock()
        words = [word for token in [*tokens, MARK] for word in machine.step(token)]
        assert finals(words) == reference([*tokens, MARK])


def test_a_word_is_told_as_it_grows() -> None:
    machine = clock(0)
    told = [[(w.text, w.final) for w in machine.step(token)] for token in (MARK, 10, 11, PAD, PAD, MARK)]
    assert told == [[], [("Hel", False)], [("Hello", False)], [("Hello", False)], [], [("Hello", True)]]


def test_a_word_after_a_pad_without_its_mark_ends_the_one_before() -> None:
    machine = clock(0)
    words = [word for token in (MARK, 10, 11, PAD, PAD, 12, MARK) for word in machine.step(token)]
    assert [w.text for w in words if w.final] == ["Hello", "world"]
    first, second = (w for w in words if w.final)
    assert first.stop_s == second.start_s


@pytest.mark.parametrize("n", range(1, len(SCRIPT) + 1))
def test_the_end_loses_no_word(n: int) -> None:
    machine = clock()
    words = [word for token in SCRIPT[:n] for word in machine.step(token)]
    words += machine.end()
    told = decode([t for t in SCRIPT[max(0, DELAY - 2) : n] if t not in (PAD, MARK)]).split()
    assert " ".join(w.text for w in words if w.final).split() == told
    for word in words:
        assert word.stop_s is None or word.stop_s >= word.start_s
    assert machine.end() == ()


def test_a_pause_counts_when_it_lasts_and_follows_a_word() -> None:
    rule = PauseRule(warm_up_frames=2)
    low, high = (0.9, 0.9, 0.1, 0.9), (0.1, 0.1, 0.9, 0.1)

    def run(*frames: tuple[tuple[float, ...], bool]) -> list[bool]:
        watch = PauseWatch(rule)
        return [watch.step(pauses, word=word) for pauses, word in frames]

    assert run(*[(high, False)] * 8) == [False] * 8, "no word yet"
    assert run((low, True), *[(high, False)] * 5) == [False, False, False, True, False, False]
    assert run((low, True), (high, False), (high, False), (low, False), (high, False)) == [False] * 5
    assert run((low, True), (high, False), (high, True), (high, False), (high, False)) == [False] * 5
    assert run((low, True), *[((), False)] * 8) == [False] * 9, "no pause heads"


def test_a_pause_before_the_warm_up_waits() -> None:
    watch = PauseWatch(PauseRule(warm_up_frames=6))
    assert [watch.step((0, 0, 1.0, 0), word=i == 0) for i in range(8)] == [False] * 6 + [True, False]


def test_a_session_writes_what_its_model_says() -> None:
    model = random_moshi(stt_config())
    c = model.config
    frames = random_frames(c, 30)[:, 0]
    session = SttSession(model, decode, delay_s=0.5, frame_rate_hz=RATE_HZ)
    steps = [session.step(frame) for frame in frames]
    flushed = session.flush(frames[0])
    assert len(flushed) == 7 + 1 + 1
    tokens = [step.token for step in [*steps, *flushed] if step.token is not None]
    assert len(set(tokens)) > 5
    machine = WordClock(c, decode, delay_frames=6, frame_rate_hz=RATE_HZ)
    expected = [word for token in tokens for word in machine.step(token)] + list(machine.end())
    assert [word for step in [*steps, *flushed] for word in step.words] == expected
    assert expected[-1].final
    for step in steps:
        assert len(step.pauses) == c.n_extra_heads
        assert all(0 < p < 1 for p in step.pauses)


def test_a_model_that_speaks_does_not_transcribe() -> None:
    with pytest.raises(ConfigError, match="says 4 codebooks"):
        SttSession(random_moshi(moshi_config()), decode, delay_s=0.5, frame_rate_hz=RATE_HZ)
