"""Clocks: nobody is forgotten, nobody waits for nothing, and simulated hours pass in seconds."""

import random
import threading
import time

import pytest
from csm_mlx_app.sound.clock import RealClock, SimulatedClock

CLOCKS = [RealClock, SimulatedClock, lambda: SimulatedClock(speed=1), lambda: SimulatedClock(speed=3)]


def never() -> bool:
    return False


def together(clock, *bodies) -> None:
    """Run each body in a thread of its own that attends, and see them all end."""
    failures = []

    def run(body, attendance) -> None:
        with attendance:
            try:
                body()
            except BaseException as error:
                failures.append(error)

    threads = [threading.Thread(target=run, args=(body, clock.attend()), daemon=True) for body in bodies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=20)
        assert not thread.is_alive(), "a thread waits for ever"
    if failures:
        raise failures[0]


@pytest.mark.parametrize("make", CLOCKS)
def test_waiting_ends_at_its_time_or_when_told(make):
    clock = make()
    assert clock.wait(lambda: True) is True
    start_s = clock.now_s()
    assert clock.wait(never, start_s + 0.05) is False
    assert start_s + 0.05 <= clock.now_s() < start_s + 0.3
    there, order = [], []

    def waits() -> None:
        assert clock.wait(lambda: bool(there), clock.now_s() + 60) is True
        order.append("told")

    def tells() -> None:
        clock.wait(never, clock.now_s() + 0.05)
        there.append(1)
        order.append("tells")
        clock.notify()

    together(clock, waits, tells)
    assert order == ["tells", "told"]


@pytest.mark.parametrize("speed", [None, 1, 4])
def test_waits_are_skipped_or_paced(speed):
    clock, started = SimulatedClock(speed), time.perf_counter()
    together(clock, lambda: clock.wait(never, 0.4), lambda: clock.wait(never, 0.2))
    took_s = time.perf_counter() - started
    assert clock.now_s() >= 0.4
    assert took_s < 0.15 if speed is None else 0.4 / speed - 0.02 < took_s < 0.4 / speed + 0.25


def test_a_thousand_seconds_of_four_threads_in_order():
    """Every thread sleeps at random; the order of all that happens is that of its times."""
    clock, happened = SimulatedClock(), []

    def sleeps(seed: int):
        def body() -> None:
            rng, t_s = random.Random(seed), 0.0
            while (t_s := t_s + rng.uniform(0.01, 0.4)) < 1000:
                assert clock.wait(never, t_s) is False
                happened.append((t_s, clock.now_s()))

        return body

    started = time.process_time()
    together(clock, *map(sleeps, range(4)))
    assert time.process_time() - started < 4  # two on a machine of its own
    wanted = sorted(t_s for t_s, _ in happened)
    assert len(wanted) > 18_000
    # Time also passes while threads work: those whose times are as near as that may swap.
    assert all(abs(t_s - in_order) < 0.1 for (t_s, _), in_order in zip(happened, wanted, strict=True))
    on_time = sum(now_s - t_s < 0.005 for t_s, now_s in happened)
    assert all(now_s >= t_s for t_s, now_s in happened)
    assert on_time > 0.95 * len(happened)


def test_time_stands_while_somebody_works():
    clock, seen = SimulatedClock(), []

    def works() -> None:
        before_s = clock.now_s()
        time.sleep(0.2)  # what the clock does not know of is work
        seen.append(clock.now_s() - before_s)

    together(clock, works, lambda: clock.wait(never, 50.0))
    assert 0.2 <= seen[0] < 1.0, "it passes like the real one, and does not jump"
    assert clock.now_s() >= 50


def test_who_comes_late_or_leaves_is_waited_for_or_not():
    clock, order = SimulatedClock(), []
    late = clock.attend()  # promised, and not there yet

    def early() -> None:
        clock.wait(never, 0.3)
        order.append("early")

    def leaves() -> None:
        clock.wait(never, 0.1)
        order.append("left")

    def comes() -> None:
        time.sleep(0.15)
        with late:
            order.append("came")
            clock.wait(never, 0.25)
            order.append("late")

    outsider = threading.Thread(target=comes)
    outsider.start()
    together(clock, early, leaves)
    outsider.join()
    assert order.index("came") < order.index("late") < order.index("early")
    assert order.index("left") < order.index("late")


def test_hand_overs_are_never_lost():
    """Three threads pass a token round; a lost wake-up would stand still, a jump too early would time out."""
    clock, turn, rounds = SimulatedClock(), [0], 3000

    def passes(me: int):
        def body() -> None:
            for _ in range(rounds):
                assert clock.wait(lambda: turn[0] % 3 == me, clock.now_s() + 5), "the clock jumped while others worked"
                turn[0] += 1
                clock.notify()

        return body

    together(clock, *map(passes, range(3)))
    assert turn[0] == 3 * rounds
    assert clock.now_s() < 5


def test_an_error_in_a_question_reaches_who_asked():
    clock = SimulatedClock()

    def asks() -> None:
        with pytest.raises(ZeroDivisionError):
            clock.wait(lambda: clock.now_s() > 1 and 1 / 0 > 0, 2.0)

    together(clock, asks, lambda: clock.wait(never, 1.5))
