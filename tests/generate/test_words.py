"""Words and their times out of scripted text ids, by the rules of Kyutai's server."""

import numpy as np
import pytest
from support.moshi import stt_config

from csm_mlx.generate.words import GuardRule, LoopWatch, MuteWatch, PauseRule, PauseWatch, Word, WordClock

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


def test_silence_that_is_pushed_in_takes_no_time() -> None:
    machine = clock()
    told = [word for token in (PAD, PAD, PAD, PAD, MARK, 10, 11) for word in machine.step(token)]
    for token in (PAD, PAD, PAD, PAD, PAD):
        told += machine.step(token, is_sound=False)
    told += machine.end()
    assert machine.now_s == 7 / RATE_HZ, "all that was heard"
    # Went on: what was pushed in is behind, and the first frame's text is four frames late again.
    told += [word for token in (PAD, PAD, PAD, PAD, MARK, 12, 13, MARK) for word in machine.step(token)]
    assert finals(told) == [
        ("Hello", 2 / RATE_HZ, 7 / RATE_HZ),
        ("world.", (7 + 5 + 1 - DELAY) / RATE_HZ, (7 + 8 + 1 - DELAY) / RATE_HZ),
    ]


def test_times_never_go_back() -> None:
    rng = np.random.default_rng(1)
    for _ in range(50):
        machine, last_s, n_heard = clock(), 0.0, 0
        for token in rng.choice([MARK, PAD, 10, 11], size=120).tolist():
            is_sound = bool(rng.integers(5))
            n_heard += is_sound
            told = machine.step(token, is_sound=is_sound)
            if not rng.integers(20):
                told += machine.end()
                machine.restart(int(rng.integers(9)))
            for word in (word for word in told if word.final):
                assert last_s <= word.start_s <= (word.stop_s or 0) <= n_heard / RATE_HZ
                last_s = word.stop_s or 0


def test_a_last_word_does_not_last_as_long_as_the_silence_after_it() -> None:
    machine = clock(1)
    for token in (MARK, 10, 11, *[PAD] * 40):
        machine.step(token)
    (word,) = machine.end()
    assert (word.start_s, word.stop_s) == (1 / RATE_HZ, 1 / RATE_HZ + 1.0)


def test_ids_without_text_are_no_word() -> None:
    machine = WordClock(stt_config(), lambda ids: "".join({1: " ", 10: "\ufffd", 11: "é"}[i] for i in ids),
                        delay_frames=0, frame_rate_hz=RATE_HZ)  # fmt: skip
    assert [machine.step(token) for token in (MARK, 1, PAD, MARK)] == [(), (), (), ()]
    assert [[w.text for w in machine.step(token)] for token in (10, 11, PAD)] == [[], ["\ufffdé"], ["\ufffdé"]]


def loops(text: str, rule: GuardRule | None = None) -> int | None:
    """After how many words a loop is noticed."""
    watch = LoopWatch(rule or GuardRule())
    for n, word in enumerate(text.split(), 1):
        if watch.step((Word(text=word, start_s=0, stop_s=0),), 0):
            return n
    return None


def test_the_same_words_over_and_over_are_a_loop() -> None:
    assert loops("No, no, no, no, no!") is None, "people say that"
    assert loops("so No, no, no. no no No and") == 7
    assert loops("a b " * 6) == 12
    assert loops("and then we " * 5) is None
    assert loops("and then we went there " * 3) == 15
    assert loops(" ".join(map(str, range(200)))) is None
    assert loops("to be or not to be that is the question to be or not to be that is the question") is None


def test_a_word_without_an_end_is_a_loop() -> None:
    watch = LoopWatch(GuardRule(max_word_ids=5))
    assert [watch.step((), n) for n in range(8)] == [False] * 6 + [True] * 2


def test_a_voice_without_text_is_a_mute_model() -> None:
    watch = MuteWatch(GuardRule(mute_s=1.0), delay_frames=2, frame_rate_hz=10)

    def frames(n: int, *, text: bool = False, voice: bool | None = True) -> list[int]:
        """Which of n frames ask for help."""
        return [i for i in range(1, n + 1) if watch.step(is_text=text, is_voice=voice)]

    assert frames(11) == []
    assert frames(1, text=True) == []
    assert frames(12) == [12]
    assert frames(24) == [24], "it did not help: twice as long"
    assert frames(600)[-2:] == [48 + 96 + 192, 48 + 96 + 192 + 192], "and at most 16 times"
    assert frames(1, text=True) == []
    assert frames(11) == []
    assert frames(19, voice=False) == []
    assert frames(1) == [1], "a breath in between"
    assert frames(1, text=True) == []
    assert frames(11) + frames(20, voice=False) + frames(11) == [], "who spoke has stopped"
    assert frames(500, voice=None) == [], "nobody knows"


def test_a_word_without_an_end_is_told_in_parts() -> None:
    machine = clock(0)
    words = [word for token in (MARK, *[11] * 250) for word in machine.step(token)] + list(machine.end())
    assert [len(w.text) // 2 for w in words if w.final] == [100, 100, 50]
