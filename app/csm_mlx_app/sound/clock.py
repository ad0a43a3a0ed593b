"""The time of a conversation: the real one, or one that jumps over every wait."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Protocol


class Clock(Protocol):
    """What the threads of a conversation tell the time by, and wait on.

    `ready` is asked while the clock is locked, on whichever thread is there: it must be quick and must not wait.
    """

    def now_s(self) -> float:
        """Seconds since the clock was made."""
        ...

    def wait(self, ready: Callable[[], bool], until_s: float | None = None) -> bool:
        """Wait until `ready()`, asked at once, after each `notify` and at `until_s`; returns its last answer."""
        ...

    def notify(self) -> None:
        """Something changed: all who wait ask again."""
        ...

    def attend(self) -> AbstractContextManager[None]:
        """Take part, from this call until the block is left.

        Every thread that works for the conversation attends, so that a simulated clock stands while it works. To
        start threads without a race, call `attend()` before `Thread.start` and let the thread enter what it returned.
        """
        ...


class RealClock:
    """Time as it passes."""

    def __init__(self) -> None:
        self._start_s = time.perf_counter()
        self._changed = threading.Condition()

    def now_s(self) -> float:
        return time.perf_counter() - self._start_s

    def wait(self, ready: Callable[[], bool], until_s: float | None = None) -> bool:
        with self._changed:
            while not ready():
                left_s = None if until_s is None else until_s - self.now_s()
                if left_s is not None and left_s <= 0:
                    return False
                self._changed.wait(left_s)
            return True

    def notify(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def attend(self) -> AbstractContextManager[None]:
        return contextlib.nullcontext()


class _Waiter:
    """One thread inside `SimulatedClock.wait`."""

    def __init__(self, ready: Callable[[], bool], until_s: float | None):
        self.ready = ready
        self.until_s = until_s
        self.thread = threading.get_ident()
        self._asleep = threading.Lock()  # as a signal: an Event is three times as slow, and there are 50 a second
        self._asleep.acquire()

    def sleep(self, longest_s: float | None) -> None:
        self._asleep.acquire(timeout=-1 if longest_s is None else longest_s)

    def wake(self) -> None:
        self._asleep.release()


class SimulatedClock:
    """Time that passes like the real one while anybody who attends works, and is skipped while all of them wait.

    speed: None skips waits at once; a number runs through them that many times as fast as they would last, 1 being
        real time.

    A thread that waits without attending takes part for as long as it waits; while it works, nobody waits for it.
    Where all wait, no `ready` is true and no `until_s` is given, only a `notify` from outside ends it.
    """

    def __init__(self, speed: float | None = None) -> None:
        self._speed = speed
        self._start_s = time.perf_counter()
        self._skipped_s = 0.0
        self._lock = threading.RLock()
        self._waiters: list[_Waiter] = []
        self._n_announced = 0
        """Those who called `attend()` and did not enter yet: time may not jump without them."""
        self._attending: dict[int, int] = {}
        """Thread -> how many of its blocks are open."""

    def now_s(self) -> float:
        return time.perf_counter() - self._start_s + self._skipped_s

    def wait(self, ready: Callable[[], bool], until_s: float | None = None) -> bool:
        while True:
            with self._lock:
                if ready():
                    return True
                if until_s is not None and self.now_s() >= until_s:
                    return False
                waiter = _Waiter(ready, until_s)
                self._waiters.append(waiter)
                self._settle(waiter)
                if waiter not in self._waiters:
                    continue
                left_s = self._left_s(waiter)
            waiter.sleep(left_s)
            with self._lock:
                if waiter in self._waiters:  # its time came while others worked, or, with a speed, while all waited
                    self._settle(waiter, paced=True)
                if waiter in self._waiters:
                    self._waiters.remove(waiter)

    def notify(self) -> None:
        with self._lock:
            self._wake_ready()

    def attend(self) -> AbstractContextManager[None]:
        with self._lock:
            self._n_announced += 1
        return self._attendance()

    @contextlib.contextmanager
    def _attendance(self) -> Iterator[None]:
        me = threading.get_ident()
        with self._lock:
            self._n_announced -= 1
            self._attending[me] = self._attending.get(me, 0) + 1
        try:
            yield
        finally:
            with self._lock:
                self._attending[me] -= 1
                if not self._attending[me]:
                    del self._attending[me]
                    self._settle()  # those who are left may have waited for this one only

    def _all_wait(self) -> bool:
        return not self._n_announced and self._attending.keys() <= {waiter.thread for waiter in self._waiters}

    def _earliest(self) -> _Waiter | None:
        return min((w for w in self._waiters if w.until_s is not None), key=lambda w: w.until_s or 0.0, default=None)

    def _left_s(self, waiter: _Waiter) -> float | None:
        """How long a waiter sleeps, in real seconds, if nobody wakes it."""
        if waiter.until_s is None:
            return None
        paced = self._speed is not None and self._all_wait() and waiter is self._earliest()
        return max(0.0, waiter.until_s - self.now_s()) / (self._speed or 1.0 if paced else 1.0)

    def _settle(self, me: _Waiter | None = None, paced: bool = False) -> None:
        """Where all wait: wake those who are ready, or else skip to the earliest time that one of them waits for.

        Called by whoever comes to wait (`me`) or leaves, so that there is always somebody to do it. With a speed the
        earliest waiter sleeps its share first, and skips when that is over (`paced`).
        """
        if not self._waiters or not self._all_wait():
            return
        self._wake_ready()
        earliest = self._earliest()
        if earliest is None or earliest.until_s is None or not self._all_wait():
            return
        if self._speed is not None and not (paced and me is earliest):
            if me is not earliest:
                self._wake(earliest)  # it fell asleep while others worked: it comes back to sleep at the right pace
            return
        self._skipped_s += max(0.0, earliest.until_s - self.now_s())
        for waiter in [w for w in self._waiters if w.until_s is not None and w.until_s <= earliest.until_s]:
            self._wake(waiter)

    def _wake_ready(self) -> None:
        for waiter in list(self._waiters):
            try:
                ready = waiter.ready()
            except Exception:  # its own thread asks again, and raises it where it belongs
                ready = True
            if ready:
                self._wake(waiter)

    def _wake(self, waiter: _Waiter) -> None:
        self._waiters.remove(waiter)  # it works from now on
        waiter.wake()
