"""Conversations from file to file on a simulated clock: what is said, heard, remembered and forgotten."""

import shlex
import sys
import time

import numpy as np
import pytest
from csm_mlx_app.assistant import worker
from csm_mlx_app.assistant.events import Muted, Talking
from csm_mlx_app.assistant.records import Recording
from csm_mlx_app.assistant.replies.command import Command
from csm_mlx_app.assistant.transcripts import words
from csm_mlx_app.assistant.turn_config import TurnConfig
from csm_mlx_app.sound.device import BLOCK_S, RATE_HZ
from support.talks import WORDS, Known, Says, StandingClock, Talk, clip, scene, stretches, voiced

from csm_mlx.audio import read_audio
from csm_mlx.frames import text_ids
from csm_mlx.recognize import Whisper

SHORT = (
    "The moon is about four hundred thousand kilometres away from us. It takes light a little more than a second to "
    "get there. People took three days."
)
"""Eight seconds."""
LONG = f"{SHORT} Nobody has been there for many years now. Some would like to go again, and to stay for longer."
FRAME_S = 0.08


def turn_ids(talk: Talk, text: str, speaker: int) -> tuple[int, ...]:
    csm = talk.engine.csm
    return text_ids(text, speaker, csm.tokenizer, csm.config.csm)


def session_texts(talk: Talk) -> list[tuple[int, ...]]:
    return [rows.text_ids for rows in talk.engine.session.turns]


