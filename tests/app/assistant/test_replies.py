"""Answers that are repeated, run and fetched: from real processes and real servers, which fail in real ways."""

import json
import os
import shlex
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from csm_mlx_app.assistant.replies import Message, Replier, Reply, ReplyError, make_replier
from csm_mlx_app.assistant.replies.command import Command
from csm_mlx_app.assistant.replies.echo import Echo
from csm_mlx_app.assistant.replies.recent import MAX_HISTORY_TOKENS
from csm_mlx_app.assistant.replies.thinking import Thinking
from csm_mlx_app.assistant.replies.url import Url, events

from csm_mlx.errors import CsmError

MESSAGES: list[Message] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What is the capital of “France”?"},
]


def answer(replier: Replier, messages: Sequence[Message] = MESSAGES, *, within_s: float = 10.0) -> list[str]:
    """The pieces of an answer, waited for as the worker waits: at each `notify`."""
    news = threading.Event()
    reply = replier.reply(messages, news.set)
    return list(pieces(reply, news, within_s))


def pieces(reply: Reply, news: threading.Event, within_s: float = 10.0) -> Iterator[str]:
    end_s = time.monotonic() + within_s
    while (piece := reply.step()) is not None:
        if piece:
            yield piece
        else:
            assert news.wait(end_s - time.monotonic()), "it said nothing more and did not end"
            news.clear()


def wait_until(condition: Callable[[], bool], within_s: float = 3.0) -> None:
    end_s = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < end_s
        time.sleep(0.005)


# Which one.


def test_flags_choose_who_answers():
    assert make_replier(llm="echo").name == "echo"
    assert make_replier(command="cat").name == "cat"
    assert make_replier(url="http://localhost:11434", llm="llama3.2").name == "llama3.2 at localhost:11434"
    with pytest.raises(CsmError, match="--llm-cmd was given beside"):
        make_replier(command="cat", url="http://localhost")
    for url in ("localhost:8080", "ftp://host/v1", "http://", "http://h:port"):
        with pytest.raises(CsmError, match=r"http://localhost:8080/v1$"):
            make_replier(url=url)
    with pytest.raises(CsmError, match="OPENAI_API_KEY") as refused:
        make_replier(url="http://me:secret@host/v1")
    assert "secret" not in str(refused.value)
    with pytest.raises(CsmError, match="--llm-cmd is empty"):
        make_replier(command=" ")


def test_echo_says_it_word_by_word():
    reply = Echo().reply([{"role": "user", "content": "  One two,\nthree "}], lambda: None)
    assert [reply.step(), reply.step()] == ["  One", " two,"]
    assert [reply.step(), reply.step(), reply.step()] == ["\nthree", " ", None]
    cancelled = Echo().reply(MESSAGES, lambda: None)
    cancelled.cancel()
    assert cancelled.step() is None


# Thoughts.


@pytest.mark.parametrize("size", [1, 2, 5, 100])
@pytest.mark.parametrize(
    ("text", "inside", "left"),
    [
        ("\n<think>\nParis? </thin Yes.</think>\n\nIt is Paris. <think>", False, "It is Paris. <think>"),
        ("Paris?</think> It is Paris.", True, "It is Paris."),
        (" It is <b>Paris</b>.", False, " It is <b>Paris</b>."),
        ("<th", False, "<th"),
        ("<think>for ever", False, ""),
        ("<think></think>", False, ""),
    ],
)
def test_thoughts_are_taken_off(text, inside, left, size):
    thinking = Thinking(inside=inside)
    chunks = [text[i : i + size] for i in range(0, len(text), size)]
    assert "".join(map(thinking.feed, chunks)) + thinking.finish() == left


# A command.


def python(code: str) -> Command:
    return Command(f"{shlex.quote(sys.executable)} -c {shlex.quote(code)}")


def test_a_command_gets_the_messages_and_its_words_come_as_it_writes_them():
    replier = python(
        "import json, sys, time; m = json.load(sys.stdin); print(m[-1]['content'], end='', flush=True); "
        "time.sleep(0.5); sys.stdout.buffer.write('né'.encode()[:2]); sys.stdout.flush(); time.sleep(0.2); "
        "sys.stdout.buffer.write('né'.encode()[2:])"
    )
    assert not replier.computes
    said = answer(replier)
    assert "".join(said) == MESSAGES[-1]["content"] + "né", "a character comes whole"
    assert len(said) > 1


