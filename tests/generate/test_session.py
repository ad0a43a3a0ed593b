"""The session: what the cache holds, what is forgotten, and how an utterance ends."""

from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from support.models import greedy, random_csm, that_always_says

from csm_mlx.config import SamplingConfig
from csm_mlx.errors import AudioError, ConfigError, ContextError, GenerationError
from csm_mlx.frames import Turn, TurnRows
from csm_mlx.generate.session import Csm, CsmSession
from csm_mlx.generate.speech import MAX_SILENCE_S
from csm_mlx.generate.tail import Tail


@pytest.fixture(scope="module")
def csm() -> Csm:
    return random_csm()


def noise(seconds: float, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.1, round(24000 * seconds)).astype(np.float32)


def spoken(session: CsmSession, text: str, speaker: int = 0, seconds: float = 0.8) -> np.ndarray:
    speech = session.speak(text, speaker, max_seconds=seconds)
    for _ in speech:
        pass
    return speech.codes


def sound_of(session: CsmSession, turn: int) -> np.ndarray:
    codes = session.turns[turn].codes
    assert codes is not None
    return codes


def refilled(csm: Csm, turns: tuple[TurnRows, ...]) -> CsmSession:
    """A new session that is told, not spoken, the same turns."""
    session = csm.session(seed=9, sampling=greedy(csm))
    for turn in turns:
        session._context.add(turn, reference=False)
    return session


def test_three_spoken_turns_equal_a_fresh_prefill(csm: Csm) -> None:
    session = csm.session(seed=1, sampling=greedy(csm))
    session.add(Turn(speaker=1, text="How are you?", pcm=noise(1.0)))
    for i, text in enumerate(("Fine, thank you.", "And you?", "Well, well.")):
        assert len(spoken(session, text, i % 2)) == 10
    fresh = refilled(csm, session.turns)
    assert fresh.n_positions == session.n_positions
    assert np.array_equal(spoken(session, "What now?"), spoken(fresh, "What now?"))


def test_same_seed_same_sound_and_another_seed_another(csm: Csm) -> None:
    codes = [spoken(csm.session(seed=seed), "Hello") for seed in (3, 3, 4)]
    assert np.array_equal(codes[0], codes[1])
    assert not np.array_equal(codes[0], codes[2])


def test_what_is_heard_is_what_the_codec_says(csm: Csm) -> None:
    speech = csm.session(seed=3).speak("Hello", max_seconds=1.2)
    heard = np.concatenate(list(speech))
    decoded, _ = csm.codec.decode(mx.array(speech.codes[None]))
    whole = np.clip(np.array(decoded[0, :, 0]), -1, 1)
    assert len(heard) == len(whole) == 15 * 1920
    fade = 240
    assert np.abs(heard[:-fade] - whole[:-fade]).max() < 1e-5
    assert abs(heard[-1]) < 1e-6


def test_stats_tell_what_happened(csm: Csm) -> None:
    speech = csm.session(seed=3).speak("Hello", max_seconds=0.8)
    assert speech.stats.stop is None
    n_samples = sum(len(pcm) for pcm in speech)
    stats = speech.stats
    assert (stats.stop, stats.n_frames, stats.sound_s) == ("length", 10, n_samples / 24000)
    assert stats.first_audio_s is not None
    assert 0 < stats.prefill_s < stats.first_audio_s < stats.work_s
    assert stats.real_time_factor == pytest.approx(stats.work_s / stats.sound_s)


def test_snapshot_and_rewind(csm: Csm) -> None:
    session = csm.session(seed=5)
    spoken(session, "Once")
    snapshot = session.snapshot()
    first = spoken(session, "upon a time")
    spoken(session, "and something else entirely")
    session.rewind(snapshot)
    spoken(session, "a different branch", 1)
    session.rewind(snapshot)
    assert np.array_equal(spoken(session, "upon a time"), first)


def test_an_abandoned_utterance_ends_its_turn_cleanly(csm: Csm) -> None:
    session = csm.session(seed=5, sampling=greedy(csm))
    speech = session.speak("A long story about nothing", max_seconds=4)
    for _ in range(5):
        next(speech)
    spoken(session, "Next")  # ends the first
    assert speech.stats.stop == "closed"
    assert len(speech.codes) == len(sound_of(session, 0)) == 5
    assert np.array_equal(spoken(session, "Go on"), spoken(refilled(csm, session.turns[:2]), "Go on"))


