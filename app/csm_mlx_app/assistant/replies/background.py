"""An answer that a thread of its own fetches, so that `step` never waits."""

import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable

from csm_mlx_app.assistant.replies import ReplyError


class BackgroundReply(ABC):
    """What `command` and `url` have in common. Making one starts its thread, a daemon."""

    def __init__(self, notify: Callable[[], None]):
        self._notify = notify
        self._pieces: deque[str] = deque()
        self._error: ReplyError | None = None
        self._finished = False
        self._cancelled = False
        self._lock = threading.Lock()
        """Held while what is to be closed is made or closed."""

    def start(self) -> None:
        threading.Thread(target=self._run, name="reply", daemon=True).start()

    def step(self) -> str | None:
        finished = self._finished  # asked before the pieces are taken: none comes after it
        text = ""
        while self._pieces and not self._cancelled:
            text += self._pieces.popleft()
        if text or not (finished or self._cancelled):
            return text
        if self._error is not None and not self._cancelled:
            error, self._error = self._error, None
            raise error
        return None

    def cancel(self) -> None:
        with self._lock:
            self._cancelled = True
            self._close()

    def _run(self) -> None:
        try:
            self._fetch()
        except ReplyError as error:
            self._error = error
        except Exception as error:  # a defect ends the answer, and is told like what else can end it
            self._error = ReplyError(f"the answer broke off: {type(error).__name__}: {error}")
        finally:
            self._finished = True
            self._notify()

    def _put(self, text: str) -> None:
        if text:
            self._pieces.append(text)
            self._notify()

    @abstractmethod
    def _fetch(self) -> None:
        """On the thread: `_put` what comes, raise `ReplyError`; return early when cancelled."""

    @abstractmethod
    def _close(self) -> None:
        """Called under the lock by whoever cancels: end what `_fetch` waits for, without waiting."""
