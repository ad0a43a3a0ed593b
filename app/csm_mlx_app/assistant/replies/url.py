"""Answers from an OpenAI-compatible server, as it streams them."""

import http.client
import json
import os
import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from csm_mlx.errors import CsmError
from csm_mlx_app.assistant.replies import Message, ReplyError
from csm_mlx_app.assistant.replies.background import BackgroundReply
from csm_mlx_app.assistant.replies.recent import RecentMessages
from csm_mlx_app.assistant.replies.thinking import Thinking

CONNECT_TIMEOUT_S = 5.0
READ_TIMEOUT_S = 30.0
"""Between two pieces of an answer, the first one included."""
MAX_TOKENS = 200
"""About a minute of speech."""
KEY_VARIABLE = "OPENAI_API_KEY"
_MAX_ERROR_BYTES = 4000
_MAX_SAID_CHARS = 200
"""Of what a server says about its error."""


@dataclass(frozen=True)
class Server:
    """Where a server is and how long it may take."""

    url: str
    """As it was given, for messages."""
    secure: bool
    host: str
    port: int | None
    path: str
    """Below which the API lies: `/v1`."""
    connect_timeout_s: float
    read_timeout_s: float

    def connect(self) -> http.client.HTTPConnection:
        """A connection that is not open yet."""
        kind = http.client.HTTPSConnection if self.secure else http.client.HTTPConnection
        return kind(self.host, self.port, timeout=self.connect_timeout_s)

    def headers(self) -> dict[str, str]:
        key = os.environ.get(KEY_VARIABLE)
        return {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})

    def unreachable(self, error: OSError) -> ReplyError:
        if isinstance(error, TimeoutError):
            reason = f"no connection within {self.connect_timeout_s:g} s"
        else:
            reason = error.strerror or str(error)
        return ReplyError(
            f"cannot reach the language model at --llm-url {self.url}: {reason}; start its server, or give the URL of "
            "one that runs"
        )


class Url:
    """url: up to and with `/v1` (assumed where there is no path), or with `/chat/completions` too.

    model: its name there; None takes the first that the server lists.
    temperature: None leaves it to the server.
    """

    computes = False

    def __init__(
        self,
        url: str,
        model: str | None = None,
        *,
        temperature: float | None = None,
        max_tokens: int = MAX_TOKENS,
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
        read_timeout_s: float = READ_TIMEOUT_S,
    ):
        self._server = _server(url, connect_timeout_s, read_timeout_s)
        self._model = model
        self._recent = RecentMessages()
        self._options: dict[str, Any] = {"stream": True, "max_tokens": max_tokens}
        if temperature is not None:
            self._options["temperature"] = temperature

    @property
    def name(self) -> str:
        where = f"{self._server.host}:{self._server.port}" if self._server.port else self._server.host
        return f"{self._model} at {where}" if self._model else where

    def reply(self, messages: Sequence[Message], notify: Callable[[], None]) -> "UrlReply":
        request = (
            self._options | {"messages": self._recent.of(messages)} | ({"model": self._model} if self._model else {})
        )
        reply = UrlReply(self._server, json.dumps(request).encode(), notify)
        reply.start()
        return reply

    def warm_up(self) -> None:
        """Asks what models there are; a server that answers but cannot tell is good enough."""
        with closing(self._server.connect()) as connection:
            try:
                connection.connect()
            except OSError as error:
                raise self._server.unreachable(error) from None
            with suppress(OSError, http.client.HTTPException, ValueError, LookupError, TypeError):
                connection.request("GET", f"{self._server.path}/models", headers=self._server.headers())
                with connection.getresponse() as answer:
                    if answer.status in (401, 403):
                        raise _refused(self._server, answer)
                    listed = json.loads(answer.read())["data"][0]["id"]
                self._model = self._model or str(listed)


