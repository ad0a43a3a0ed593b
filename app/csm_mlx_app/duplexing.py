"""What `csm duplex` does between its flags and its conversation."""

import shlex
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from csm_mlx.audio import AudioWriter, pad_to_frames, read_audio
from csm_mlx.errors import DeviceError
from csm_mlx.generate.moshi import Moshi, MoshiSession
from csm_mlx_app import console, loading
from csm_mlx_app.assistant.duplex import Duplex, Frame, Prepared, make_canceller
from csm_mlx_app.assistant.lines import JsonLines, Plain
from csm_mlx_app.assistant.records import Log
from csm_mlx_app.assistant.report import Report
from csm_mlx_app.codes import write_tensors
from csm_mlx_app.sound.clock import RealClock
from csm_mlx_app.sound.device import RATE_HZ
from csm_mlx_app.sound.devices import find_device
from csm_mlx_app.sound.live import LiveSound

POLL_S = 0.05
WARM_STEPS, TIMED_STEPS = 3, 12
FAST_ENOUGH = 0.9
"""The largest real-time factor at which a conversation has room for steps that take a little longer."""
PAUSE_S = 1.0
"""Without a word for so long, a sentence is over."""
TAIL_S = 10.0
"""For so long at most a model that translates goes on after the end of a file."""


@dataclass(frozen=True, kw_only=True)
class Flags:
    """What the user asked for, one field a flag."""

    model: str
    input: Path | None
    output: Path | None
    tokens: Path | None
    input_device: str | None
    output_device: str | None
    echo: str
    seconds: float | None
    tail: float | None
    as_json: bool
    log: Path | None
    seed: int
    text_sampling: dict[str, Any]
    audio_sampling: dict[str, Any]
    conditions: dict[str, str]
    rules: dict[str, Any]


@dataclass(frozen=True)
class Speed:
    """Of a step on this machine, without anything to wait for."""

    step_ms: float
    budget_ms: float
    advice: str

    @property
    def real_time_factor(self) -> float:
        return self.step_ms / self.budget_ms

    @property
    def message(self) -> str:
        factor = f"a step takes {self.step_ms:.0f} of its {self.budget_ms:.0f} ms, real-time factor "
        factor += f"{self.real_time_factor:.2f}"
        if self.real_time_factor <= FAST_ENOUGH:
            return f"{factor}: fast enough"
        return f"{factor}: too slow for a conversation, which will have gaps; {self.advice}"


def duplex(flags: Flags) -> int:
    """Until the user leaves, the time is up or the file ends; the exit code."""
    return _file(flags, flags.input) if flags.input is not None else _live(flags)


# On a file.


def _file(flags: Flags, source: Path) -> int:
    """As fast as it can, in this thread; Ctrl-C keeps what was said until then."""
    moshi = loading.load_duplex(flags.model)
    pcm = read_audio(source, moshi.sample_rate_hz)
    session = _session(flags, moshi)
    heard_s = 0.0
    report = _report(flags, lambda: heard_s)
    notes = Notes(report, flags.tokens)
    frame_s = moshi.frame_size / moshi.sample_rate_hz
    with ExitStack() as stack:
        stack.callback(report.close)
        writer = None
        if flags.output is not None:
            writer = stack.enter_context(AudioWriter(flags.output, moshi.sample_rate_hz))
        code = 0
        report.emit("ready", model=str(moshi.path), input=str(source), output=flags.output and str(flags.output))
        stack.callback(_end, report, notes, session, lambda: session.stats.sound_s)
        try:
            for said, piece in _steps(flags.tail, moshi, session, pcm):
                heard_s += frame_s
                notes.put(session, piece, heard_s)
                if writer is not None:
                    writer.write(said)
                if _is_up(flags, heard_s):
                    break
        except KeyboardInterrupt:
            code = 130
        except SystemExit as stopped:  # SIGTERM: what there is, is kept
            code = stopped.code if isinstance(stopped.code, int) else 1
    return code


