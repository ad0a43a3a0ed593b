"""A PulseAudio of a test's own: a virtual loudspeaker that is listened to, and a virtual microphone to speak into."""

import glob
import json
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
import pytest

RATE_HZ = 24_000
_FORM = ("--format=s16le", f"--rate={RATE_HZ}", "--channels=1", "--latency-msec=20", "--raw")
# Without rewinds a null sink renders 50 ms ahead; with them 2 s, and its first clients wait as long.
_SINK = (f"rate={RATE_HZ}", "channels=1", "norewinds=1")
_GIVE_UP_S = 30.0
_TOOLS = ("pulseaudio", "pactl", "parec", "pacat")

needs_pulse = pytest.mark.skipif(
    not (all(map(shutil.which, _TOOLS)) and glob.glob("/usr/lib/*/alsa-lib/libasound_module_pcm_pulse.so")),
    reason="needs PulseAudio and its ALSA plugin (apt-get install pulseaudio pulseaudio-utils libasound2-plugins)",
)


class Tap:
    """A recording that knows when each of its samples was: by `time.monotonic()`, to about 10 ms.

    Samples come at an even rate and never early, so the earliest arrival tells when the first one was.
    """

    def __init__(self, process: subprocess.Popen):
        self._data, self._lock = bytearray(), threading.Lock()
        self._start_s = float("inf")
        self._thread = threading.Thread(target=self._read, args=(process.stdout,), daemon=True)
        self._thread.start()

    def _read(self, pipe: IO[bytes]) -> None:
        with pipe:
            while data := os.read(pipe.fileno(), 4096):
                with self._lock:
                    self._data += data
                    self._start_s = min(self._start_s, time.monotonic() - len(self._data) / 2 / RATE_HZ)

    def between(self, since_s: float, until_s: float | None = None) -> tuple[np.ndarray, float]:
        """(n_samples,) float at 24 kHz, and the time of its first sample."""
        with self._lock:
            start_s, data = self._start_s, bytes(self._data[: len(self._data) // 2 * 2])
        pcm = np.frombuffer(data, "<i2") / 32768
        first = max(0, round((since_s - start_s) * RATE_HZ))
        last = len(pcm) if until_s is None else max(first, round((until_s - start_s) * RATE_HZ))
        return pcm[first:last], start_s + first / RATE_HZ


class Pulse:
    """`env` makes a process use it. Its loudspeaker is the sink `speaker`; its microphone, `mic`, hears `micfeed`."""

    def __init__(self, folder: Path):
        runtime = folder / "pulse"
        runtime.mkdir(mode=0o700)
        self.env = {"XDG_RUNTIME_DIR": str(runtime), "HOME": str(runtime), "PULSE_SERVER": f"unix:{runtime}/native"}
        self.env |= {"PULSE_SINK": "speaker", "PULSE_SOURCE": "mic"}
        self._folder = folder
        self._raw = folder / "heard.raw"
        self._env = os.environ | self.env
        self._processes: list[subprocess.Popen] = []
        self._modules: dict[str, str] = {}
        self._listener: subprocess.Popen | None = None
        flags = ("-n", "--daemonize=no", "--exit-idle-time=-1")
        protocols = (f"--load=module-{name}-protocol-unix socket={runtime}/{name}" for name in ("native", "cli"))
        self._cli = runtime / "cli"
        self.pid = self._run("pulseaudio", *flags, *protocols).pid
        for _ in range(200):
            if (runtime / "native").exists() and not self._ctl("info", check=False).returncode:
                break
            time.sleep(0.02)

    def _run(self, *command: str, stdin: IO[bytes] | None = None, stdout: IO[bytes] | None = None) -> subprocess.Popen:
        null = subprocess.DEVNULL
        self._processes.append(
            subprocess.Popen(command, env=self._env, stdin=stdin or null, stdout=stdout or null, stderr=null)
        )
        return self._processes[-1]

    def _ctl(self, *command: str, check: bool = True) -> subprocess.CompletedProcess:
        return subprocess.run(("pactl", *command), env=self._env, capture_output=True, text=True, check=check)

    def _load(self, name: str, *module: str) -> None:
        self._modules[name] = self._ctl("load-module", *module).stdout.strip()

    def plug_speaker(self) -> None:
        self._load("speaker", "module-null-sink", "sink_name=speaker", *_SINK)
        self._keep_awake("speaker")
        self._listen()

    def plug_mic(self) -> None:
        self._load("micfeed", "module-null-sink", "sink_name=micfeed", *_SINK)
        self._load("mic", "module-remap-source", "master=micfeed.monitor", "source_name=mic")
        self._keep_awake("micfeed")
        if self._listener:
            self._listen()  # PulseAudio has moved it to the new microphone

    def _keep_awake(self, sink: str) -> None:
        """A sink that nobody plays to sleeps, and misses the first words."""
        with Path("/dev/zero").open("rb") as silence:
            self._run("pacat", f"--device={sink}", *_FORM, stdin=silence)

    def _listen(self) -> None:
        if self._listener:
            self._listener.kill()
            self._listener.wait()
        size = self._raw.stat().st_size if self._raw.exists() else 0
        with self._raw.open("ab") as file:
            self._listener = self._run("parec", "--device=speaker.monitor", *_FORM, stdout=file)
        until_s = time.monotonic() + _GIVE_UP_S
        while self._raw.stat().st_size == size:
            assert time.monotonic() < until_s, "nothing is recorded of the loudspeaker"
            time.sleep(0.01)

    def unplug(self, name: str) -> None:
        """Take away `speaker` or `mic`, and Python's streams on it, which PulseAudio would rather move elsewhere."""
        kind = {"speaker": "sink-input", "mic": "source-output"}[name]
        clients = [line.split("\t") for line in self._ctl("list", "short", "clients").stdout.splitlines()]
        python = {index for index, _, binary, *_ in clients if "python" in binary}
        streams = [line.split("\t") for line in self._ctl("list", "short", f"{kind}s").stdout.splitlines()]
        for module in ("mic", "micfeed") if name == "mic" else (name,):
            self._ctl("unload-module", self._modules.pop(module))
        with socket.socket(socket.AF_UNIX) as cli:
            cli.connect(str(self._cli))
            cli.sendall(
                "".join(f"kill-{kind} {index}\n" for index, _, client, *_ in streams if client in python).encode()
            )
            time.sleep(0.1)

    def leak(self, gain_db: float = 0.0) -> None:
        """The microphone hears the loudspeaker from now on, as in a room, so much louder or softer."""
        self._load("loopback", "module-loopback", "source=speaker.monitor", "sink=micfeed", "latency_msec=60")
        if not gain_db:
            return
        module = self._modules["loopback"]
        for line in self._ctl("-f", "json", "list", "sink-inputs").stdout.splitlines():
            for stream in json.loads(line):
                if str(stream["owner_module"]) == module:
                    self._ctl("set-sink-input-volume", str(stream["index"]), f"{gain_db:+}dB")

    def tap(self, sink: str) -> "Tap":
        """Record what `speaker` sounds, or what is spoken into `micfeed`, from now on."""
        pipe = subprocess.PIPE
        self._processes.append(
            subprocess.Popen(("parec", f"--device={sink}.monitor", *_FORM), env=self._env, stdout=pipe)
        )
        return Tap(self._processes[-1])

    def speak(self, pcm: np.ndarray) -> subprocess.Popen:
        """Play `pcm` (n_samples,) at 24 kHz into the microphone; returns at once."""
        file = self._folder / f"spoken-{len(self._processes)}.raw"
        file.write_bytes(np.clip(np.rint(pcm * 32768), -32768, 32767).astype("<i2").tobytes())
        return self._run("pacat", "--device=micfeed", *_FORM, str(file))

    def heard(self) -> np.ndarray:
        """All that the loudspeaker has played since it was plugged in: float (n_samples,) at 24 kHz."""
        data = self._raw.read_bytes()
        return np.frombuffer(data[: len(data) // 2 * 2], "<i2") / 32768

    def close(self) -> None:
        for process in reversed(self._processes):
            process.kill()
            process.wait()


@contextmanager
def pulse(folder: Path, mic: bool = False) -> Iterator[Pulse]:
    server = Pulse(folder)
    try:
        server.plug_speaker()
        if mic:
            server.plug_mic()
        yield server
    finally:
        server.close()
