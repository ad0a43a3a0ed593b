"""What `csm say --batch` does between its flags and its files: speak many texts at once, keep each, make what lacks."""

import hashlib
import json
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import typer

from csm_mlx.checkpoint import files
from csm_mlx.text.split import MAX_CHARS
from csm_mlx.voices import CLIP_FILE
from csm_mlx_app import console, loading, options, prompt, script
from csm_mlx_app.parts import JOINED_SUFFIX, Part, Parts
from csm_mlx_app.ranks import BEAT_S, LOST_S, Heart, Launch, Status, Watched, shares

_EVERY_S = 10.0
"""Between two lines of progress, where there is no bar."""
_N_SHOWN = 20
"""Numbers of lines named in one message."""
_FORMAT_VERSION = 1
"""Of what fingerprints are made of."""


@dataclass(frozen=True)
class Job:
    """What the flags ask for, one field a flag."""

    out: str | None
    batch_size: int
    model: str | None
    adapter: Path | None
    voice: str | None
    voice_text: str | None
    speaker: int | None
    seed: int
    sampling: dict[str, Any]
    max_seconds: float | None


def refuse(flags: dict[str, Any]) -> None:
    """Wrong usage for those of the flags that were given: they belong to one speech after the other."""
    for flag, given in flags.items():
        if given:
            raise typer.BadParameter("it does not go with --batch, which makes many sounds at once", param_hint=flag)


def say_batch(job: Job, words: list[str], file: Path | None, verbatim: bool, as_json: bool) -> int:
    """All of `csm say --batch`; the exit code."""
    folder, joined = _place(job.out)
    launch = Launch()
    if launch.size > 1 and not (words and words != ["-"]) and not (file and file.is_file()):
        raise typer.BadParameter("a pipe reaches one process only; name a file that all can read", param_hint="--file")
    texts = list(script.read_script(words, file, verbatim, by_line=file is not None))
    if not texts:
        raise typer.BadParameter(script.NOTHING)
    batch = Batch(job, texts, folder, joined, launch)
    batch.tell()
    result = batch.run()
    if result is None:
        return 0
    result.tell()
    if as_json:
        console.data(result.numbers)
    if result.failure is not None:
        raise result.failure
    return result.code


def _place(out: str | None) -> tuple[Path, Path | None]:
    """The folder of the sounds and, unless it is what was asked for, the file that they are joined in.

    Wrong usage for neither, `AudioError` for an ending that is none of a sound, or of one that is not written.
    """
    if out is None or out == "-":
        raise typer.BadParameter(
            "--batch writes files: name a folder, for a sound per line (-o lines), or one sound for all (-o story.wav)",
            param_hint="--out",
        )
    path = Path(out)
    if path.is_dir() or not path.suffix:
        return path, None
    options.sound_target(out, "--out")
    return path.with_name(path.name + JOINED_SUFFIX), path


