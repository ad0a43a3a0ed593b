"""What of a long conversation a language model is told."""

from collections.abc import Callable, Sequence
from typing import TypeVar

from csm_mlx_app.assistant.replies import Message

MAX_HISTORY_TOKENS = 4096
KEPT_OF_HISTORY = 0.75
"""Of a history that is too long: cutting a little of it at every turn would make a model's cache of it worthless at
every turn."""
_BYTES_PER_TOKEN, _TOKENS_PER_MESSAGE = 3, 4
_Prompt = TypeVar("_Prompt")


class Recent:
    """Leaves out the oldest exchanges, whole and several at a time, of one conversation that goes on."""

    def __init__(self) -> None:
        self._n_left_out = 0

    def fit(
        self,
        messages: Sequence[Message],
        n_kept: int,
        make: Callable[[list[Message]], _Prompt],
        size: Callable[[_Prompt], int],
        limit: int,
    ) -> _Prompt:
        """What `make` makes of as many of the messages as are of a size of at most `limit`.

        The first `n_kept` of them, the system prompt, and what the user said last are always among them.
        """
        turns = [i for i, message in enumerate(messages) if message["role"] == "user" and i >= n_kept]
        if self._n_left_out >= len(turns):
            self._n_left_out = 0  # another conversation

        def without_oldest() -> _Prompt:
            first = turns[self._n_left_out] if self._n_left_out else n_kept
            return make([*messages[:n_kept], *messages[first:]])

        made = without_oldest()
        if size(made) > limit:
            while size(made) > KEPT_OF_HISTORY * limit and self._n_left_out < len(turns) - 1:
                self._n_left_out += 1
                made = without_oldest()
        return made


class RecentMessages:
    """For a model whose tokens nobody here can count: about `max_tokens` of them at most, and rather fewer."""

    def __init__(self, max_tokens: int = MAX_HISTORY_TOKENS):
        self._recent, self._max_tokens = Recent(), max_tokens

    def of(self, messages: Sequence[Message]) -> list[Message]:
        n_kept = 1 if messages[0]["role"] == "system" else 0
        return self._recent.fit(messages, n_kept, list, estimated_tokens, self._max_tokens)


def estimated_tokens(messages: Sequence[Message]) -> int:
    """From the bytes of their text, of which an English token has four, and one of a script of its own two or three."""
    n_bytes = sum(len(message["content"].encode()) for message in messages)
    return n_bytes // _BYTES_PER_TOKEN + _TOKENS_PER_MESSAGE * len(messages)