def test_a_turn_cut_to_what_was_heard(csm: Csm) -> None:
    session = csm.session(seed=5, sampling=greedy(csm))
    spoken(session, "Before")
    codes = spoken(session, "A long story", seconds=1.2)
    session.cut(4)
    assert np.array_equal(sound_of(session, -1), codes[:4])
    turns = session.turns
    assert np.array_equal(spoken(session, "Go on"), spoken(refilled(csm, turns), "Go on"))
    with pytest.raises(ConfigError, match="cannot cut the last turn to 99 frames: it has 10"):
        session.cut(99)
    session.cut(0)
    assert len(session.turns) == 2
    with pytest.raises(ConfigError, match="not spoken by this session"):
        session.cut(1)


def test_a_cut_never_reaches_a_turn_before_the_one_just_spoken(csm: Csm) -> None:
    session = csm.session(seed=5, sampling=greedy(csm))
    codes = spoken(session, "Before")
    session.speak("never begun")
    with pytest.raises(ConfigError, match="cannot cut the last turn to 3 frames: it has 0"):
        session.cut(3)
    session.cut(0)  # what a listener asks for who heard nothing of it
    assert np.array_equal(sound_of(session, -1), codes)
    session.add(Turn(speaker=1, text="A question", pcm=noise(1.0)))
    speech = session.speak("never begun")
    session.cut(0)
    assert speech.stats.stop == "closed"
    assert [turn.n_rows for turn in session.turns] == [22, 29]
    mute = that_always_says([0, 0, 0, 0]).session(sampling=greedy(csm))
    with pytest.raises(GenerationError):
        list(mute.speak("Hi"))
    with pytest.raises(ConfigError, match="it has 0"):
        mute.cut(1)


def test_a_rewound_turn_can_be_cut(csm: Csm) -> None:
    session = csm.session(seed=5)
    codes = spoken(session, "A long story")
    snapshot = session.snapshot()
    spoken(session, "that goes on")
    session.rewind(snapshot)
    session.cut(4)
    assert np.array_equal(sound_of(session, -1), codes[:4])


