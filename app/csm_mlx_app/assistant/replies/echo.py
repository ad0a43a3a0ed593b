"""Says the user's words back: to try everything else without a language model."""

import re
from collections.abc import Callable, Iterator, Sequence

from csm_mlx_app.assistant.replies import ECHO, Message


class Echo:
    name = ECHO
    computes = True
    """It takes no time, so no thread either."""

    def reply(self, messages: Sequence[Message], notify: Callable[[], None]) -> "EchoReply":  # noqa: ARG002
        return EchoReply(messages[-1]["content"])

    def warm_up(self) -> None:
        pass


class EchoReply:
    """A word with its space at each step."""

    def __init__(self, text: str):
        self._words: Iterator[str] = iter(re.findall(r"\s*\S+|\s+\Z", text))

    def step(self) -> str | None:
        return next(self._words, None)

    def cancel(self) -> None:
        self._words = iter(())