@pytest.fixture(scope="module")
def whisper() -> Whisper:
    recognizer = Whisper()
    recognizer.transcribe(np.zeros(RATE_HZ // 2, np.float32), RATE_HZ)  # loads: in a conversation that would be a wait
    return recognizer


def test_two_questions_are_heard_and_answered(tmp_path, whisper):
    """With whisper; the second comes when the first is answered, and the reply is told nothing but what was said."""
    replier = Says("It is Paris.", "William Shakespeare did.")
    sound = scene((0.3, "france"), (16.0, "juliet"))
    with Talk(tmp_path, sound, replier, recognizer=whisper) as talk:
        talk.finish()
    asked = [turn["transcript"] for turn in talk.turns]
    assert [words(text) for text in asked] == [words(WORDS["france"]), words(WORDS["juliet"])]
    assert [turn["heard"] for turn in talk.turns] == ["It is Paris.", "William Shakespeare did."]
    assert [message["content"] for message in replier.asked[1]] == [asked[0], "It is Paris.", asked[1]]
    heard = stretches(talk.output())
    assert len(heard) == 2
    for turn, (start, end) in zip(talk.turns, heard, strict=True):
        assert turn["underruns"] or (end - start) / RATE_HZ == pytest.approx(turn["played_ms"] / 1000, abs=0.1)
    for turn, asked_s in zip(talk.turns, (0.3, 16.0), strict=True):
        latency = turn["latency_ms"]
        stages = [
            latency[s] for s in ("decided", "transcript", "first_token", "first_clause", "first_frame", "first_sample")
        ]
        assert sorted(stages[1:]) == stages[1:], "each stage after the one before it"
        assert latency["voice_to_voice"] == stages[-1]
        assert heard[turn["turn"]][0] / RATE_HZ > asked_s
    events = [(event["event"], event["t_s"]) for event in talk.told.events]
    first = [name for name, _ in events if name in ("speech_start", "speech_end", "transcript", "clause", "turn")]
    assert first == ["speech_start", "speech_end", "transcript", "clause", "turn"] * 2


def test_a_question_into_the_answer_cuts_it_to_what_was_heard(tmp_path, monkeypatch):
    monkeypatch.setattr(worker, "ROOM_S", 0.0)  # csm-tiny's context is small; here nothing is to be forgotten
    replier = Says(LONG, "It is Paris.")
    notes: list[str] = []
    recording = Recording(tmp_path / "kept", notes.append)
    with Talk(tmp_path, scene((0.3, "moon")), replier, recording=recording, clock=StandingClock()) as talk:
        talk.until_heard()
        talk.sound.say("france")
        talk.finish()
    first, second = talk.turns
    heard = first["heard"]
    assert heard
    assert LONG.startswith(heard)
    assert len(heard) < len(LONG)
    (interrupted,) = talk.told.of("interrupted")
    assert interrupted["heard"] == heard
    assert (second["transcript"], second["heard"]) == (WORDS["france"], "It is Paris.")

    # The language model is told what was heard, and no more.
    assert [message["content"] for message in replier.asked[1]] == [WORDS["moon"], heard, WORDS["france"]]

    # So is CSM: the clauses that were heard, words and frames, between what the user said.
    clauses = [event["text"] for event in talk.told.of("clause")]
    n_whole = sum(heard.startswith(" ".join(clauses[: n + 1])) for n in range(len(clauses)))
    cut = heard[len(" ".join(clauses[:n_whole])) :].strip()
    spoken = [(text, 0) for text in [*clauses[:n_whole], *([cut] if cut else [])]]
    expected = [(WORDS["moon"], 1), *spoken, (WORDS["france"], 1), ("It is Paris.", 0)]
    assert session_texts(talk) == [turn_ids(talk, text, speaker) for text, speaker in expected]
    frames = [len(rows.codes) for rows in talk.engine.session.turns[1 : 1 + len(spoken)] if rows.codes is not None]
    assert sum(frames) * FRAME_S == pytest.approx(first["played_ms"] / 1000, abs=0.5 + FRAME_S * len(frames))

    # Silence within 100 ms of the decision, until the next answer.
    silence = talk.output()[talk.at(interrupted["t_s"] + 0.1) : talk.at(second_start(talk))]
    assert len(silence) > RATE_HZ
    assert not silence.any()

    # The recording is what was heard, of both sides.
    for turn in talk.turns:
        reply, user = (tmp_path / "kept" / f"turn-{turn['turn'] + 1:04}-{side}.wav" for side in ("reply", "user"))
        assert len(read_audio(reply, RATE_HZ)) / RATE_HZ == pytest.approx(turn["played_ms"] / 1000, abs=0.001)
        assert Known().transcribe(read_audio(user, RATE_HZ), RATE_HZ) == turn["transcript"]
    assert not notes


def second_start(talk: Talk) -> float:
    """A moment before the second answer, by less than two steps of the sound.

    Its first sample is told up to a step late, when that step has been played; both times are rounded to milliseconds.
    """
    told_s = talk.told.of("speech_end")[1]["t_s"] + talk.turns[1]["latency_ms"]["first_sample"] / 1000
    return told_s - BLOCK_S - 0.002


class Mumbled(Known):
    """Knows the clips, and makes of everything else what one makes of a cough."""

    def transcribe(self, pcm: np.ndarray, sample_rate_hz: int) -> str:
        text = super().transcribe(pcm, sample_rate_hz)
        return text if text in WORDS.values() else "Hm."


def test_a_cough_does_not_stop_the_answer(tmp_path):
    """Nor does a noise, nor one word: that pauses it for a moment."""
    noise = np.random.default_rng(0).normal(0, 0.2, RATE_HZ // 4).astype(np.float32)
    word = clip("moon")[round((voiced("moon")[1] - 0.35) * RATE_HZ) :][: round(0.26 * RATE_HZ)]
    with Talk(tmp_path, scene((0.3, "moon")), Says(SHORT), recognizer=Mumbled()) as talk:
        talk.until_heard()
        talk.sound.say(scene((0.0, noise), (0.8, word)))
        talk.finish()
    assert len(talk.turns) == 1, talk.told.events
    (turn,) = talk.turns
    assert turn["heard"] == SHORT
    assert not talk.told.of("interrupted")
    assert talk.told.of("paused"), "the word was not heard at all"
    assert len(talk.told.of("transcript")) == 1


def test_its_own_voice_in_the_microphone_is_no_interruption(tmp_path):
    with Talk(tmp_path, scene((0.3, "moon")), Says(SHORT), echo="aec", echo_db=-20) as talk:
        talk.finish()
    (turn,) = talk.turns
    assert turn["heard"] == SHORT
    assert not talk.told.of("interrupted")
    assert not talk.told.of("note")


def test_what_was_begun_too_early_is_forgotten(tmp_path):
    """The user pauses and goes on: the reply that was begun meanwhile was never heard, and never was."""
    replier = Says("Light is fast and the moon is far.", "It is Paris.")
    patient = TurnConfig(commit_s=3.0, incomplete_s=3.0, echo_rules=False)
    with Talk(tmp_path, scene((0.3, "moon"), end_s=8), replier, turns=patient) as talk:
        replier.on_ask = lambda: talk.sound.say("france") if len(replier.asked) == 1 else None
        talk.finish()
    (turn,) = talk.turns
    both = f"{WORDS['moon']} {WORDS['france']}"
    assert [asked[-1]["content"] for asked in replier.asked] == [WORDS["moon"], both], "it was begun, and begun anew"
    assert all(len(asked) == 1 for asked in replier.asked)
    assert (turn["transcript"], turn["heard"]) == (both, "It is Paris.")
    assert session_texts(talk) == [turn_ids(talk, both, 1), turn_ids(talk, "It is Paris.", 0)]
    assert [event["text"] for event in talk.told.of("clause")] == ["It is Paris."]
    ((start, end),) = stretches(talk.output())
    assert turn["underruns"] or (end - start) / RATE_HZ == pytest.approx(turn["played_ms"] / 1000, abs=0.1)


def test_a_typed_turn_stops_the_answer_and_is_answered(tmp_path):
    replier = Says(LONG, "Good.")
    with Talk(tmp_path, scene(end_s=20), replier) as talk:
        talk.conversation.say("Tell me about the moon.")
        talk.until_heard()
        talk.conversation.say("  Thank you, enough.  ")
        talk.finish()
    first, second = talk.turns
    assert LONG.startswith(first["heard"])
    assert 30 <= len(first["heard"]) < len(LONG)
    assert (second["transcript"], second["heard"]) == ("Thank you, enough.", "Good.")
    assert "voice_to_voice" not in second["latency_ms"]
    assert replier.asked[1][1]["content"] == first["heard"]


def test_while_the_key_is_held_a_pause_ends_nothing(tmp_path):
    """Push-to-talk: two clips 1.5 s apart are one turn, and it is over when the key is released."""
    replier = Says("Yes.")
    with Talk(tmp_path, scene((0.3, "moon"), (3.9, "france"), end_s=12), replier) as talk:
        talk.conversation.post(Talking(talk.sound.start_s, True))
        talk.until(lambda: talk.conversation.now_s() > talk.sound.start_s + 6.5)
        released_s = talk.conversation.now_s()
        talk.conversation.post(Talking(released_s, False))
        talk.finish()
    (turn,) = talk.turns
    assert turn["transcript"] == f"{WORDS['moon']} {WORDS['france']}"
    assert talk.told.of("thinking")[0]["t_s"] == pytest.approx(released_s, abs=0.5)


def test_a_muted_microphone_hears_nothing(tmp_path):
    with Talk(tmp_path, scene((0.5, "moon"), end_s=20), Says("Yes.")) as talk:
        talk.conversation.post(Muted(talk.sound.start_s, True))
        talk.until(lambda: talk.conversation.now_s() > talk.sound.start_s + 3)
        talk.conversation.post(Muted(talk.conversation.now_s(), False))
        talk.sound.say("france")
        talk.finish()
    assert [turn["transcript"] for turn in talk.turns] == [WORDS["france"]]


def test_the_last_words_are_answered_although_the_file_ends(tmp_path):
    """`low` waits for 0.9 s of silence, and the tail that is added to a file is hardly longer."""
    spoken = clip("moon")[: round(voiced("moon")[1] * RATE_HZ)]
    with Talk(tmp_path, spoken, Says("Far."), eagerness="low") as talk:
        talk.finish()
    assert [turn["heard"] for turn in talk.turns] == ["Far."]


@pytest.mark.slow
def test_speech_begins_before_the_language_model_has_finished(tmp_path):
    """Two words a second, from a process of its own: the first clause is heard while the rest is unwritten."""
    answer = "It is far away, and it takes light a second to get there."
    program = f"""
import sys, time
for word in {answer!r}.split():
    print(word, end=" ", flush=True)
    time.sleep(0.5)
"""
    command = Command(f"{shlex.quote(sys.executable)} -c {shlex.quote(program)}")
    began = time.monotonic()
    with Talk(tmp_path, None, command) as talk:
        talk.sound.hold = lambda: not talk.turns
        talk.conversation.say("How far away is the moon?")
        talk.until(lambda: bool(talk.turns))
        took_s = time.monotonic() - began
    (turn,) = talk.turns
    assert turn["heard"] == answer
    first, *later = [event["t_s"] for event in talk.told.of("clause")]
    speaking_s = talk.told.of("speaking")[0]["t_s"]
    assert speaking_s < later[0], "the first clause was heard before the second was written"
    n_after = len(answer.split()) - len(talk.told.of("clause")[0]["text"].split())
    assert later[-1] - first > 0.5 * (n_after - 2), "the clock of the conversation ran away from the language model"
    assert took_s > 0.5 * len(answer.split())
