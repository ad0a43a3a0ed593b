"""Twenty minutes of conversation on a simulated clock: nothing grows, nothing stalls, nothing drifts."""

import itertools
import time
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from csm_mlx_app.sound.device import RATE_HZ
from support.memory import resident_bytes
from support.talks import WORDS, Says, Talk, scene, stretches

from csm_mlx.frames import text_ids
from csm_mlx.text import speakable

PERIOD_S, SHORT_PERIOD_S = 12.0, 8.0
"""Between two questions: each answer of `ANSWERS` is over by then."""
ANSWERS = ["It is far away from here.", "Nobody knows, and nobody asked.", "That was in Paris, long ago. So they say."]
SETTLED = 10
"""Turns after which nothing grows."""
PAUSE_S = 0.5


class Scales:
    """A sink that weighs the process when a turn is over, on the thread that owns MLX."""

    def __init__(self) -> None:
        self.resident: list[int] = []
        self.active: list[int] = []

    def event(self, event: dict[str, Any]) -> None:
        if event["event"] == "turn":
            self.resident.append(resident_bytes())
            self.active.append(mx.get_active_memory())

    def span(self, thread: str, name: str, start_s: float, end_s: float) -> None:
        pass

    def close(self) -> None:
        pass


def long_talk(folder: Path, n_turns: int, period_s: float, **options: Any) -> tuple[Talk, Says, Scales]:
    names = list(itertools.islice(itertools.cycle(["france", "moon", "juliet"]), n_turns))
    sound = scene(*((0.3 + period_s * number, name) for number, name in enumerate(names)), end_s=period_s * n_turns)
    replier, scales = Says(*itertools.islice(itertools.cycle(ANSWERS), n_turns)), Scales()
    began, spent = time.monotonic(), time.process_time()
    with Talk(folder, sound, replier, sinks=[scales], **options) as talk:
        talk.finish(give_up_s=1800)
    print(
        f"\n{n_turns} turns, {len(sound) / RATE_HZ / 60:.0f} min of sound in {time.monotonic() - began:.0f} s "
        f"({time.process_time() - spent:.0f} s of processor time)"
    )
    return talk, replier, scales


def check(talk: Talk, replier: Says, n_turns: int) -> None:
    turns = talk.turns
    asked = [WORDS[name] for name in itertools.islice(itertools.cycle(["france", "moon", "juliet"]), n_turns)]
    said = list(itertools.islice(itertools.cycle(ANSWERS), n_turns))
    assert [turn["transcript"] for turn in turns] == asked
    assert [turn["heard"] for turn in turns] == said

    # The language model's history is what was heard, of all turns.
    history = [message["content"] for message in replier.asked[-1]]
    assert history == [*itertools.chain.from_iterable(zip(asked[:-1], said[:-1], strict=True)), asked[-1]]

    # What was played is what the turns say.
    played = [(end - start) / RATE_HZ for start, end in stretches(talk.output())]
    told = [turn["played_ms"] / 1000 for turn in turns]
    n_gaps = np.diff([0, *(turn["underruns"] for turn in turns)])
    assert len(played) == n_turns
    drifts_s = np.subtract(played, told)[n_gaps == 0]  # a busy machine may have left gaps in the others
    assert len(drifts_s) > n_turns // 2
    assert np.abs(drifts_s).max() < 0.1

    # CSM forgot the oldest turns, whole, and holds the newest.
    session, csm = talk.engine.session, talk.engine.csm
    held = [rows.text_ids for rows in session.turns]
    clauses = [event["text"] for event in talk.told.of("clause") if event["turn"] == n_turns - 1]
    newest = [text_ids(speakable(text), 0, csm.tokenizer, csm.config.csm) for text in clauses]
    assert held[-len(newest) :] == newest
    assert len(held) < 2 * n_turns
    rooms = [(start, end) for _, name, start, end in talk.told.spans if name == "make room"]
    frames = [end - start for _, name, start, end in talk.told.spans if name == "synthesis"]
    begins = {event["turn"]: event["t_s"] for event in reversed(talk.told.of("clause"))}
    for turn in turns:  # forgetting is for when nobody waits for an answer or hears one
        assert not any(start < turn["t_s"] - 0.01 and end > begins[turn["turn"]] for start, end in rooms)
    n_rebuilt = sum(end - start > 0.01 for start, end in rooms)
    lengths_ms = [1000 * length for length in sorted(end - start for start, end in rooms)[-n_rebuilt:]]
    print(
        f"frames {1000 * float(np.median(frames)):.0f} ms, the longest {1000 * max(frames):.0f} ms; room made "
        f"{n_rebuilt} times in {float(np.median(lengths_ms)):.0f} ms, at most {lengths_ms[-1]:.0f} ms; "
        f"drift {1000 * drifts_s.sum():.1f} ms of {sum(told):.0f} s; {turns[-1]['underruns']} underruns"
    )
    assert n_rebuilt
    assert np.median(lengths_ms) < 1000 * PAUSE_S, "the longest are a busy machine's"
    assert np.percentile(frames, 99) < PAUSE_S


@pytest.mark.slow
def test_six_turns_already_evict(tmp_path):
    talk, replier, _ = long_talk(tmp_path, 6, SHORT_PERIOD_S)
    check(talk, replier, 6)


@pytest.mark.slow
def test_a_hundred_turns(tmp_path):
    talk, replier, scales = long_talk(tmp_path, 100, PERIOD_S, echo="aec", echo_db=-30)
    check(talk, replier, 100)
    settled, last = scales.resident[SETTLED], scales.resident[-1]
    print(f"resident {settled / 1e6:.0f} MB after turn {SETTLED}, {last / 1e6:.0f} MB after the last")
    print(f"MLX {scales.active[SETTLED] / 1e6:.1f} MB, {scales.active[-1] / 1e6:.1f} MB")
    assert last < settled + 30e6
    assert max(scales.active[SETTLED:]) < max(scales.active[: SETTLED + 1]) * 1.1
