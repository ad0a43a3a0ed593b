"""What answers the user, behind one Protocol; no language model is imported before it is needed."""

from collections.abc import Callable, Sequence
from typing import Literal, Protocol, TypedDict

from csm_mlx.errors import CsmError

DEFAULT_LLM = "mlx-community/Qwen3-4B-Instruct-2507-4bit"
"""2.3 GB, open, and it answers without thinking aloud first."""
ECHO = "echo"


class Message(TypedDict):
    role: Literal["system", "user", "assistant"]
    content: str


class ReplyError(CsmError):
    """An answer that did not come, or broke off."""


class Reply(Protocol):
    """An answer that is being written."""

    def step(self) -> str | None:
        """The next piece of text; "" when there is nothing new yet, None when it is finished; `ReplyError` once.

        Never waits for more than one token, or one chunk of the prompt.
        """
        ...

    def cancel(self) -> None:
        """Nobody wants the rest: stop at once."""
        ...


class Replier(Protocol):
    """What writes answers, one at a time: asking for the next one cancels the last."""

    @property
    def name(self) -> str: ...

    @property
    def computes(self) -> bool:
        """`step` works with MLX on the caller's thread; else a thread of its own works and calls `notify`."""
        ...

    def reply(self, messages: Sequence[Message], notify: Callable[[], None]) -> Reply:
        """Begin to answer the last message; returns at once. What fails is raised by `step`."""
        ...

    def warm_up(self) -> None:
        """Load and compile, or look whether the server is there; may take seconds. `CsmError` says what is missing."""
        ...


def make_replier(
    *,
    llm: str | None = None,
    url: str | None = None,
    command: str | None = None,
    offline: bool = False,
    temperature: float | None = None,
    seed: int = 0,
) -> Replier:
    """What `--llm`, `--llm-url`, `--llm-cmd` and `--offline` mean together; nothing is loaded or contacted yet.

    llm: a model for mlx-lm by hub id or folder, or "echo"; beside `url`, the name of the server's model.
    offline: where none of the others is given, SmolLM2 out of a Python package instead of a model from the hub.
    temperature: None leaves it to the model; `command` knows nothing of it.
    """
    if command is not None and (llm is not None or url is not None):
        raise CsmError("--llm-cmd was given beside --llm or --llm-url; one of them answers, leave the others out")
    if command is not None:
        from csm_mlx_app.assistant.replies.command import Command

        return Command(command)
    if url is not None:
        from csm_mlx_app.assistant.replies.url import Url

        return Url(url, llm, temperature=temperature)
    if llm == ECHO:
        from csm_mlx_app.assistant.replies.echo import Echo

        return Echo()
    if offline and llm is None:
        from csm_mlx_app.assistant.replies.smollm2 import smollm2

        return smollm2(temperature=temperature, seed=seed)
    from csm_mlx_app.assistant.replies.mlx_lm import MlxLm

    return MlxLm(llm or DEFAULT_LLM, temperature=temperature, seed=seed)
