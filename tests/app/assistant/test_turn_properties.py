"""What no stream of events may bring the turn machine to do."""

import random
import typing

import pytest
from csm_mlx_app.assistant.events import (
    Action,
    Begin,
    Complete,
    Drop,
    InputEnded,
    Interrupt,
    Muted,
    Open,
    Pause,
    ReplyEnded,
    ReplyFailed,
    ReplyStarted,
    Resume,
    Show,
    Stop,
    Talking,
    Transcribe,
    Transcribed,
    Typed,
)
from csm_mlx_app.assistant.turn_config import TurnConfig
from support.scene import Scene

TEXTS = ["", "you", "Stop!", "Mhm.", "What is the capital of France?", "no but wait"]


class Checked(Scene):
    """A scene in which every action is held against those before it."""

    def __init__(self, config: TurnConfig):
        super().__init__(config)
        self.begun: dict[tuple[int, int], str] = {}
        self.ended: set[tuple[int, int]] = set()
        self.open: tuple[int, int] | None = None
        self.is_paused = False
        self.shown = "listening"
        self.texts: dict[tuple[int, int], str] = {}

    def send(self, event):
        if isinstance(event, Transcribed) and event.final:
            self.texts.setdefault((event.turn, event.revision), event.text.strip())
        done = self.machine.step(event)
        for action in done:
            self.check(action, event)
        self.actions += done
        return done

    def check(self, action, event) -> None:
        key: tuple[int, int] = (getattr(action, "turn", -1), getattr(action, "revision", -1))
        match action:
            case Begin(turn=turn, text=text):
                assert text
                assert text == (event.text.strip() if isinstance(event, Typed) else self.texts[key])
                assert key not in self.begun, "begun once"
                assert turn in {0, *(number for number, _ in self.begun)} or turn - 1 in {n for n, _ in self.begun}
                assert turn >= max((number for number, _ in self.begun), default=0), "numbers rise"
                assert self.open is None, "one reply at a time"
                self.begun[key] = text
            case Open():
                assert key in self.begun
                assert key not in self.ended
                assert self.open is None
                self.open = key
            case Drop():
                assert key in self.begun
                assert key not in self.ended
                self.ended.add(key)
                self.open = None if self.open == key else self.open
            case Stop(turn=turn):
                assert self.open is not None
                assert self.open[0] == turn
                self.ended.add(self.open)
                self.open, self.is_paused = None, False
            case Pause():
                assert self.open is not None
                assert not self.is_paused
                self.is_paused = True
            case Resume():
                assert self.is_paused
                self.is_paused = False
            case Transcribe(start_s=start_s, end_s=end_s):
                assert key not in self.ended
                assert 0 <= start_s < end_s <= self.t_s + 1e-9
                assert end_s - start_s < 60.1
            case Show(state=state):
                assert state != self.shown
                assert (state == "interrupted") == self.is_paused
                self.shown = state


def play(seed: int) -> Checked:
    """A random conversation, after which a turn must be possible again."""
    rng = random.Random(seed)
    scene = Checked(TurnConfig.of(rng.choice(["low", "medium", "high"]), echo_rules=rng.random() < 0.7))
    pending: list[Transcribe] = []
    is_heard = False
    for _ in range(300):
        before = len(scene.actions)
        turn = scene.open[0] if scene.open is not None else rng.randrange(3)
        kind = rng.random()
        if kind < 0.6:
            playing = is_heard and not scene.is_paused
            ms = rng.choice([32, 64, 160, 256, 480, 960] if rng.random() < 0.98 else [8000, 70_000])
            (scene.voice if rng.random() < 0.5 else scene.quiet)(ms, db=rng.uniform(-60, -15), playing=playing)
        elif kind < 0.78 and pending:
            asked = pending.pop(rng.randrange(len(pending)))
            text, echo = rng.choice(TEXTS), rng.random() < 0.1
            scene.send(Transcribed(scene.t_s, asked.turn, asked.revision, text, asked.final, echo))
        elif kind < 0.82 and pending:
            scene.send(Complete(scene.t_s, pending[-1].turn, pending[-1].revision, rng.random()))
        elif kind < 0.9:
            scene.send(ReplyStarted(scene.t_s, turn))
            is_heard = True
        elif kind < 0.93:
            scene.send(rng.choice([ReplyEnded, ReplyFailed])(scene.t_s, turn))
            scene.open = None if scene.machine.state in ("listening",) else scene.open
        else:
            others = [Interrupt(scene.t_s), Typed(scene.t_s, "Hello"), Talking(scene.t_s, rng.random() < 0.5)]
            others += [Muted(scene.t_s, rng.random() < 0.3), InputEnded(scene.t_s)]
            scene.send(rng.choice(others))
        pending += [action for action in scene.actions[before:] if isinstance(action, Transcribe)]
    # Wherever it is, silence and answers bring it back to where a turn can be had.
    scene.send(Talking(scene.t_s, False))
    scene.send(Muted(scene.t_s, False))
    scene.send(Interrupt(scene.t_s))
    scene.quiet(3000)
    scene.send(Interrupt(scene.t_s))
    assert not scene.is_paused
    assert scene.machine.state == "listening"
    scene.ask()
    scene.quiet(2500)
    assert scene.machine.state == "thinking"
    return scene


@pytest.mark.parametrize("seed", range(60))
def test_whatever_happens(seed):
    play(seed)


def test_the_random_streams_reach_everything():
    """Or the properties would hold of nothing."""
    seen = {type(action) for seed in range(4) for action in play(seed).actions}
    assert seen == set(typing.get_args(Action))