class Batch:
    """A model loaded, the sounds that are there already looked through, and the rest shared among the processes."""

    def __init__(self, job: Job, texts: Sequence[str], folder: Path, joined: Path | None, launch: Launch):
        self._job, self._texts, self._joined, self._launch = job, texts, joined, launch
        self._csm = loading.load(job.model, adapter=job.adapter, speaks=launch.talks)
        self._sampling = options.sampling(self._csm.config.sampling, job.sampling)
        reference = job.voice and prompt.load_voice(self._csm, job.voice, job.voice_text, job.speaker)
        self._reference = reference or ()
        self._speaker = reference.speaker if reference else job.speaker or 0
        fingerprints = self._fingerprints()
        self._parts = Parts(folder, fingerprints, self._csm.sample_rate_hz)
        is_lacking = [True] * len(texts)
        if launch.talks:
            self._lock = self._parts.begin()
            launch.clear(self._parts.notes)
            is_lacking = [self._parts.get(index) is None for index in range(len(texts))]
        key = hashlib.sha256("".join(fingerprints).encode()).hexdigest()
        agreed = launch.agree(key, is_lacking, self._parts.notes)
        self._lacking = [index for index, is_one in enumerate(agreed) if is_one]
        costs = [len(self._texts[index]) for index in self._lacking]
        self._share = [self._lacking[one] for one in shares(costs, launch.size)[launch.rank]]
        self._others = {
            rank: Watched(launch.status_path(self._parts.notes, rank)) for rank in range(1, launch.size) if launch.talks
        }
        self._started_s = time.monotonic()
        self._work_s = 0.0
        self._told_s = 0.0

    def _fingerprints(self) -> list[str]:
        """Of each line: all that its sound depends on, the same on every machine."""
        job, adapter = self._job, self._job.adapter
        common = {
            "version": _FORMAT_VERSION,
            "model": _digest(_checkpoint_files(self._csm.path)),
            "adapter": adapter and _digest([adapter / files.ADAPTER_CONFIG, adapter / files.ADAPTER_WEIGHTS]),
            "voice": job.voice and _digest([self._clip(job.voice)]),
            "voice text": self._reference.text if self._reference else None,
            "speaker": self._speaker,
            "seed": job.seed,
            "sampling": asdict(self._sampling),
            "max_seconds": job.max_seconds,
        }
        known = hashlib.sha256(json.dumps(common, sort_keys=True).encode())
        fingerprints = []
        for text in self._texts:
            own = known.copy()
            own.update(text.encode())
            fingerprints.append(own.hexdigest())
        return fingerprints

    def _clip(self, voice: str) -> Path:
        if prompt.is_clip(voice):
            return Path(voice)
        return prompt.find_voice(voice, self._csm.path)[1].path / CLIP_FILE

    def tell(self) -> None:
        """What is about to be done."""
        if not self._launch.talks:
            return
        n_lines, n_lacking = len(self._texts), len(self._lacking)
        kept = f"{n_lines - n_lacking} kept, {n_lacking} to make" if n_lacking < n_lines else f"all {n_lines} to make"
        processes = f", in {self._launch.size} processes" if self._launch.size > 1 else ""
        console.talk(f"{_count(n_lines)}: {kept}, {self._job.batch_size} at a time{processes} -> {self._parts.folder}")
        if long := [index for index in self._lacking if len(self._texts[index]) > MAX_CHARS]:
            console.note(
                f"longer than {MAX_CHARS} characters, about 20 s of speech: {_numbers(long)}; such lines are spoken "
                "better when they are split"
            )

    def run(self) -> "Result | None":
        """Make this process's share; what came of all of them, for the first process.

        Another one's failure is told, and no exit code: mlx.launch would stop the others. Ctrl-C and SIGTERM end it
        with what was made.
        """
        failure: Exception | None = None
        code = 0
        heart = Heart(None if self._launch.talks else self._launch.status_path(self._parts.notes, self._launch.rank))
        status = heart.status
        with console.progress("{task.completed}/{task.total} lines  {task.fields[pace]}") as show:
            try:
                with heart:
                    try:
                        self._make(status, show)
                    except Exception as error:
                        failure, status.state, status.failure = error, "failed", str(error) or type(error).__name__
                if self._launch.talks:
                    self._wait(status, show)
            except KeyboardInterrupt:
                code = 130
            except SystemExit as stopped:  # SIGTERM: mlx.launch sends it when another process died
                code = int(stopped.code or 0)
        self._work_s = time.monotonic() - self._started_s
        if not self._launch.talks:
            if failure is not None:
                console.error(f"rank {self._launch.rank}: {status.failure}")
            if code:
                raise typer.Exit(code)
            return None
        return self._result(status, failure, code)

    def _make(self, status: Status, show: Callable[..., None]) -> None:
        job = self._job
        if not self._share:
            return
        utterances = self._csm.generate_batch(
            [self._texts[index] for index in self._share],
            batch_size=job.batch_size,
            speaker=self._speaker,
            reference=self._reference,
            seed=job.seed,
            sampling=self._sampling,
            max_seconds=job.max_seconds,
        )
        for utterance in utterances:
            index = self._share[utterance.index]
            if utterance.error is None and len(utterance.pcm):
                part = self._parts.write(index, utterance.pcm, utterance.stop)
                status.made += 1
                status.sound_s += part.seconds
            else:
                self._parts.remove(index)
                reason = str(utterance.error or "no sound came of it; another --seed may help")
                status.errors = {**status.errors, str(index): reason}  # replaced, as another thread reads it
            self._show(status, show)

    def _wait(self, status: Status, show: Callable[..., None]) -> None:
        """Until the other processes are done, or dead."""
        while not all(other.over for other in self._look()):
            self._show(status, show)
            time.sleep(BEAT_S / 4)
        until_s = time.monotonic() + LOST_S
        while any(other.far for other in self._others.values()) and time.monotonic() < until_s:
            errors = self._errors(status)
            if self._failures() or all(index in errors for index in self._parts.lacking()):
                break
            time.sleep(BEAT_S)  # their last files may not be seen yet

    def _look(self) -> list[Watched]:
        for other in self._others.values():
            other.look()
        return list(self._others.values())

    def _failures(self) -> dict[int, str]:
        """Why other processes failed, by rank."""
        statuses = {rank: other.status for rank, other in self._others.items()}
        return {rank: status.failure for rank, status in statuses.items() if status.state == "failed"}

    def _errors(self, own: Status) -> dict[int, str]:
        """Lines that cannot be spoken."""
        told = [own, *(other.status for other in self._others.values())]
        return {int(index): reason for status in told for index, reason in status.errors.items()}

    def _show(self, own: Status, show: Callable[..., None]) -> None:
        """How far all are; without a terminal a line now and then."""
        if not self._launch.talks:
            return
        now_s = time.monotonic()
        statuses = [own, *(other.status for other in self._look())]
        done = sum(status.made + len(status.errors) for status in statuses)
        sound_s = sum(status.sound_s for status in statuses)
        pace = f"{sound_s:.1f} s of sound, {sound_s / max(now_s - self._started_s, BEAT_S):.1f} s per second"
        show(completed=done, total=len(self._lacking), pace=pace)
        if not sys.stderr.isatty() and now_s - max(self._told_s, self._started_s) > _EVERY_S:
            self._told_s = now_s
            console.talk(f"{done}/{len(self._lacking)} lines  {pace}")

    def _result(self, status: Status, failure: Exception | None, code: int) -> "Result":
        self._look()
        errors, failures = self._errors(status), self._failures()
        parts = [self._parts.get(index) for index in range(len(self._texts))]
        lines = [self._line(index, part, errors.get(index)) for index, part in enumerate(parts)]
        missing = [index for index, part in enumerate(parts) if part is None and index not in errors]
        where, sound_s = self._parts.folder, sum(part.seconds for part in parts if part)
        whole = not errors and not missing
        if whole:
            self._launch.clear(self._parts.notes)
            self._parts.tidy()
        if whole and self._joined is not None:
            self._parts.join(self._joined)
            where = self._joined
            lines = [line | {"file": None} for line in lines]
        else:
            self._parts.write_index(lines)
        kept = set(range(len(parts))) - set(self._lacking)
        return Result(
            numbers={
                "model": str(self._csm.path),
                "output": str(where),
                "seed": self._job.seed,
                "batch": self._job.batch_size,
                "processes": self._launch.size,
                "sound_s": sound_s,
                "work_s": self._work_s,
                "kept": len(kept),
                "made": sum(part is not None for part in parts) - len(kept),
                "failed": [index + 1 for index in sorted(errors)],
                "missing": [index + 1 for index in missing],
                "failed_ranks": {str(rank): reason for rank, reason in failures.items()},
                "interrupted": bool(code),
                "lines": lines,
            },
            made_s=sum(part.seconds for index, part in enumerate(parts) if part and index not in kept),
            missing=missing,
            failure=failure,
            code=0 if whole and not failure else 1 if failures or failure else code or 1,
        )

    def _line(self, index: int, part: Part | None, error: str | None) -> dict[str, Any]:
        """Of the index; what is not there has no file."""
        return {
            "index": index + 1,
            "text": self._texts[index],
            "file": self._parts.path(index).name if part else None,
            "seconds": part.seconds if part else None,
            "stop": part.stop if part else None,
            "error": error,
        }