def test_a_command_may_ignore_what_it_is_told_and_write_much():
    assert "".join(answer(Command("yes ok | head -c 300000"))) == "ok\n" * 100_000
    assert answer(Command("true")) == []


def test_step_never_waits_for_a_command():
    reply = Command("sleep 20").reply(MESSAGES, lambda: None)
    began_s = time.monotonic()
    assert reply.step() == ""
    assert time.monotonic() - began_s < 5
    reply.cancel()
    assert reply.step() is None


def test_a_failing_command_is_quoted():
    replier = python("import sys; print('Half'); print('a\\nno such model: x', file=sys.stderr); sys.exit(3)")
    news = threading.Event()
    reply = replier.reply(MESSAGES, news.set)
    heard = []
    with pytest.raises(ReplyError, match=r"exit status 3: no such model: x; try it by hand"):
        heard.extend(pieces(reply, news))
    assert reply.step() is None, "an error is told once"
    with pytest.raises(ReplyError, match=r"--llm-cmd 'no-such-program-here' failed .*not found"):
        answer(Command("no-such-program-here"))
    with pytest.raises(ReplyError, match="ended by signal 9: nothing on stderr"):
        answer(Command("kill -9 $$"))


def test_cancelling_a_command_ends_all_that_it_started():
    # The shell waits for a child, which ignores polite requests.
    child = "import os, signal, time; signal.signal(15, signal.SIG_IGN); print(os.getpid(), flush=True); time.sleep(60)"
    news = threading.Event()
    reply = Command(f"{shlex.quote(sys.executable)} -c {shlex.quote(child)}; true").reply(MESSAGES, news.set)
    pid = int(next(pieces(reply, news)))
    reply.cancel()
    assert reply.step() is None

    def is_gone() -> bool:
        state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True).stdout.strip()
        return not state or state.startswith("Z")

    wait_until(is_gone)


# A server.


@dataclass
class FakeServer:
    """What the next request is answered with, and what was asked."""

    url: str = ""
    script: Callable[[BaseHTTPRequestHandler], None] = lambda _: None
    models: list[str] | None = None
    requests: list[tuple[str, dict[str, Any], str | None]] = field(default_factory=list)
    hung_up: threading.Event = field(default_factory=threading.Event)


class _Handler(BaseHTTPRequestHandler):
    fake: FakeServer
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """The tests' output stays clean."""

    def do_GET(self) -> None:
        self.fake.requests.append((self.path, {}, self.headers.get("Authorization")))
        if self.fake.models is None:
            whole(self, 404, b"no")
        else:
            whole(self, 200, json.dumps({"data": [{"id": name} for name in self.fake.models]}).encode())

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.fake.requests.append((self.path, body, self.headers.get("Authorization")))
        self.fake.script(self)
        self.close_connection = True


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeServer]:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    fake = FakeServer()
    with serving(ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"fake": fake}))) as port:
        fake.url = f"http://127.0.0.1:{port}/v1"
        yield fake


