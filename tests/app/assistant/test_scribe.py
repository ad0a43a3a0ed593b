"""`csm talk --asr kyutai`: frames' codes are made once, and are words, the end of a turn, and CSM's context.

The speech-to-text model is one whose words are known (`support.stt.scripted_stt`), on csm-tiny's own codec.
"""

import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from csm_mlx_app import listening
from csm_mlx_app.assistant.ears import Ears
from csm_mlx_app.assistant.engine import Engine
from csm_mlx_app.assistant.events import Event, Muted, Talking, Transcribe, Transcribed
from csm_mlx_app.assistant.report import Report
from csm_mlx_app.assistant.scribe import LATE_S, Desk, Heard, Scribe, StreamHearing
from csm_mlx_app.sound.clock import SimulatedClock
from csm_mlx_app.sound.device import RATE_HZ, Block
from support.kyutai import write_checkpoint
from support.stt import DELAY_FRAMES, MARK, codec, random_stt, scripted_stt, tokenizer
from support.talks import Says, StandingClock, Talk, Told, scene, voiced

import csm_mlx
from csm_mlx.errors import CsmError
from csm_mlx.generate.session import Csm
from csm_mlx.generate.transcribe import Stt
from csm_mlx.models.mimi import Mimi

FRAME = 1920
FRAME_S = FRAME / RATE_HZ
SCENE = ((0.3, "france"), (8.0, "juliet"))


@cache
def mimi() -> Mimi:
    return csm_mlx.load().codec


def codes_of(pcm: np.ndarray) -> np.ndarray:
    """(n_frames, n_codebooks) of a stream that begins with it."""
    padded = np.pad(pcm, (0, -len(pcm) % FRAME))
    return np.array(mimi().encode(mx.array(padded[None, :, None]))[0][0])


def words_alone() -> list[tuple[int, str]]:
    """Ids that are a word by themselves, with its text."""
    known = [(i, tokenizer().piece_bytes(i).decode(errors="replace")) for i in range(260, tokenizer().vocab_size)]
    return [(i, text.strip()) for i, text in known if text.startswith(" ") and text.strip().isalpha()]


def scripted(sound: np.ndarray, placed: Sequence[tuple[float, str]], **options: Any) -> tuple[Stt, list[str]]:
    """A model that writes two words for each clip in `sound`, at codes that come nowhere else, and the words."""
    stream, ids, script, texts = codes_of(sound)[:, 0].tolist(), iter(words_alone()), dict[int, int](), []
    counts = Counter(stream)
    for start_s, name in placed:
        begin, end = (round((start_s + t_s) / FRAME_S) for t_s in voiced(name))
        once = [code for code in stream[begin:end] if counts[code] == 1]
        assert len(once) >= 4, f"the codes of {name} say too little: {stream[begin:end]}"
        (first, first_text), (second, second_text) = next(ids), next(ids)
        script |= dict(zip(once[-4:], (MARK, first, MARK, second), strict=True))
        texts.append(f"{first_text} {second_text}")
    return scripted_stt(script, mimi=mimi(), **options), texts


class Streamed(Talk):
    """A conversation whose recognizer computes with the rest."""

    def __init__(self, folder: Path, pcm: np.ndarray, stt: Stt, *, shares: bool = True, **options: Any):
        super().__init__(folder, pcm, Says("It is Paris.", "He did."), streams=True, **options)
        self._stt, self._shares = stt, shares

    def _load(self) -> Engine:
        engine = super()._load()
        csm = replace(engine.csm, codec=self._stt.codec) if self._shares else engine.csm
        scribe = Scribe(self._stt, n_codebooks=csm.config.csm.n_codebooks if self._shares else None)
        return Engine(csm, csm.session(), engine.replier, 0, scribe)


def test_codes_are_made_once_and_used_three_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sound = scene(*SCENE, end_s=11.0)
    stt, texts = scripted(sound, SCENE)

    def refuse(_: Csm, __: np.ndarray) -> np.ndarray:
        raise AssertionError("the user's sound was encoded again")

    monkeypatch.setattr(Csm, "encode", refuse)
    with Streamed(tmp_path, sound, stt) as talk:
        talk.finish()
    assert [turn["transcript"] for turn in talk.turns] == texts
    assert [turn["heard"] for turn in talk.turns] == ["It is Paris.", "He did."]
    stream = codes_of(sound)
    users = [rows.codes for rows in talk.engine.session.turns if rows.codes is not None][::2]
    assert len(users) == 2
    for codes, (start_s, name) in zip(users, SCENE, strict=True):
        spans = [i for i in range(len(stream)) if np.array_equal(stream[i : i + len(codes)], codes)]
        assert len(spans) == 1, "CSM's context is not what the recognizer heard"
        begin_s, end_s = (start_s + t_s for t_s in voiced(name))
        assert spans[0] * FRAME_S <= begin_s
        assert (spans[0] + len(codes)) * FRAME_S >= end_s - FRAME_S
    assert {name for thread, name, *_ in talk.told.spans if thread == "worker"} >= {"listening", "recognition"}
    assert all(turn["latency_ms"]["recognition"] > 0 for turn in talk.turns)


