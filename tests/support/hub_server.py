"""A stand-in for the Hugging Face Hub: its API as `huggingface_hub` uses it, over real HTTP, with files of our own."""

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """What the server holds and what it was asked."""

    url: str = ""
    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    broken_after: int | None = None
    """Bytes after which the next download's connection is cut, once."""
    large_files: bool = False
    """Know files by their SHA-256, as the Hub does where Git LFS keeps them."""
    down: bool = False
    """Answer 503 to everything."""
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)
    """(method, path, Range) of every request."""

    def fetched(self) -> list[str]:
        """Paths of the files whose content was sent, in order."""
        matches = [_RESOLVE.fullmatch(path) for method, path, _ in self.requests if method == "GET"]
        return [match[3] for match in matches if match]


_RESOLVE = re.compile(r"/([\w.-]+/[\w.-]+)/resolve/([^/]+)/(.+)")
_INFO = re.compile(r"/api/models/([\w.-]+/[\w.-]+?)(?:/revision/([^/]+))?")


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """The tests' output stays clean."""

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append((self.command, path, self.headers.get("Range")))
        if self.hub.down:
            self._send(503, b"down", body=body)
            return
        match = _RESOLVE.fullmatch(path) or _INFO.fullmatch(path)
        repository, revision = (match[1], match[2]) if match else ("", None)
        files = self.hub.repositories.get(repository)
        if files is None:
            self._refuse(401, "RepoNotFound", "Repository not found", body)
        elif revision not in (None, "main", COMMIT):
            self._refuse(404, "RevisionNotFound", "Invalid rev id", body)
        elif _INFO.fullmatch(path):
            self._send(200, json.dumps(self._info(repository, files)).encode(), body=body, kind="application/json")
        elif repository in self.hub.gated:
            self._refuse(403, "GatedRepo", "Access to this repository is restricted", body)
        elif match is None or match[3] not in files:
            self._refuse(404, "EntryNotFound", "Entry not found", body)
        else:
            self._file(files[match[3]], body)

    def _info(self, repository: str, files: dict[str, bytes]) -> dict[str, Any]:
        siblings = [{"rfilename": name, "size": len(data), "blobId": _etag(data)} for name, data in files.items()]
        return {
            "_id": "1",
            "id": repository,
            "modelId": repository,
            "sha": COMMIT,
            "private": False,
            "siblings": siblings,
        }

    def _refuse(self, status: int, code: str, message: str, body: bool) -> None:
        self._send(status, message.encode(), body=body, extra={"X-Error-Code": code, "X-Error-Message": message})

    def _file(self, data: bytes, body: bool) -> None:
        start, asked = 0, self.headers.get("Range")
        if asked:
            start = int(re.fullmatch(r"bytes=(\d+)-.*", asked)[1])  # type: ignore[index]
        etag = sha256(data) if self.hub.large_files else _etag(data)
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        if asked:
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        cut = self.hub.broken_after if body and len(data) > 1000 else None
        self._send(206 if asked else 200, data[start:], body=body, extra=headers, cut=cut)
        if cut is not None:
            self.hub.broken_after = None

    def _send(
        self,
        status: int,
        data: bytes,
        *,
        body: bool,
        kind: str = "application/octet-stream",
        extra: dict[str, str] | None = None,
        cut: int | None = None,
    ) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(data)), **(extra or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(data[:cut])
        if cut is not None:
            self.close_connection = True
            self.connection.close()


def _etag(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()


def sha256(data: bytes) -> str:
    """What the Hub knows a large file by."""
    return hashlib.sha256(data).hexdigest()


@contextmanager
def serve() -> Iterator[Hub]:
    """A running hub on a port of its own."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
