"""The thread that owns MLX, and what it shares: what is cancelled stays silent, what is over is let go."""

import os
import shlex
import threading
import time

import numpy as np
from csm_mlx_app.assistant.job import History
from csm_mlx_app.assistant.output import Output
from csm_mlx_app.assistant.replies.command import Command
from csm_mlx_app.sound.clock import SimulatedClock
from csm_mlx_app.sound.filed import FileSound
from support.talks import Says, SaysReply, Talk, scene

NAMES = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
LONG = " ".join(f"The number is {name}." for name in NAMES)


def typed(talk: Talk, *lines: str) -> None:
    """A conversation by keyboard."""
    talk.sound.hold = lambda: len(talk.turns) < len(lines)
    for number, line in enumerate(lines, 1):
        talk.conversation.say(line)
        talk.until(lambda: len(talk.turns) >= number and not talk.conversation.is_busy)  # noqa: B023
    talk.finish()


def test_nothing_of_a_cancelled_generation_is_written():
    """One thread writes as fast as it can, another cancels: what was written is of the present generation."""
    sound = FileSound(None, None, SimulatedClock())
    sound.start()
    output = Output(sound)
    refused = threading.Event()

    def writes(generation: int) -> None:
        while output.write(generation, np.full(10, 0.5, np.float32)):
            pass
        refused.set()

    for _ in range(20):
        refused.clear()
        thread = threading.Thread(target=writes, args=(output.generation,))
        thread.start()
        time.sleep(0.001)
        ended = output.cancel()
        assert refused.wait(timeout=5)
        thread.join()
        assert sound.n_written == ended
        assert sound.buffered_s == 0


def test_history_takes_turns_and_holds_what_was_heard():
    history = History("Be kind.")
    assert history.with_user("Hello.") == [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Hello."},
    ]
    history.add("Hello.", " Good morning. ")
    history.add("And now?", "")  # interrupted before a word was heard
    assert [(m["role"], m["content"]) for m in history.with_user("What?")] == [
        ("system", "Be kind."),
        ("user", "Hello."),
        ("assistant", "Good morning."),
        ("user", "And now? What?"),
    ]
    assert History("").with_user("Hi.") == [{"role": "user", "content": "Hi."}]


def test_snapshots_of_what_was_heard_are_let_go(tmp_path):
    """Each is a copy of CSM's cache: a long answer must not pile them up."""
    kept: list[int] = []

    class Watch:
        def event(self, event):
            job = talk.conversation._worker._job
            if event["event"] == "clause" and job is not None:
                kept.append(sum(spoken.before is not None for spoken in job.spoken))

        def span(self, *_): ...
        def close(self): ...

    with Talk(tmp_path, scene(end_s=0.5), Says(LONG), sinks=[Watch()]) as talk:
        typed(talk, "Count.")
    assert len(kept) == 10
    assert max(kept) < 8, kept  # four seconds of speech are made ahead
    assert talk.turns[0]["heard"] == LONG


def test_an_answer_that_cannot_be_spoken_ends(tmp_path):
    """Code alone, and nothing at all; then the conversation goes on."""
    with Talk(tmp_path, scene(end_s=0.5), Says("```\nx = 1\n```", "", "Fine.")) as talk:
        typed(talk, "One.", "Two.", "Three.")
    assert [turn["played_ms"] > 0 for turn in talk.turns] == [False, False, True]
    assert talk.turns[2]["heard"] == "Fine."
    assert not talk.told.of("error")


def test_words_that_do_not_fit_into_the_speech_model_are_answered(tmp_path):
    replier = Says("Fine.")
    question = "how are you " * 300
    with Talk(tmp_path, scene(end_s=0.5), replier) as talk:
        typed(talk, question)
    assert replier.asked[0][-1]["content"] == question.strip()
    assert talk.turns[0]["heard"] == "Fine."
    (note,) = talk.told.of("note")
    assert "too long for the speech model's context" in note["message"]


class Away(Says):
    """Works elsewhere; an empty answer never comes."""

    computes = False

    def reply(self, messages, notify):
        reply = super().reply(messages, notify)
        notify()
        return reply if reply._words else Silence("")


class Silence(SaysReply):
    def step(self) -> str:
        return ""


def test_an_interruption_before_the_first_sound(tmp_path):
    """Nothing was heard: the next question is asked together with the first."""
    replier = Away("", "It is five.")
    with Talk(tmp_path, scene(end_s=0.5), replier) as talk:
        talk.sound.hold = lambda: len(talk.turns) < 2
        talk.conversation.say("What is two and three?")
        talk.until(lambda: talk.conversation.state == "thinking" and bool(replier.asked))
        talk.conversation.interrupt()
        talk.until(lambda: len(talk.turns) == 1)
        talk.conversation.say("Say it in words.")
        talk.finish()
    assert [turn["heard"] for turn in talk.turns] == ["", "It is five."]
    assert replier.asked[1] == [{"role": "user", "content": "What is two and three? Say it in words."}]
    assert talk.turns[0]["played_ms"] == 0


def test_a_command_ends_with_the_conversation(tmp_path):
    """Also what it has started."""
    program = f"echo $$ > {shlex.quote(str(tmp_path / 'pid'))}; sleep 600 | cat"
    with Talk(tmp_path, scene(end_s=0.5), Command(program)) as talk:
        talk.conversation.say("Hello.")
        talk.until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text().endswith("\n"))
        group = int((tmp_path / "pid").read_text())
        began = time.monotonic()
        talk.conversation.close()
        took_s = time.monotonic() - began
    assert took_s < 2
    until_s = time.monotonic() + 5
    while is_alive(group) and time.monotonic() < until_s:
        time.sleep(0.02)
    assert not is_alive(group)


def is_alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_threads_end_with_the_conversation(tmp_path):
    before = set(threading.enumerate())
    with Talk(tmp_path, scene((0.3, "moon")), Says("Far.")) as talk:
        talk.finish()
    until_s = time.monotonic() + 5
    while (left := set(threading.enumerate()) - before) and time.monotonic() < until_s:
        time.sleep(0.02)
    assert not left