def test_another_codec_than_csms_makes_its_own_codes(tmp_path: Path) -> None:
    sound = scene((0.3, "france"), end_s=3.0)
    stt, texts = scripted(sound, [(0.3, "france")])
    with Streamed(tmp_path, sound, stt, shares=False) as talk:
        talk.finish()
    assert [turn["transcript"] for turn in talk.turns] == texts
    (codes, *_) = [rows.codes for rows in talk.engine.session.turns if rows.codes is not None]
    assert codes is not None
    assert len(codes) * FRAME_S == pytest.approx(voiced("france")[1] - voiced("france")[0], abs=1.2)


def test_a_pause_that_the_model_hears_ends_the_turn_sooner(tmp_path: Path) -> None:
    sound = scene((0.3, "france"), end_s=6.0)
    silence = set(codes_of(np.zeros(40 * FRAME, np.float32))[:, 0].tolist())
    waits = {}
    for pauses in ((), silence):
        stt, texts = scripted(sound, [(0.3, "france")], delay_frames=0, pauses=pauses)
        with Streamed(tmp_path, sound, stt, eagerness="low", clock=StandingClock()) as talk:
            talk.finish()
        assert [turn["transcript"] for turn in talk.turns] == texts
        (turn,) = talk.turns
        waits[bool(pauses)] = turn["latency_ms"]["decided"]
    assert waits[False] >= 850
    assert waits[True] < 400


