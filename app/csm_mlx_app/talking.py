"""What `csm talk` does between its flags and its conversation: put it together, show it, end it."""

import contextlib
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from csm_mlx.errors import DeviceError
from csm_mlx.recognize import DEFAULT_WHISPER, Recognizer, Whisper
from csm_mlx_app import console, listening, loading, options, prompt
from csm_mlx_app.assistant import smart_turn
from csm_mlx_app.assistant.conversation import Conversation, Parts
from csm_mlx_app.assistant.ears import Echo
from csm_mlx_app.assistant.engine import Engine
from csm_mlx_app.assistant.keys import Controls, Keys, TypedLines
from csm_mlx_app.assistant.lines import JsonLines, Plain
from csm_mlx_app.assistant.records import Log, Recording, Trace
from csm_mlx_app.assistant.replies import Replier, make_replier
from csm_mlx_app.assistant.report import Report
from csm_mlx_app.assistant.screen import Now, Screen
from csm_mlx_app.assistant.turn_config import Eagerness, TurnConfig
from csm_mlx_app.sound.clock import RealClock, SimulatedClock
from csm_mlx_app.sound.device import Sound
from csm_mlx_app.sound.devices import find_device
from csm_mlx_app.sound.filed import FileSound
from csm_mlx_app.sound.live import LiveSound

POLL_S = 0.05
AGAIN_S = 2.0
"""A second Ctrl-C within this time leaves."""
SYSTEM = (
    "You are a friendly voice assistant. Your answers are spoken aloud: answer in one or two short, plain sentences, "
    "without lists, markup or emoji."
)
WARM_UP_S = 0.4
_ECHO_RULES: tuple[Echo, ...] = ("auto", "aec")


@dataclass(frozen=True, kw_only=True)
class Flags:
    """What the user asked for, one field a flag."""

    offline: bool
    asr: str | None
    llm: str | None
    llm_url: str | None
    llm_cmd: str | None
    system: str | None
    text: bool
    input: Path | None
    output: Path | None
    input_device: str | None
    output_device: str | None
    echo: Echo
    eagerness: Eagerness
    smart_turn: Path | None
    as_json: bool
    log: Path | None
    record: Path | None
    trace: Path | None
    model: str | None
    voice: str | None
    voice_text: str | None
    speaker: int | None
    seed: int
    sampling: dict[str, Any]


def talk(flags: Flags) -> int:
    """Until the user leaves or the input ends; the exit code."""
    sound = _sound(flags)
    screen = _screen(flags)
    report = Report(sound.clock.now_s, [screen])
    if flags.log is not None:
        report.add(Log(flags.log, report.note))
    if flags.trace is not None:
        report.add(Trace(flags.trace))
    replier = make_replier(
        llm=flags.llm, url=flags.llm_url, command=flags.llm_cmd, offline=flags.offline, seed=flags.seed
    )
    stt = None if flags.text or (flags.offline and flags.asr is None) else listening.find_stt(flags.asr)
    recognizer = None if flags.text or stt is not None else Whisper(flags.asr or DEFAULT_WHISPER)
    turn_model = None if stt is not None and flags.smart_turn is None else smart_turn.find(flags.smart_turn)
    if stt is not None and turn_model is not None:
        report.note("--smart-turn is not used: Kyutai's speech-to-text hears for itself whether you have finished")
    conversation = Conversation(
        Parts(
            sound=sound,
            report=report,
            load=lambda: _load(flags, replier, recognizer, stt),
            recognizer=recognizer,
            streams=stt is not None,
            turns=TurnConfig.of(flags.eagerness, echo_rules=flags.echo in _ECHO_RULES),
            echo=flags.echo,
            smart_turn=None if turn_model is None else smart_turn.SmartTurn(turn_model),
            recording=None if flags.record is None else Recording(flags.record, report.note),
            system=_system(flags),
        )
    )
    if isinstance(sound, FileSound):
        sound.hold = lambda: conversation.is_busy
    try:
        if not flags.as_json:
            console.talk("loading the models")
        engine = conversation.start()
        report.emit(
            "ready",
            model=str(engine.csm.path),
            voice=flags.voice,
            asr=stt if recognizer is None else recognizer.model,
            llm=engine.replier.name,
            input=sound.input_name,
            output=sound.output_name,
        )
        code = _drive(conversation, report, screen, flags.text)
        report.emit("summary", **conversation.summary())
        return code
    finally:
        try:
            conversation.close()
        finally:  # a third Ctrl-C does not leave the terminal without its cursor
            report.close()