def _steps(
    tail_s: float | None, moshi: Moshi, session: MoshiSession, pcm: np.ndarray
) -> Iterator[tuple[np.ndarray, str | None]]:
    """Each frame of the file, and what follows it: for a model that translates, the end and silence until it ends."""
    size, frame_s = moshi.frame_size, moshi.frame_size / moshi.sample_rate_hz
    for frame in pad_to_frames(pcm, size).reshape(-1, size):
        yield session.step(frame)
    translates = moshi.config.moshi.translates
    n_more = round((TAIL_S * translates if tail_s is None else tail_s) / frame_s)
    for n in range(n_more):
        yield session.end() if translates and n == 0 else session.step(np.zeros(size, np.float32))
        if translates and session.text_ids[0] == moshi.tokenizer.eos_id:
            return


# On devices.


def _live(flags: Flags) -> int:
    try:  # before anything is loaded
        find_device("input", flags.input_device)
        find_device("output", flags.output_device)
    except DeviceError as error:
        raise DeviceError(f"{error}; or run on a file with --input FILE --output FILE.wav") from None
    sound = LiveSound(flags.input_device, flags.output_device, RealClock())
    report = _report(flags, sound.clock.now_s)
    moshi = _Computing(flags, report)
    conversation = Duplex(sound, report, moshi.prepare, canceller=make_canceller(flags.echo, report.note))
    code = 0
    try:
        try:
            conversation.start()
            report.emit("ready", model=flags.model, input=sound.input_name, output=sound.output_name)
            while not conversation.is_over:
                conversation.check_devices()
                time.sleep(POLL_S)
        except KeyboardInterrupt:
            code = 130
        return code
    finally:
        try:
            conversation.close()
            moshi.end(
                frames_left_out=conversation.n_dropped,
                frames_not_played=conversation.n_skipped,
                underruns=sound.n_underruns,
            )
        finally:
            report.close()


class _Computing:
    """What the thread that owns MLX does in a conversation on devices."""

    def __init__(self, flags: Flags, report: Report):
        self._flags, self._report = flags, report
        self._notes = Notes(report, flags.tokens)
        self._session: MoshiSession | None = None
        self._heard_s = 0.0
        self._lock, self._is_over = threading.Lock(), False

    def prepare(self) -> Prepared:
        if not self._flags.as_json:
            console.talk("loading the model")
        moshi = loading.load_duplex(self._flags.model)
        if moshi.sample_rate_hz != RATE_HZ:
            raise DeviceError(f"{moshi.path} speaks at {moshi.sample_rate_hz} Hz, the devices' sound is at {RATE_HZ}")
        speed = measured(self._flags, moshi)
        self._report.emit(
            "speed",
            step_ms=round(speed.step_ms, 1),
            budget_ms=round(speed.budget_ms, 1),
            real_time_factor=round(speed.real_time_factor, 3),
            fast_enough=speed.real_time_factor <= FAST_ENOUGH,
            message=speed.message,
        )
        self._session = session = _session(self._flags, moshi)
        return Prepared(moshi.frame_size, lambda frame: self._hear(session, frame))

    def _hear(self, session: MoshiSession, frame: Frame) -> np.ndarray | None:
        if _is_up(self._flags, self._heard_s):
            return None
        pcm, piece = session.step(frame.pcm)
        with self._lock:
            if self._is_over:  # nobody waited for the end of this step: what it says was not said
                return None
            self._heard_s = frame.end_s
            self._notes.put(session, piece, self._heard_s)
        return pcm

    def end(self, **lost: int) -> None:
        """From a thread that may not have waited for a step. lost: how much of the sound was, by its way."""
        with self._lock:
            self._is_over = True
        if self._session is not None:
            _end(self._report, self._notes, self._session, lambda: self._heard_s, **lost)


# Both.


def _end(report: Report, notes: "Notes", session: MoshiSession, heard_s: Callable[[], float], **lost: int) -> None:
    """Keeps what was said, and tells what it came to, whether or not that can be kept."""
    notes.end()
    try:
        notes.keep()
    finally:
        factor = _rounded(session.stats.real_time_factor)
        report.emit("summary", seconds=round(heard_s(), 3), real_time_factor=factor, **lost)


def _is_up(flags: Flags, heard_s: float) -> bool:
    """Whether it has lasted as long as it was to last."""
    return flags.seconds is not None and heard_s + 1e-6 >= flags.seconds


def _session(flags: Flags, moshi: Moshi) -> MoshiSession:
    return moshi.session(
        seed=flags.seed,
        text=replace(moshi.config.text_sampling, **flags.text_sampling),
        audio=replace(moshi.config.audio_sampling, **flags.audio_sampling),
        conditions=flags.conditions,
        **flags.rules,
    )


