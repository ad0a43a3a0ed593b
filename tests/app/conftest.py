"""The application through its real entry point: a process, its exit code, stdout and stderr."""

import io
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

COMMAND = [sys.executable, "-m", "csm_mlx_app"]


@dataclass(frozen=True)
class Result:
    code: int
    out: bytes
    err: str

    @property
    def text(self) -> str:
        return self.out.decode()


Run = Callable[..., Result]


@pytest.fixture
def run(tmp_path: Path, environment: dict[str, str]) -> Run:
    """`run("say", "Hello", stdin=b"…", env={…})`: csm in a folder of the test's own."""

    def run(*arguments: str | Path, stdin: bytes = b"", env: dict[str, str] | None = None) -> Result:
        done = subprocess.run(
            [*COMMAND, *map(str, arguments)],
            input=stdin,
            capture_output=True,
            cwd=tmp_path,
            env=environment | {"CSM_DATA_DIR": str(tmp_path / "data")} | (env or {}),
            timeout=120,
            check=False,
        )
        return Result(done.returncode, done.stdout, done.stderr.decode())

    return run


@pytest.fixture
def call(tmp_path: Path, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """`run` without a process, which costs half a second more: for what neither plays nor depends on how it is started.

    It is what the process does between its start and its end.
    """
    from csm_mlx_app import cli

    def call(*arguments: str | Path) -> Result:
        out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True) for _ in range(2))
        with monkeypatch.context() as patch, open(os.devnull) as nothing:
            for name, value in (environment | {"CSM_DATA_DIR": str(tmp_path / "data")}).items():
                patch.setenv(name, value)
            patch.chdir(tmp_path)
            for name, stream in (("stdin", nothing), ("stdout", out), ("stderr", err)):
                patch.setattr(sys, name, stream)
            code = cli.run([str(argument) for argument in arguments])
        said, told = (stream.buffer.getvalue() for stream in (out, err))
        return Result(code, said, told.decode())

    return call


@pytest.fixture
def start(tmp_path, environment):
    """`start("say", …)`: csm with pipes to talk to while it runs."""
    started = []

    def start(*arguments):
        pipe = subprocess.PIPE
        started.append(
            subprocess.Popen(
                [*COMMAND, *arguments], stdin=pipe, stdout=pipe, stderr=pipe, cwd=tmp_path, env=environment
            )
        )
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture(scope="session")
def environment() -> dict[str, str]:
    """Wide enough that no line of help is wrapped, plain, and with no sound server to be found."""
    return os.environ | {"COLUMNS": "200", "NO_COLOR": "1", "PULSE_SERVER": "/nowhere"}


@pytest.fixture
def load_codes(tmp_path: Path) -> Callable[[str], np.ndarray]:
    """The tensor `codes` of a file that csm wrote in the test's folder."""

    def load_codes(name: str) -> np.ndarray:
        tensors = mx.load(str(tmp_path / name))
        assert isinstance(tensors, dict)
        return np.array(tensors["codes"])

    return load_codes


@pytest.fixture(scope="session")
def greedy_codes() -> Callable[[str], np.ndarray]:
    """What the embedded voice says to a text at temperature 0, without a process."""
    import csm_mlx

    csm = csm_mlx.load()

    def greedy_codes(text: str) -> np.ndarray:
        speech = csm.session(sampling=replace(csm.config.sampling, temperature=0.0)).speak(text)
        list(speech)
        return speech.codes

    return greedy_codes


@pytest.fixture(scope="session")
def tone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A second of a falling tone, 24 kHz."""
    from csm_mlx.audio import write_audio

    path = tmp_path_factory.mktemp("tone") / "tone.wav"
    seconds = np.arange(24_000) / 24_000
    write_audio(path, 0.3 * np.sin(2 * np.pi * (300 - 100 * seconds) * seconds).astype(np.float32), 24_000)
    return path