class UrlReply(BackgroundReply):
    """request: the body."""

    def __init__(self, server: Server, request: bytes, notify: Callable[[], None]):
        super().__init__(notify)
        self._server, self._request = server, request
        self._socket: socket.socket | None = None
        self._n_chars = 0

    def _fetch(self) -> None:
        with closing(self._server.connect()) as connection:
            try:
                connection.connect()
            except OSError as error:
                raise self._server.unreachable(error) from None
            with self._lock:
                # Kept, because http.client forgets it when the server means to close the connection.
                self._socket = connection.sock
            if self._cancelled:
                return
            connection.sock.settimeout(self._server.read_timeout_s)
            try:
                self._read(connection)
            except TimeoutError:
                raise self._broken(f"sent nothing for {self._server.read_timeout_s:g} s", "look at its log") from None
            except (OSError, http.client.HTTPException, ValueError, LookupError, TypeError, AttributeError) as error:
                # The last four: what came is not what the API promises.
                if not self._cancelled:
                    reason = " ".join(str(error).split()) or type(error).__name__
                    raise self._broken(f"broke off ({reason})", "look at its log, and ask again") from None

    def _read(self, connection: http.client.HTTPConnection) -> None:
        connection.request("POST", f"{self._server.path}/chat/completions", self._request, self._server.headers())
        with connection.getresponse() as answer:
            if answer.status != http.client.OK:
                raise _refused(self._server, answer)
            self._stream(answer)

    def _stream(self, answer: http.client.HTTPResponse) -> None:
        thinking = Thinking()
        finished = False
        for data in _documents(answer):
            if "error" in data:
                raise self._broken(f"failed: {_said(data)}", "look at its log")
            text, finished = _content(data)
            self._n_chars += len(text)
            self._put(thinking.feed(text))
            if finished:
                break
        if not finished and not self._cancelled:
            raise self._broken("broke off", "look at its log, and ask again")
        self._put(thinking.finish())

    def _broken(self, what: str, advice: str) -> ReplyError:
        when = f"after {self._n_chars} characters" if self._n_chars else "before its first word"
        return ReplyError(f"the language model at --llm-url {self._server.url} {what} {when}; {advice}")

    def _close(self) -> None:
        if self._socket is not None:
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)  # wakes the thread, which closes it


def _server(url: str, connect_timeout_s: float, read_timeout_s: float) -> Server:
    expected = "expected one such as http://localhost:8080/v1"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise CsmError(f"--llm-url {url!r} is no URL ({error}); {expected}") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise CsmError(f"--llm-url {url!r} is no http or https URL; {expected}")
    if parts.username is not None:
        raise CsmError("--llm-url holds a name or a password; put the server's key into $OPENAI_API_KEY instead")
    path = parts.path.rstrip("/").removesuffix("/chat/completions") or "/v1"
    return Server(url, parts.scheme == "https", parts.hostname, port, path, connect_timeout_s, read_timeout_s)


def events(lines: Iterable[bytes]) -> Iterator[str]:
    """The data of server-sent events; comments and other fields are skipped."""
    data: list[str] = []
    for raw in lines:
        line = raw.decode(errors="replace").rstrip("\r\n")
        if not line and data:
            yield "\n".join(data)
            data = []
        elif line.startswith("data:"):
            data.append(line[len("data:") :].removeprefix(" "))
    if data:
        yield "\n".join(data)


def _documents(answer: http.client.HTTPResponse) -> Iterator[dict[str, Any]]:
    """Each JSON object of a stream, or the only one of a server that does not stream."""
    if answer.headers.get_content_type() == "application/json":
        yield _object(answer.read().decode(errors="replace"))
        return
    for data in events(answer):
        yield {"choices": [{"finish_reason": "stop"}]} if data == "[DONE]" else _object(data)


def _object(data: str) -> dict[str, Any]:
    value = json.loads(data)
    if not isinstance(value, dict):
        raise ValueError(f"expected an object, got {data:.40}")
    return value


def _content(data: dict[str, Any]) -> tuple[str, bool]:
    """What a chunk adds to the answer, and whether it is the last."""
    choices = data.get("choices")
    if not choices:  # figures of usage have none
        return "", False
    choice = choices[0]
    part = choice.get("delta") or choice.get("message") or {}
    return part.get("content") or "", choice.get("finish_reason") is not None


def _said(data: dict[str, Any]) -> str:
    error = data.get("error", data)
    said = error.get("message", error) if isinstance(error, dict) else error
    return " ".join(str(said).split())[:_MAX_SAID_CHARS]


def _refused(server: Server, answer: http.client.HTTPResponse) -> ReplyError:
    body = answer.read(_MAX_ERROR_BYTES).decode(errors="replace")
    try:
        said = _said(_object(body))
    except ValueError:
        said = " ".join(body.split())[:_MAX_SAID_CHARS]
    match answer.status:
        case 401 | 403:
            advice = f"set {KEY_VARIABLE} to its key"
        case 404:
            advice = "is the path right (such as /v1), and --llm a model that it has?"
        case 301 | 302 | 307 | 308:
            advice = f"it moved to {answer.headers.get('Location', 'another place')}: give that URL"
        case 429:
            advice = "it is asked too often or by too many; wait"
        case _:
            advice = "look at its log"
    what = f"{answer.status} {answer.reason}" + (f": {said}" if said else "")
    return ReplyError(f"the language model at --llm-url {server.url} answered {what}; {advice}")