def test_words_are_told_by_when_they_were_said() -> None:
    sound = scene(*SCENE, end_s=11.0)
    stt, texts = scripted(sound, SCENE)
    scribe, start_s = Scribe(stt, n_codebooks=2), 100.0
    frames, told = sound[: len(sound) // FRAME * FRAME].reshape(-1, FRAME), dict[int, str]()
    for i, frame in enumerate(frames):
        scribe.hear(Heard(frame, start_s + (i + 1) * FRAME_S))
        for k, (at_s, name) in enumerate(SCENE):
            ends_s = at_s + voiced(name)[1]
            if k not in told and (i + 1) * FRAME_S >= ends_s + FRAME_S:  # sooner than the model's own delay
                assert texts[k] != scribe.text(start_s + at_s, start_s + ends_s, final=False)
                told[k] = scribe.text(start_s + at_s, start_s + ends_s, final=True)
    assert list(told.values()) == texts
    assert scribe.text(start_s, start_s + 11, final=False) == " ".join(texts)
    assert scribe.text(start_s + 4, start_s + 7, final=False) == ""
    codes = scribe.codes(start_s + 10 * FRAME_S, start_s + 30 * FRAME_S)
    assert codes is not None
    np.testing.assert_array_equal(codes, codes_of(sound)[10:30, :2])
    assert scribe.codes(start_s + 500, start_s + 600) is None
    assert DELAY_FRAMES > 2


def test_sound_comes_in_frames_and_deaf_ears_hear_silence() -> None:
    mail: list[Any] = []

    class Silent:
        clock = SimulatedClock()

    ears = Ears(Silent(), lambda _: None, echo="half-duplex")  # pyright: ignore[reportArgumentType]
    hearing = StreamHearing(ears, mail.append, FRAME)
    rng, n = np.random.default_rng(0), 480
    blocks = [rng.normal(0, 0.1, n).astype(np.float32) for _ in range(40)]
    for i, pcm in enumerate(blocks):
        played = np.full(n, 0.5 if 8 <= i < 12 else 0.0, np.float32)
        ears.hear(Block(pcm=pcm, played=played, t_s=(i + 1) * n / RATE_HZ))
    assert [heard.t_s for heard in mail] == pytest.approx([FRAME_S * (k + 1) for k in range(10)])
    heard = np.concatenate([message.pcm for message in mail])
    said = np.concatenate(blocks)
    np.testing.assert_array_equal(heard[: 8 * n], said[: 8 * n])
    assert not heard[8 * n : 20 * n].any()
    np.testing.assert_array_equal(heard[-n:], said[-n:])
    asked = Transcribe(3, 1, 0.0, 0.4, final=True)
    hearing.submit(asked)
    assert mail[-1] == asked


@pytest.mark.parametrize("by_key", [False, True])
def test_muted_ears_hear_silence_unless_a_key_is_held_to_talk(by_key: bool) -> None:
    class Silent:
        clock = SimulatedClock()

    mail, n = list[Any](), FRAME
    ears = Ears(Silent(), lambda _: None, echo="off")  # pyright: ignore[reportArgumentType]
    StreamHearing(ears, mail.append, FRAME)
    told = {2: Muted(0.0, True), 6: Muted(0.0, False)} | (
        {4: Talking(0.0, True), 5: Talking(0.0, False)} if by_key else {}
    )
    for i in range(8):
        if i in told:
            ears.follow(told[i])
        ears.hear(Block(pcm=np.full(n, 0.1, np.float32), played=np.zeros(n, np.float32), t_s=(i + 1) * n / RATE_HZ))
    assert [bool(heard.pcm.any()) for heard in mail] == [True, True, False, False, by_key, False, True, True]


def test_an_echo_is_known_and_falling_behind_is_told() -> None:
    sound = scene((0.3, "france"), end_s=3.0)
    stt, (text,) = scripted(sound, [(0.3, "france")])
    told, posted, clock = Told(), list[Event](), SimulatedClock()
    report = Report(clock.now_s, [told])
    desk = Desk(Scribe(stt, n_codebooks=None), posted.append, clock, report, lambda: f"Well, {text}, as they say.")
    now_s = clock.now_s()
    for i, frame in enumerate(sound[: len(sound) // FRAME * FRAME].reshape(-1, FRAME)):
        desk.handle(Heard(frame, now_s - 10 + (i + 1) * FRAME_S))
    desk.handle(Transcribe(0, 0, now_s - 10, now_s, final=True))
    (answer,) = posted
    assert answer.t_s >= now_s
    assert isinstance(answer, Transcribed)
    assert (answer.text, answer.echo, answer.final) == (text, True, True)
    notes = [e["message"] for e in told.events if "behind" in e.get("message", "")]
    assert len(notes) == 1
    assert "--asr tiny.en" in notes[0]
    assert LATE_S < 10


def test_words_over_a_reply_are_told_once_they_are_read() -> None:
    """Asked for while they are still on their way through the model, they must not be taken for silence."""
    sound = scene((0.3, "france"), end_s=4.0)
    stt, (text,) = scripted(sound, [(0.3, "france")])
    posted, clock, told = list[Event](), SimulatedClock(), Told()
    desk = Desk(Scribe(stt, n_codebooks=None), posted.append, clock, Report(clock.now_s, [told]), lambda: "Well.")
    ends_s, answered = 0.3 + voiced("france")[1] + FRAME_S, None
    for i, frame in enumerate(sound[: len(sound) // FRAME * FRAME].reshape(-1, FRAME)):
        at_s = (i + 1) * FRAME_S
        desk.handle(Heard(frame, at_s))
        if at_s - FRAME_S < ends_s <= at_s:
            desk.handle(Transcribe(0, 0, 0.0, ends_s, final=False))
            assert not posted
        if posted and answered is None:
            answered = at_s
    (answer,) = posted
    assert isinstance(answer, Transcribed)
    assert (answer.text, answer.final) == (text, False)
    assert answered == pytest.approx(ends_s + DELAY_FRAMES * FRAME_S, abs=2 * FRAME_S)


def test_words_that_nobody_asked_for_are_of_no_later_turn() -> None:
    """A word's time stops where the next one begins: said over a reply, it would last until the next question."""
    sound = scene(*SCENE, end_s=11.0)
    stt, texts = scripted(sound, SCENE)
    scribe = Scribe(stt, n_codebooks=None)
    for i, frame in enumerate(sound[: len(sound) // FRAME * FRAME].reshape(-1, FRAME)):
        scribe.hear(Heard(frame, (i + 1) * FRAME_S))
    at_s, name = SCENE[1]
    assert scribe.text(at_s, at_s + voiced(name)[1], final=True) == texts[1]


def test_one_codec_is_kept_where_both_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    csm = csm_mlx.load()
    same, other = scripted_stt({}, mimi=csm_mlx.load().codec), random_stt()
    for stt, shares in ((same, True), (other, False)):
        monkeypatch.setattr(listening.loading, "load_stt", lambda _, stt=stt: stt)
        together, scribe = listening.together(csm, "anywhere")
        assert (together.codec is stt.codec) is shares
        scribe.hear(Heard(np.zeros(stt.frame_size, np.float32), 1.0))
        assert (scribe.codes(0.0, 2.0) is not None) is shares
    assert codec().config != csm.codec.config


def test_which_recognizer_is_meant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    assert listening.find_stt(None) is None
    assert listening.find_stt("tiny.en") is None
    with pytest.raises(CsmError, match=r"no speech-to-text checkpoint .* csm convert kyutai/stt-1b-en_fr-candle"):
        listening.find_stt("kyutai")
    assert listening.find_stt("kyutai/stt-2.6b-en") == "kyutai/stt-2.6b-en"
    folder = write_checkpoint(tmp_path / "weights" / "mine", "stt")
    write_checkpoint(tmp_path / "weights" / "a-moshi", "moshi")
    for asked in (None, "kyutai", "mine", str(folder)):
        found = listening.find_stt(asked)
        assert found is not None
        assert Path(found).resolve() == folder.resolve()
    with pytest.raises(CsmError, match="a-moshi holds a model of kind moshi, expected speech-to-text"):
        listening.find_stt("a-moshi")
    late = {"audio_delay_seconds": 2.5}
    write_checkpoint(tmp_path / "weights" / "a-late-one", "stt", stt_config=late)
    write_checkpoint(tmp_path / "weights" / "b-deaf-to-pauses", "stt", extra_heads_num_heads=0)
    assert str(listening.find_stt(None)).endswith("mine")
    shutil.rmtree(tmp_path / "weights" / "mine")
    shutil.rmtree(tmp_path / "weights" / "b-deaf-to-pauses")
    assert listening.find_stt(None) is None
    assert str(listening.find_stt("kyutai")).endswith("a-late-one")