def measured(flags: Flags, moshi: Moshi) -> Speed:
    """Steps on silence, in a session that is thrown away; the first ones, which are slow, warm the machine up."""
    session, spent_ms = _session(flags, moshi), []
    for _ in range(WARM_STEPS + TIMED_STEPS):
        session.step(np.zeros(moshi.frame_size, np.float32))
        spent_ms.append(1000 * session.stats.last_s)
    if (moshi.config.quantization or {}).get("bits", 16) <= 4:
        advice = "close other programs, or run on a file with --input"
    elif moshi.config.quantization:  # cannot be quantized again
        advice = "in 4 bits it reads fewer bytes: convert the float weights that it was made from with -q, or take one "
        advice += "such as kyutai/moshiko-mlx-q4"
    else:
        advice = f"in 4 bits it reads fewer bytes: csm convert {shlex.quote(flags.model)} weights/moshi-q4 -q"
    budget_ms = 1000 * moshi.frame_size / moshi.sample_rate_hz
    return Speed(statistics.median(spent_ms[WARM_STEPS:]), budget_ms, advice)


def _report(flags: Flags, now_s: Any) -> Report:
    report = Report(now_s, [JsonLines() if flags.as_json else Written()])
    if flags.log is not None:
        report.add(Log(flags.log, report.note))
    return report


def _rounded(factor: float | None) -> float | None:
    return None if factor is None else round(factor, 3)


class Notes:
    """What is said, a frame at a time: pieces of text as events, sentences when they are over, and all tokens."""

    def __init__(self, report: Report, tokens: Path | None):
        """tokens: where all of them go, if anywhere."""
        self._report, self._path = report, tokens
        self._sentence = ""
        self._start_s = self._last_s = 0.0
        self._text: list[int] = []
        self._codes: list[np.ndarray] = []

    def put(self, session: MoshiSession, piece: str | None, now_s: float) -> None:
        """After each step, which heard the user's sound up to `now_s`."""
        if self._path is not None:
            self._text.append(int(session.text_ids[0]))
            self._codes.append(session.codes[0])
        if piece is None:
            if self._sentence and now_s - self._last_s >= PAUSE_S:
                self.end()
            return
        if not self._sentence:
            piece, self._start_s = piece.lstrip(), now_s
        self._sentence, self._last_s = self._sentence + piece, now_s
        self._report.emit("text", text=piece)

    def end(self) -> None:
        """No more of the sentence comes."""
        if self._sentence:
            self._report.emit("said", text=self._sentence, start_s=round(self._start_s, 3))
        self._sentence = ""

    def keep(self) -> None:
        """Writes `text` (T,) and `audio` (T, n_generated): the codes of the sound of each frame, `codebook_size` where
        it was silence because none were there yet."""
        if self._path is not None and self._codes:
            write_tensors(self._path, {"text": np.array(self._text), "audio": np.stack(self._codes)})


class Written(Plain):
    """For people: the text on stdout as it comes, everything else on stderr."""

    def __init__(self) -> None:
        super().__init__()
        self._is_open = False

    def event(self, event: dict[str, Any]) -> None:
        if event["event"] == "text":
            sys.stdout.write(event["text"])
            sys.stdout.flush()
            self._is_open = True
            return
        line = _told(event)
        if self._is_open and (line is not None or event["event"] == "said"):
            sys.stdout.write("\n")
            sys.stdout.flush()
            self._is_open = False
        if line is not None:
            console.talk(line)


def _told(event: dict[str, Any]) -> str | None:
    match event["event"]:
        case "speed":
            return event["message"]
        case "ready" if "output" in event:
            return f"{Path(event['model']).name} hears {event['input']} and speaks on {event['output']}"
        case "note" | "fault":
            return f"note: {event['message']}"
        case "summary":
            parts = [f"{event['seconds']:.1f} s of conversation"]
            if "real_time_factor" in event:
                parts.append(f"real-time factor {event['real_time_factor']:.2f}")
            for name, what in _LOST.items():
                if event.get(name):
                    parts.append(f"{event[name]} {what}")
            return ", ".join(parts)
    return None


_LOST = {
    "frames_left_out": "frames of 80 ms not heard",
    "frames_not_played": "frames not played, to catch up",
    "underruns": "gaps in the sound",
}