@pytest.mark.parametrize("n_blocks", [1, 2, 3])
def test_an_interrupted_prefill_leaves_nothing_behind(csm: Csm, n_blocks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    session = csm.session(seed=5, sampling=greedy(csm))
    spoken(session, "Before")
    codes = sound_of(session, 0)
    for tell in (
        lambda: session.add(Turn(speaker=1, text="x" * 150, codes=codes)),
        lambda: next(session.speak("x" * 150)),
    ):
        with monkeypatch.context() as patched:
            patched.setattr("csm_mlx.generate.context.PREFILL_ROWS", 128)
            interrupt_after(n_blocks, patched)
            with pytest.raises(KeyboardInterrupt):
                tell()
        assert [turn.n_rows for turn in session.turns] == [22]
    assert np.array_equal(spoken(session, "Go on"), spoken(refilled(csm, session.turns[:1]), "Go on"))


def test_room_made_in_idle_time_is_not_made_again(csm: Csm) -> None:
    session = csm.session(seed=5, sampling=greedy(csm))
    for i in range(21):
        spoken(session, f"Turn number {i:02}")
    turns = session.turns
    session.make_room(100)
    kept = session.turns
    assert kept == turns[-len(kept) :]
    assert len(kept) < len(turns)
    session.add(Turn(speaker=1, text="x" * 90))
    assert session.turns[:-1] == kept, "nothing more had to go"
    session.make_room(1)
    assert session.turns[:-1] == kept


def test_what_was_forgotten_cannot_be_cut(csm: Csm) -> None:
    session = csm.session(seed=5, sampling=greedy(csm))
    spoken(session, "Soon forgotten")
    session.make_room(csm.config.csm.max_positions)
    assert session.turns == ()
    with pytest.raises(ConfigError, match="not spoken by this session"):
        session.cut(1)


def test_an_interrupted_rebuild_forgets_nothing(csm: Csm, monkeypatch: pytest.MonkeyPatch) -> None:
    session = csm.session(seed=5, sampling=greedy(csm))
    for i in range(21):
        spoken(session, f"Turn number {i:02}")
    turns = session.turns
    with monkeypatch.context() as patched:
        interrupt_after(4, patched)
        with pytest.raises(KeyboardInterrupt):
            session.add(Turn(speaker=1, text="x" * 100))
    assert session.turns == turns
    assert np.array_equal(spoken(session, "Hi", seconds=0.1), spoken(refilled(csm, turns), "Hi", seconds=0.1))


def test_an_interrupted_end_takes_the_turn_out(csm: Csm, monkeypatch: pytest.MonkeyPatch) -> None:
    session = csm.session(seed=5, sampling=greedy(csm))
    spoken(session, "Before")
    spoken(session, "A long story")
    with monkeypatch.context() as patched:
        interrupt_after(1, patched)
        with pytest.raises(KeyboardInterrupt):
            session.cut(4)
    assert [turn.n_rows for turn in session.turns] == [22]
    with pytest.raises(ConfigError, match="not spoken by this session"):
        session.cut(4)
    assert np.array_equal(spoken(session, "Go on"), spoken(refilled(csm, session.turns[:1]), "Go on"))


def interrupt_after(n_evals: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C after so many evaluations; where MLX waits is where Python sees it."""
    evaluate, left = mx.eval, [n_evals]

    def interrupted(*trees: object) -> None:
        evaluate(*trees)
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt

    monkeypatch.setattr("csm_mlx.generate.context.mx.eval", interrupted)


def test_what_does_not_fit_forgets_nothing(csm: Csm) -> None:
    session = csm.session(seed=5, sampling=greedy(csm))
    spoken(session, "Before")
    turns = session.turns
    with pytest.raises(ContextError, match=r"a turn needs 570 positions"):
        session.add(Turn(speaker=0, text="x", pcm=noise(45)))
    with pytest.raises(ContextError, match="the text takes 605 positions"):
        next(session.speak("x" * 600))
    assert session.turns == turns


def test_randomness_is_no_growing_graph(csm: Csm, tmp_path: Path) -> None:
    session = csm.session(sampling=greedy(csm))
    for _ in range(3):
        spoken(session, "Hi")
    speech = session.speak("Hi", max_seconds=0.4)
    list(speech)
    for key in (session._key, speech._key):
        mx.export_to_dot(str(tmp_path / "key.dot"), key)
        assert "Split" not in (dot := (tmp_path / "key.dot").read_text())
        assert len(dot) < 1000


def test_a_length_of_whole_frames_is_reached(csm: Csm) -> None:
    assert len(spoken(csm.session(seed=1), "Hello", seconds=29 * 0.08)) == 29


def test_interleaved_sessions_equal_separate_ones(csm: Csm) -> None:
    sessions = [csm.session(seed=seed) for seed in (1, 2)]
    speeches = [session.speak(text, max_seconds=0.8) for session, text in zip(sessions, ("One", "Two"), strict=True)]
    for _ in zip(*speeches, strict=True):
        pass
    for seed, text, speech in zip((1, 2), ("One", "Two"), speeches, strict=True):
        assert np.array_equal(speech.codes, spoken(csm.session(seed=seed), text))


def test_the_oldest_turns_go_first_and_whole_and_the_reference_stays(csm: Csm) -> None:
    session = csm.session(seed=1, sampling=greedy(csm))
    session.add(Turn(speaker=0, text="This is my voice.", pcm=noise(2.0)), reference=True)
    reference = session.turns[0]
    texts = [f"Turn number {i} of this talk" for i in range(30)]
    forgotten = 0
    for text in texts:
        before = len(session.turns)
        spoken(session, text)
        forgotten += before + 1 - len(session.turns)
        assert session.n_positions <= csm.config.csm.max_positions
        assert session.turns[0] is reference
    assert forgotten > 10
    kept = [bytes(turn.text_ids[4:-1]).decode() for turn in session.turns[1:]]
    assert kept == texts[-len(kept) :]
    # What is left is what a session that never knew the others has.
    codes = spoken(session, "Go on")
    assert np.array_equal(codes, spoken(refilled(csm, session.turns[:-1]), "Go on"))


def test_limits_are_clear_errors(csm: Csm) -> None:
    session = csm.session()
    with pytest.raises(ContextError, match=r"a turn needs \d+ positions, the model has 512; shorten its text or sound"):
        session.add(Turn(speaker=0, text="x", pcm=noise(45)))
    with pytest.raises(ContextError, match="the text takes 605 positions and leaves 0 for its sound, of 512"):
        next(session.speak("x" * 600))
    with pytest.raises(ConfigError, match="no text to speak"):
        session.speak("  ")
    with pytest.raises(ConfigError, match="max_seconds is 0, expected more than 0"):
        session.speak("Hi", max_seconds=0)
    with pytest.raises(ConfigError, match="seed is -1, expected a whole number from 0"):
        csm.session(seed=-1)
    assert len(session.speak("Hi", max_seconds=float("inf")).codes) == 0  # as long as there are positions
    with pytest.raises(AudioError, match=r"expected \(n_frames, 4\) integers"):
        session.add(Turn(speaker=0, text="x", codes=np.zeros((3, 2), np.int32)))
    assert session.n_positions == 0  # nothing of all this is left behind
    assert len(spoken(session, "still works")) == 10


def test_a_repeated_frame_stops() -> None:
    csm = that_always_says([7, 3, 5, 9])
    speech = csm.session(sampling=greedy(csm)).speak("A very long text. " * 20)
    list(speech)
    assert speech.stats.stop == "repeat"
    assert speech.codes.tolist() == [[7, 3, 5, 9]]


def test_endless_silence_stops_and_is_not_heard() -> None:
    csm = random_csm()
    final = csm.codec.decoder.final_conv
    final.weight, final.bias = mx.zeros_like(final.weight), mx.zeros_like(final.bias)
    session = csm.session()
    speech = session.speak("A very long text. " * 20)
    heard = sum(len(pcm) for pcm in speech)
    assert speech.stats.stop == "silence"
    assert heard <= 0.15 * 24000
    assert len(sound_of(session, -1)) == 1
    assert speech.stats.work_s < MAX_SILENCE_S * 20  # it went on for the silence it allows, not for the whole limit


def test_silence_inside_speech_is_kept() -> None:
    tail, sound, silence = Tail(24000), noise(0.08), np.zeros(1920, np.float32)
    pieces = [tail.push(pcm) for pcm in (sound, silence, silence, sound, *[silence] * 20)]
    pieces.append(tail.finish())
    heard = np.concatenate(pieces)
    assert np.array_equal(heard[: 4 * 1920], np.concatenate([sound, silence, silence, sound]))
    assert len(heard) == 4 * 1920 + 3600
    assert len(pieces[1]) == len(pieces[2]) == 0


def test_an_end_at_frame_0_is_an_error_after_retries() -> None:
    csm = that_always_says([0, 0, 0, 0], strength=1000.0)
    for sampling, n_tries in ((SamplingConfig(temperature=0.9), 4), (greedy(csm), 1)):
        session = csm.session(sampling=sampling)
        with pytest.raises(GenerationError, match=f"before the first frame of 'Hi', in {n_tries} of {n_tries} tries"):
            list(session.speak("Hi"))
        assert session.n_positions == 0
        assert session.turns == ()


def test_an_end_at_frame_0_is_retried_with_a_new_key() -> None:
    csm = that_always_says([0, 5], strength=4.0)  # about one frame in two is an end frame
    n_retries = []
    for seed in range(12):
        speech = csm.session(seed=seed, sampling=SamplingConfig(temperature=1.0, top_k=0)).speak("Hi", max_seconds=0.2)
        try:
            list(speech)
        except GenerationError:
            continue
        n_retries.append(speech.stats.n_retries)
        assert len(speech.codes) >= 1
    assert max(n_retries) > 0
    assert min(n_retries) == 0


def test_an_end_frame_ends_and_is_left_out() -> None:
    csm = that_always_says([0, 5], strength=4.0)
    speeches = []
    for seed in range(6):
        session = csm.session(seed=seed, sampling=SamplingConfig(temperature=1.0, top_k=0))
        speech = session.speak("Hi there, how are you?", max_seconds=4)
        list(speech)
        speeches.append(speech)
        assert speech.codes[:, 0].all()  # code 0 of the first codebook means the end here
        assert session.n_positions == len(session.turns[0].text_ids) + len(speech.codes) + 1
    assert {speech.stats.stop for speech in speeches} == {"end"}


def test_ids_that_mimi_does_not_know_are_never_drawn() -> None:
    csm = that_always_says([62, 63, 62, 63], strength=1000.0)  # specials: 61 codes, 64 rows
    speech = csm.session(sampling=SamplingConfig(temperature=1.0, top_k=0)).speak("Hi", max_seconds=2)
    list(speech)
    assert len(speech.codes)
    assert speech.codes.max() < 61