def _load(flags: Flags, replier: Replier, recognizer: Recognizer | None, stt: str | None) -> Engine:
    """Everything that computes, on the thread that calls; warmed up, so that the first answer is not slower.

    stt: the checkpoint of speech-to-text, where that recognizes the user.
    """
    replier.warm_up()  # first, because a server that is not there is found out at once
    csm, scribe = loading.load(flags.model, speaks=True), None
    if stt is not None:
        csm, scribe = listening.together(csm, stt)
    session = csm.session(seed=flags.seed, sampling=options.sampling(csm.config.sampling, flags.sampling))
    speaker = flags.speaker or 0
    if flags.voice is not None:
        reference = prompt.load_voice(csm, flags.voice, flags.voice_text, flags.speaker)
        session.add(reference, reference=True)
        speaker = reference.speaker
    for _ in csm.session(seed=0).speak("Hello.", speaker, max_seconds=WARM_UP_S):
        pass
    if recognizer is not None:
        import numpy as np

        recognizer.transcribe(np.zeros(csm.sample_rate_hz // 2, np.float32), csm.sample_rate_hz)
    return Engine(csm, session, replier, speaker, scribe)


def _system(flags: Flags) -> str:
    """SmolLM2 is too small for any other persona than the one that it was trained with, which its replier gives it."""
    if flags.system is not None:
        return flags.system
    own = flags.offline and flags.llm is flags.llm_url is flags.llm_cmd is None
    return "" if own else SYSTEM


def _sound(flags: Flags) -> Sound:
    """The devices, looked for before anything is loaded."""
    if flags.input is not None or (flags.text and flags.output is not None):
        return FileSound(flags.input, flags.output, SimulatedClock())
    try:
        if not flags.text:
            find_device("input", flags.input_device)
        find_device("output", flags.output_device)
    except DeviceError as error:
        if not flags.text:
            raise DeviceError(
                f"{error}; or type with csm talk --text, or speak from a file with --input FILE"
            ) from None
        console.note(f"{error}; you can read the answers")
        return FileSound(None, None, SimulatedClock())
    return LiveSound(flags.input_device, flags.output_device, RealClock(), listen=not flags.text)


def _screen(flags: Flags) -> Screen | Plain | JsonLines:
    if flags.as_json:
        return JsonLines()
    if flags.text:
        return Plain(typed=sys.stdin is not None and sys.stdin.isatty())
    return Screen() if sys.stderr.isatty() and os.environ.get("TERM") != "dumb" else Plain()


def _drive(conversation: Conversation, report: Report, screen: Screen | Plain | JsonLines, text: bool) -> int:
    """The main thread: the screen, the keys, the devices, until the end; the exit code.

    The first Ctrl-C silences the assistant, the second leaves.
    """
    controls = Controls(conversation.post, conversation.now_s, lambda: conversation.state)
    lines = TypedLines() if text else None
    interrupted_s = -AGAIN_S
    with contextlib.nullcontext(None) if text else Keys() as keys:
        while True:
            try:
                while not (conversation.is_over or controls.has_quit):
                    if keys is not None:
                        controls.press(keys.read())
                    if lines is not None:
                        _type(conversation, lines)
                    conversation.check_devices()
                    if isinstance(screen, Screen):
                        screen.poll(_now(conversation, controls))
                    time.sleep(POLL_S)
                return 0
            except KeyboardInterrupt:
                now_s = time.monotonic()
                if now_s - interrupted_s < AGAIN_S:
                    return 130
                interrupted_s = now_s
                conversation.interrupt()
                report.note("Ctrl-C again to leave")


def _type(conversation: Conversation, lines: TypedLines) -> None:
    """One line after the other, each when the last was answered."""
    if conversation.is_busy:
        return
    if (line := lines.take()) is not None:
        conversation.say(line)
    elif lines.has_ended:
        conversation.end_input()


def _now(conversation: Conversation, controls: Controls) -> Now:
    return Now(conversation.level_db, conversation.heard, controls.typed, controls.is_muted, controls.is_talking)
