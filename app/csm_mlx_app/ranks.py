"""The processes of an `mlx.launch` that share a batch: what they agree on at the start, and signs of life as files.

After the start nothing waits for MLX's network, so that one that dies stops no other.
"""

import contextlib
import json
import os
import secrets
import socket
import threading
import time
import uuid
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Literal

import mlx.core as mx

from csm_mlx.errors import CsmError
from csm_mlx_app.parts import replace_text

BEAT_S = 1.0
"""Between two signs of life."""
LOST_S = 120.0
"""Without a sign of life from another machine: network disks may hide a new file for a minute."""
STUCK_S = 1800.0
"""Alive, but with no line done: longer than any line takes."""
_SHARED_S = 10.0
"""Within which the others must see what the first one wrote before they began."""


class Launch:
    """This process among those of a launch, or alone."""

    def __init__(self):
        self._group = mx.distributed.init()
        self.rank, self.size = self._group.rank(), self._group.size()
        self.talks = self.rank == 0
        self._id = secrets.randbits(31)

    def agree(self, key: str, wanted: list[bool], folder: Path) -> list[bool]:
        """The first process's `wanted`, told to all.

        key: of what all must have been given alike. folder: where the first one writes, which all must see.

        Raises CsmError, in all of them, when these differ or one is gone.
        """
        if self.size == 1:
            return wanted
        keys = self._gathered([int(key[:7], 16)])
        if differing := [rank for rank, (given,) in enumerate(keys) if given != keys[0][0]]:
            raise CsmError(
                f"rank {differing[0]} was given another text, model or voice, or other flags, than rank 0; "
                "give all the same"
            )
        if self.talks:
            self._mark(folder, self._id).touch()
        self._id, *agreed = self._gathered([self._id, *map(int, wanted)])[0]
        sees = self._sees(self._mark(folder, self._id))
        if blind := [rank for rank, (seen,) in enumerate(self._gathered([int(sees)])) if not seen]:
            raise CsmError(
                f"rank {blind[0]} does not see {folder.parent}, into which rank 0 writes; name a folder that all "
                "machines share (such as one on NFS), or give each machine a part of the file and run csm say there"
            )
        return [bool(one) for one in agreed]

    def _gathered(self, values: list[int]) -> list[list[int]]:
        """The values of each rank."""
        try:
            gathered = mx.distributed.all_gather(mx.array(values, mx.int32)[None], group=self._group)
            return gathered.tolist()  # pyright: ignore[reportReturnType]
        except RuntimeError as error:
            raise CsmError(f"another process of this launch is gone, before anything was made: {error}") from None

    def _mark(self, folder: Path, launch: int) -> Path:
        return folder / f"launch-{launch:x}"

    def _sees(self, path: Path) -> bool:
        until_s = time.monotonic() + _SHARED_S
        while not path.exists():
            if time.monotonic() > until_s:
                return False
            time.sleep(BEAT_S / 10)
        return True

    def status_path(self, folder: Path, rank: int) -> Path:
        return self._mark(folder, self._id).with_suffix(f".{rank}.json")

    def clear(self, folder: Path) -> None:
        """Removes what this launch and earlier ones told each other."""
        for path in folder.glob("launch-*"):
            path.unlink(missing_ok=True)


def shares(costs: list[int], n_ranks: int) -> list[list[int]]:
    """Indices for each rank, in order, such that the sums of their costs are about equal: longest first, to the least
    loaded."""
    taken: list[list[int]] = [[] for _ in range(n_ranks)]
    loads = [0] * n_ranks
    for index in sorted(range(len(costs)), key=lambda index: (-costs[index], index)):
        rank = loads.index(min(loads))
        taken[rank].append(index)
        loads[rank] += costs[index]
    return [sorted(share) for share in taken]


@dataclass
class Status:
    """What a process tells the others."""

    process: int = field(default_factory=os.getpid)
    machine: str = field(default_factory=lambda: f"{socket.gethostname()}/{uuid.getnode():x}")
    beats: int = 0
    state: Literal["working", "done", "failed", "stopped"] = "working"
    made: int = 0
    sound_s: float = 0.0
    errors: dict[str, str] = field(default_factory=dict)
    """Lines that cannot be spoken, by number from 0 on."""
    failure: str = ""


class Heart:
    """Writes a status again and again from a thread of its own, and a last time when its block is left."""

    def __init__(self, path: Path | None):
        """path: None keeps the status to itself."""
        self.status = Status()
        self._path = path
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def _beat(self) -> None:
        while not self._over.wait(BEAT_S):
            self._write()

    def _write(self) -> None:
        if self._path is not None:
            self.status.beats += 1
            with contextlib.suppress(CsmError):  # a full disk, which stops the work itself with a message
                replace_text(self._path, json.dumps(asdict(self.status)))

    def __enter__(self) -> None:
        self._write()
        self._thread.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._over.set()
        self._thread.join()
        if self.status.state == "working":
            self.status.state = "done" if kind is None else "stopped"
        self._write()


class Watched:
    """Another process, as it is seen by the first one."""

    def __init__(self, path: Path):
        self._path = path
        self.status = Status(process=0, machine="")
        self._beaten_s = self._worked_s = time.monotonic()
        self._mine = Status().machine

    def look(self) -> None:
        """Read what it wrote last; whether its process is there is asked before, as it may end in between."""
        gone = self._gone()
        try:
            status = Status(**json.loads(self._path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            status = self.status
        now_s = time.monotonic()
        if status.beats != self.status.beats:
            self._beaten_s = now_s
        if status.made + len(status.errors) != self.status.made + len(self.status.errors):
            self._worked_s = now_s
        self.status = status
        if status.state == "working":
            if gone:
                self._fail(f"ended in the middle of its work (process {status.process})")
            elif now_s - self._beaten_s > LOST_S:
                self._fail(f"gave no sign of life for {LOST_S:g} s")
            elif now_s - self._worked_s > STUCK_S:
                self._fail(f"is alive, but made nothing for {STUCK_S / 60:g} min")

    def _fail(self, failure: str) -> None:
        self.status.state, self.status.failure = "failed", failure

    @property
    def far(self) -> bool:
        return self.status.machine != self._mine

    def _gone(self) -> bool:
        """Whether it was a process of this machine, and is none any more."""
        if not self.status.process or self.far:
            return False
        try:
            os.kill(self.status.process, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            pass
        return False

    @property
    def over(self) -> bool:
        return self.status.state != "working"