@dataclass(frozen=True, kw_only=True)
class Result:
    """What came of it."""

    numbers: dict[str, Any]
    """Of `--json`; times in seconds."""
    made_s: float
    missing: list[int]
    failure: Exception | None
    """What stopped this process's own work."""
    code: int

    def tell(self) -> None:
        """What was made, what was not, and what to do about it."""
        numbers = self.numbers
        where = f" -> {numbers['output']}"
        stopped = "interrupted, " if numbers["interrupted"] else ""
        console.talk(
            f"{stopped}{numbers['made']} made, {numbers['kept']} kept of {_count(len(numbers['lines']))}: "
            f"{numbers['sound_s']:.1f} s of sound, {self.made_s:.1f} s of it made in {numbers['work_s']:.1f} s{where}"
        )
        for line in numbers["lines"]:
            if line["stop"] in ("silence", "repeat"):
                console.note(f"line {line['index']}: the model lost itself ({line['stop']}) in {line['text']!r:.60}")
            if line["error"]:
                console.error(f"line {line['index']}, {line['text']!r:.40}: {line['error']}")
        for rank, reason in numbers["failed_ranks"].items():
            console.error(f"rank {rank} {reason}")
        if self.missing:
            console.error(f"not made: {_numbers(self.missing)}")
        if self.missing or numbers["failed"]:
            again = shlex.join(["csm", *sys.argv[1:]]) if numbers["processes"] == 1 else "the same command"
            console.talk(f"to make what is missing, and nothing else: {again}")


def _checkpoint_files(folder: Path) -> list[Path]:
    """All that a checkpoint's sound depends on; `folder` may be that of any layout."""
    others = [path for path in folder.glob("*.json") if path.is_file() and not path.name.startswith(".")]
    return [*files.weight_files(folder), *sorted(others)]


def _digest(paths: Sequence[Path]) -> str:
    """Of names and contents, which are the same on every machine, as dates are not."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(f"{path.name} {path.stat().st_size}\n".encode())
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def _count(n_lines: int) -> str:
    return f"{n_lines} line{'' if n_lines == 1 else 's'}"


def _numbers(indices: Sequence[int]) -> str:
    """lines 3, 4 and 17 more."""
    named = ", ".join(str(index + 1) for index in indices[:_N_SHOWN])
    rest = f" and {len(indices) - _N_SHOWN} more" if len(indices) > _N_SHOWN else ""
    return f"line{'' if len(indices) == 1 else 's'} {named}{rest}"
