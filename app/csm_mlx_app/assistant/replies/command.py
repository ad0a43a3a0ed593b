"""Answers from a command: the messages as JSON on its stdin, the answer on its stdout as it is written."""

import codecs
import json
import os
import signal
import subprocess
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import IO

from csm_mlx.errors import CsmError
from csm_mlx_app.assistant.replies import Message, ReplyError
from csm_mlx_app.assistant.replies.background import BackgroundReply
from csm_mlx_app.assistant.replies.recent import RecentMessages

_CHUNK_BYTES = 4096


class Command:
    """command: a line for the shell. It is run anew for every answer, and gets a list of `Message` on one line."""

    computes = False

    def __init__(self, command: str):
        if not command.strip():
            raise CsmError("--llm-cmd is empty; give a command that reads messages as JSON and writes the answer")
        self.name = command
        self._recent = RecentMessages()

    def reply(self, messages: Sequence[Message], notify: Callable[[], None]) -> "CommandReply":
        reply = CommandReply(self.name, self._recent.of(messages), notify)
        reply.start()
        return reply

    def warm_up(self) -> None:
        pass


class CommandReply(BackgroundReply):
    def __init__(self, command: str, messages: Sequence[Message], notify: Callable[[], None]):
        super().__init__(notify)
        self._command = command
        self._input = json.dumps(list(messages), ensure_ascii=False).encode() + b"\n"
        self._process: subprocess.Popen[bytes] | None = None
        self._last_words: deque[bytes] = deque(maxlen=1)

    def _fetch(self) -> None:
        process = self._start_process()
        if process is None:
            return
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        # Each pipe has its thread: a command may write before it has read, and complain while it writes.
        threading.Thread(target=self._tell, args=(process.stdin,), daemon=True).start()
        complaints = threading.Thread(target=self._listen, args=(process.stderr,), daemon=True)
        complaints.start()
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        with process.stdout as out:
            while chunk := os.read(out.fileno(), _CHUNK_BYTES):
                self._put(decoder.decode(chunk))
        self._put(decoder.decode(b"", final=True))
        status = process.wait()
        if status and not self._cancelled:
            complaints.join(timeout=1.0)  # a child of the command's may hold the pipe open for longer
            raise ReplyError(self._failure(status))

    def _start_process(self) -> "subprocess.Popen[bytes] | None":
        pipe = subprocess.PIPE
        with self._lock:
            if self._cancelled:
                return None
            try:
                # A session of its own: whatever the shell starts can be ended with it, and Ctrl-C is ours alone.
                self._process = subprocess.Popen(
                    self._command, shell=True, stdin=pipe, stdout=pipe, stderr=pipe, bufsize=0, start_new_session=True
                )
            except OSError as error:
                raise ReplyError(f"cannot start --llm-cmd {self._command!r}: {error}") from None
            return self._process

    def _tell(self, stdin: IO[bytes]) -> None:
        with suppress(OSError), stdin:  # a command need not read what it is told
            stdin.write(self._input)

    def _listen(self, stderr: IO[bytes]) -> None:
        with stderr:
            self._last_words.extend(line.strip() for line in stderr if line.strip())

    def _failure(self, status: int) -> str:
        how = f"ended by signal {-status}" if status < 0 else f"failed with exit status {status}"
        said = self._last_words[0].decode(errors="replace") if self._last_words else "nothing on stderr"
        return f"--llm-cmd {self._command!r} {how}: {said}; try it by hand with messages as JSON on its stdin"

    def _close(self) -> None:
        if self._process is not None and self._process.returncode is None:
            with suppress(ProcessLookupError, PermissionError):  # gone already, or its id not ours any more
                os.killpg(self._process.pid, signal.SIGKILL)
