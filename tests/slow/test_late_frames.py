"""A frame late in a conversation takes hardly longer than an early one."""

import statistics
import time

import pytest
from support.models import random_csm_model

from csm_mlx.benchmark import FrameLoop
from csm_mlx.config import SamplingConfig
from csm_mlx.stored import preset

EARLY, LATE = 100, 1900
"""Positions, of csm-1b's 2048."""
MOST = 1.15
REPEATS = 4


@pytest.mark.slow
def test_a_frame_at_position_1900_takes_no_longer_than_at_100() -> None:
    """At csm-1b's true dimensions, in processor time, by turns: what disturbs the machine disturbs both."""
    model = random_csm_model(preset("csm-1b").csm)
    model.prepare()
    sampling = SamplingConfig(temperature=0.9, top_k=50)
    loops = {position: FrameLoop(model, sampling, position) for position in (EARLY, LATE)}
    spent_s: dict[int, list[float]] = {position: [] for position in loops}
    for repeat in range(1 + REPEATS):
        for position, loop in loops.items():
            started_s = time.process_time()
            loop.run()
            if repeat:  # the first compiles
                spent_s[position].append(time.process_time() - started_s)
    early_s, late_s = (statistics.median(spent_s[position]) for position in (EARLY, LATE))
    ratio = late_s / early_s
    print(f"\na frame at position {EARLY} takes {early_s:.2f} s, at {LATE} {late_s:.2f} s: {ratio:.3f} times")
    assert ratio <= MOST