@contextmanager
def serving(real: ThreadingHTTPServer) -> Iterator[int]:
    thread = threading.Thread(target=real.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield real.server_address[1]
    finally:
        real.shutdown()
        real.server_close()
        thread.join()


def whole(handler: BaseHTTPRequestHandler, status: int, body: bytes, kind: str = "application/json") -> None:
    handler.send_response(status)
    handler.send_header("Content-Type", kind)
    handler.send_header("Content-Length", str(len(body)))
    handler.send_header("Location", "http://elsewhere/v1")
    handler.end_headers()
    handler.wfile.write(body)


def begin(handler: BaseHTTPRequestHandler, *, chunked: bool = False) -> Callable[[str], None]:
    """Begin a stream; the function sends a piece of it."""
    handler.send_response(200)
    handler.send_header("Content-Type", "text/event-stream; charset=utf-8")
    handler.send_header(*(("Transfer-Encoding", "chunked") if chunked else ("Connection", "close")))
    handler.end_headers()

    def send(text: str) -> None:
        data = text.encode()
        handler.wfile.write(b"%x\r\n%s\r\n" % (len(data), data) if chunked else data)
        handler.wfile.flush()

    return send


def delta(text: str | None, finish: str | None = None) -> str:
    return f"data: {json.dumps({'choices': [{'delta': {'content': text}, 'finish_reason': finish}]})}\n\n"


@pytest.mark.parametrize("chunked", [False, True])
def test_pieces_of_a_stream_come_one_by_one(server, chunked, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    go_on = threading.Event()

    def script(handler):
        send = begin(handler, chunked=chunked)
        send(": ping\n\n" + delta(None) + delta("The ") + delta("capital"))
        assert go_on.wait(5)
        send(delta(" is Pa")[:20])
        send(delta(" is Pa")[20:] + 'data: {"choices": [], "usage": {}}\r\n\r\n')
        send(delta("ris — ok.") + delta(None, "stop") + "data: [DONE]\n\n")
        if chunked:
            send("")

    server.script = script
    replier = Url(server.url + "/", "some-model", temperature=0.5)
    news = threading.Event()
    said = pieces(replier.reply(MESSAGES, news.set), news)
    first = next(said)
    assert "The capital".startswith(first)
    while first != "The capital":
        first += next(said)
    go_on.set()
    assert "".join(said) == " is Paris — ok."
    path, body, key = server.requests[0]
    assert (path, key) == ("/v1/chat/completions", "Bearer sk-secret")
    assert body["messages"] == MESSAGES
    assert (body["stream"], body["model"], body["temperature"]) == (True, "some-model", 0.5)


def test_a_server_may_not_stream_and_may_think(server):
    reply = {"choices": [{"message": {"content": "<think>Hm.</think>\nParis."}, "finish_reason": "stop"}]}
    server.script = lambda handler: whole(handler, 200, json.dumps(reply).encode())
    assert answer(Url(server.url + "/chat/completions")) == ["Paris."]
    assert server.requests[0][0] == "/v1/chat/completions"
    assert "model" not in server.requests[0][1]
    assert server.requests[0][2] is None


def test_warming_up_finds_the_server_and_its_model(server):
    replier = Url(server.url)
    replier.warm_up()  # it lists nothing: good enough
    server.models = ["first", "second"]
    replier.warm_up()
    assert replier.name.startswith("first at 127.0.0.1:")
    named = Url(server.url, "mine")
    named.warm_up()
    assert named.name.startswith("mine at ")
    with pytest.raises(ReplyError, match=r"cannot reach .*/v1: Connection refused; start its server"):
        Url(refusing()).warm_up()


def refusing() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}/v1"


def test_a_server_that_refuses():
    with pytest.raises(
        ReplyError, match=r"cannot reach the language model at --llm-url http://127.*Connection refused; "
    ):
        answer(Url(refusing()))


def test_a_server_that_hangs_before_or_in_the_middle(server):
    released = threading.Event()

    def script(handler):
        begin(handler)(delta("Half"))
        released.wait(5)

    server.script = script
    replier = Url(server.url, read_timeout_s=1.0)
    news = threading.Event()
    said = pieces(replier.reply(MESSAGES, news.set), news)
    assert next(said) == "Half"
    with pytest.raises(ReplyError, match=r"sent nothing for 1 s after 4 characters; look at its log"):
        next(said)
    server.script = lambda _: released.wait(5) and None
    with pytest.raises(ReplyError, match=r"sent nothing for 1 s before its first word"):
        answer(replier)
    released.set()


def test_nobody_picks_up():
    with socket.socket() as deaf:  # its queue is full, so that no connection is made
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(0)
        port = deaf.getsockname()[1]
        waiting = [socket.socket() for _ in range(4)]
        for each in waiting:
            each.setblocking(False)
            each.connect_ex(("127.0.0.1", port))
        with pytest.raises(ReplyError, match=r"no connection within 0.2 s; start its server"):
            answer(Url(f"http://127.0.0.1:{port}/v1", connect_timeout_s=0.2))
        for each in waiting:
            each.close()


@pytest.mark.parametrize("chunked", [False, True])
def test_a_stream_that_breaks_off(server, chunked):
    server.script = lambda handler: begin(handler, chunked=chunked)(delta("Half a"))
    news = threading.Event()
    said = pieces(Url(server.url).reply(MESSAGES, news.set), news)
    assert next(said) == "Half a"
    with pytest.raises(ReplyError, match=r"broke off.* after 6 characters; look at its log, and ask again"):
        next(said)


@pytest.mark.parametrize(
    ("status", "body", "told"),
    [
        (404, b'{"error": {"message": "model \'x\' not found"}}', r"404 Not Found: model 'x' not found; .*--llm"),
        (401, b'{"error": "no key"}', "401 Unauthorized: no key; set OPENAI_API_KEY"),
        (500, b"Traceback:\n boom", "500 Internal Server Error: Traceback: boom; look at its log"),
        (307, b"", "it moved to http://elsewhere/v1: give that URL"),
        (503, b"x" * 10_000, r"503 Service Unavailable: x{200}; look"),
    ],
)
def test_what_a_server_says_about_its_error_is_told(server, status, body, told, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    server.script = lambda handler: whole(handler, status, body)
    with pytest.raises(ReplyError, match=told) as error:
        answer(Url(server.url))
    assert "sk-secret" not in str(error.value)


@pytest.mark.parametrize(
    ("sent", "told"),
    [
        ('data: {"error": {"message": "out of memory"}}\n\n', "failed: out of memory after 2 characters"),
        ("data: {oops\n\n", "broke off"),
        ('data: {"choices": [7]}\n\n', "broke off"),
    ],
)
def test_nonsense_in_a_stream_is_told(server, sent, told):
    server.script = lambda handler: begin(handler)(delta("Ok") + sent)
    with pytest.raises(ReplyError, match=told):
        answer(Url(server.url))


def test_what_is_no_web_server_is_told():
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(b"SSH-2.0-OpenSSH\r\n")

        threading.Thread(target=serve, daemon=True).start()
        with pytest.raises(ReplyError, match=r"broke off \(.*SSH.*\) before its first word"):
            answer(Url(f"http://127.0.0.1:{listening.getsockname()[1]}"))


def test_cancelling_hangs_up_at_once(server):
    def script(handler):
        begin(handler)(delta("Half"))
        handler.connection.settimeout(5)
        if handler.connection.recv(1) == b"":
            server.hung_up.set()

    server.script = script
    news = threading.Event()
    reply = Url(server.url).reply(MESSAGES, news.set)
    assert next(pieces(reply, news)) == "Half"
    n_threads = threading.active_count()
    began_s = time.monotonic()
    reply.cancel()
    assert reply.step() is None
    assert server.hung_up.wait(3)
    assert time.monotonic() - began_s < 1
    wait_until(lambda: threading.active_count() < n_threads)
    reply.cancel()


@pytest.mark.parametrize("who", ["a command", "a server"])
def test_a_long_conversation_is_told_without_its_oldest_exchanges(who, server):
    """Whole exchanges, several at a time; never without the system prompt or what was said last, however long."""
    server.script = lambda handler: whole(
        handler, 200, b'{"choices": [{"message": {"content": "Yes."}, "finish_reason": "stop"}]}'
    )
    replier, messages, first = Command("cat") if who == "a command" else Url(server.url), [*MESSAGES[:1]], []
    sizes = []
    for turn in range(40):
        asked = f"Question {turn}? " + ("word " * 100 if turn < 39 else "all the world " * 2000)
        messages.append({"role": "user", "content": asked})
        said = "".join(answer(replier, messages))
        told = json.loads(said) if who == "a command" else server.requests[-1][1]["messages"]
        sizes.append(len(json.dumps(told)))
        assert told[0] == MESSAGES[0]
        assert told[1:] == messages[len(messages) - len(told) + 1 :], "the newest, without a gap"
        assert told[1]["role"] == "user"
        first.append(told[1]["content"].split("?")[0])
        messages.append({"role": "assistant", "content": f"Answer {turn}."})
    assert max(sizes[:-1]) < 4 * MAX_HISTORY_TOKENS
    assert first[0] == first[9] == "Question 0"
    assert 1 < len(set(first[:-1])) < 10, "several at a time, so that a server's cache is of use in between"
    assert first[-1] == "Question 39"


def test_events_are_put_together_from_their_lines():
    lines = b"event: x\r\ndata: a\r\ndata:b\r\n\r\n: note\n\ndata:  c\n\n\ndata: last".splitlines(keepends=True)
    assert list(events(lines)) == ["a\nb", " c", "last"]


def test_nothing_of_a_language_model_is_imported_before_it_is_needed():
    code = (
        "import sys; from csm_mlx_app.assistant.replies import make_replier; make_replier(llm='echo'); "
        "make_replier(url='http://localhost'); make_replier(command='x'); make_replier(llm='some/model'); "
        "print(*sorted({'mlx_lm', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ)
    assert (done.stdout.strip(), done.stderr) == ("", "")
