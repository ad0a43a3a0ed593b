"""The manifest: one example per line of JSON, all of them checked before anything is trained.

{"speaker": 0, "text": "Long, but good.", "audio": "clips/7.wav", "context": [{"speaker": 1, "text": "How was it?"}]}
"""

import hashlib
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from csm_mlx.audio import audio_info, read_audio
from csm_mlx.checkpoint.files import CODES_CACHE
from csm_mlx.errors import AudioError, ConfigError, ManifestError
from csm_mlx.frames import check_speaker, text_ids
from csm_mlx.generate.session import Csm
from csm_mlx.jsonl import read_json_lines
from csm_mlx.strict import Strict

MAX_PROBLEMS = 50
"""Those that an error lists; the others are counted."""
SILENT_PEAK = 10 ** (-50 / 20)
SILENT_RMS = 10 ** (-60 / 20)
_EXAMPLE = '{"speaker": 0, "text": "Hi!", "audio": "hi.wav"}'


@dataclass(frozen=True, kw_only=True)
class _ContextLine(Strict):
    speaker: int
    text: str
    audio: str | None = None


@dataclass(frozen=True, kw_only=True)
class _Line(Strict):
    speaker: int
    text: str
    audio: str
    context: tuple[_ContextLine, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Clip:
    """A sound file, known by its header."""

    path: Path
    duration_s: float
    n_frames: int


@dataclass(frozen=True, kw_only=True)
class ExampleTurn:
    speaker: int
    text: str
    text_ids: tuple[int, ...]
    clip: Clip | None

    @property
    def n_rows(self) -> int:
        """Positions of the model: text, frames and the end frame."""
        return len(self.text_ids) + (self.clip.n_frames + 1 if self.clip else 0)


@dataclass(frozen=True, kw_only=True)
class Example:
    """One line: what to learn, and what was said before it."""

    where: str
    """`clips.jsonl:7`."""
    turns: tuple[ExampleTurn, ...]
    """The context, oldest first; the last one, with a clip, is what is learnt."""

    @property
    def text(self) -> str:
        return self.turns[-1].text

    @property
    def turn_rows(self) -> tuple[int, ...]:
        """Positions of each turn."""
        return tuple(turn.n_rows for turn in self.turns)

    @property
    def n_frames(self) -> int:
        """Frames to learn, the end frame included."""
        clip = self.turns[-1].clip
        return clip.n_frames + 1 if clip else 0


@dataclass(frozen=True, kw_only=True)
class Manifest:
    path: Path
    examples: tuple[Example, ...]
    warnings: tuple[str, ...]
    """What looks like a mistake and is none that stops a training, one line each."""

    @property
    def cache_folder(self) -> Path:
        """Where the codes of its clips are kept unless told otherwise."""
        return self.path.parent / CODES_CACHE

    @property
    def seconds_by_speaker(self) -> dict[int, float]:
        """Sound to learn from, context left out."""
        seconds = dict.fromkeys(self.clips_by_speaker, 0.0)
        for own in (example.turns[-1] for example in self.examples):
            seconds[own.speaker] += own.clip.duration_s if own.clip else 0.0
        return dict(sorted(seconds.items()))

    @property
    def clips_by_speaker(self) -> dict[int, int]:
        return dict(sorted(Counter(example.turns[-1].speaker for example in self.examples).items()))


def read_manifest(
    path: str | Path,
    csm: Csm,
    *,
    speakers: Collection[int] | None = None,
    min_s: float | None = None,
    max_s: float | None = None,
    max_rows: int | None = None,
    resample: bool = False,
) -> Manifest:
    """Read a manifest for `csm`, its clips too, and check all of it. Paths in it are relative to its folder.

    speakers: those that may speak; None lets any whole number from 0 on.
    min_s, max_s: of a clip; at least a frame, and with its text no longer than the model's positions, in any case.
    max_rows: positions of a turn, if fewer than the model's.
    resample: take clips at any sample rate.

    Raises ManifestError with one line `FILE:LINE: …` per problem.
    """
    path = Path(path)
    reader = _Reader(path, csm, speakers, (min_s, max_s), max_rows, resample)
    for number, data in read_json_lines(path, _EXAMPLE, ManifestError):
        reader.read_line(number, data)
    problems = reader.problems
    if len(problems) > MAX_PROBLEMS:
        problems = [*problems[:MAX_PROBLEMS], f"{path}: {len(problems) - MAX_PROBLEMS} more problems like these"]
    if problems:
        raise ManifestError("\n".join(problems))
    if not reader.examples:
        raise ManifestError(f"{path} holds no examples; expected lines such as {_EXAMPLE}")
    return Manifest(path=path, examples=tuple(reader.examples), warnings=tuple(reader.warnings))


def hold_out(examples: Sequence[Example], share: float) -> tuple[list[Example], list[Example]]:
    """(to train on, to validate with): about `share` of the texts, chosen by the text alone, so that the same ones
    are held out when others come or go. `ConfigError` when one of the two would be empty."""
    if not 0 < share < 1:
        raise ConfigError(f"the share to validate with is {share}, expected above 0 and below 1, such as 0.1")
    split: tuple[list[Example], list[Example]] = ([], [])
    for example in examples:
        drawn = int.from_bytes(hashlib.sha256(example.text.strip().encode()).digest()[:8], "big") / 2**64
        split[drawn < share].append(example)
    if not all(split):
        what = "validate with" if split[0] else "train on"
        raise ConfigError(
            f"of {len(examples)} examples a share of {share} leaves none to {what}; "
            "choose another share, or give validation examples of their own"
        )
    return split


class _Reader:
    """Collects examples and problems, and asks each clip once."""

    def __init__(
        self,
        path: Path,
        csm: Csm,
        speakers: Collection[int] | None,
        limits_s: tuple[float | None, float | None],
        max_rows: int | None,
        resample: bool,
    ):
        self.path, self.csm, self.speakers, self.resample = path, csm, speakers, resample
        self.min_s, self.max_s = limits_s
        self.max_rows = min(max_rows or csm.config.csm.max_positions, csm.config.csm.max_positions)
        self.examples: list[Example] = []
        self.problems: list[str] = []
        self.warnings: list[str] = []
        self._clips: dict[Path, Clip | str] = {}
        self._seen: dict[tuple[int, str, str], int] = {}

    def read_line(self, number: int, data: dict[str, Any] | str) -> None:
        """data: the line's object, or what is wrong with it."""
        where, n_before = f"{self.path}:{number}", len(self.problems)
        if isinstance(data, str):
            self._note(where, data)
            return
        try:
            _Line.from_dict(data, f"{where}: turn")
        except ConfigError as error:
            self.problems.append(str(error))
        context = data.get("context")
        items = [*(context if isinstance(context, list) else []), data]
        turns = [self._turn(item, where) for item in items if isinstance(item, dict)]
        if len(self.problems) > n_before:
            return
        whole = tuple(turn for turn in turns if turn is not None)
        self.examples.append(Example(where=f"{self.path.name}:{number}", turns=whole))
        key = (data["speaker"], data["text"], data["audio"])
        first = self._seen.setdefault(key, number)
        if first != number:
            self.warnings.append(f"{where}: the same speaker, text and audio as line {first}")

    def _turn(self, data: dict[str, Any], where: str) -> ExampleTurn | None:
        """One turn as far as its fields are of the right types; what is wrong with their values is noted."""
        n_before = len(self.problems)
        speaker, text, audio = data.get("speaker"), data.get("text"), data.get("audio")
        if type(speaker) is int:
            self._note(where, self._speaker_problem(speaker))
        if isinstance(text, str) and not text.strip():
            self._note(where, "the text is empty; expected what was said")
        clip = None
        if isinstance(audio, str):
            found = self._clip(self.path.parent / audio) if audio else "audio is empty; expected the path of a clip"
            clip = found if isinstance(found, Clip) else None
            self._note(where, None if clip else str(found))
        if len(self.problems) > n_before or type(speaker) is not int or not isinstance(text, str):
            return None
        ids = text_ids(text, speaker, self.csm.tokenizer, self.csm.config.csm)
        turn = ExampleTurn(speaker=speaker, text=text, text_ids=ids, clip=clip)
        if turn.n_rows > self.max_rows:
            self._note(
                where,
                f"text and sound take {turn.n_rows} positions, at most {self.max_rows} are there; "
                "cut the clip into shorter ones",
            )
        return turn

    def _note(self, where: str, problem: str | None) -> None:
        if problem is not None:
            self.problems.append(f"{where}: {problem}")

    def _speaker_problem(self, speaker: int) -> str | None:
        try:
            check_speaker(speaker)
        except ConfigError as error:
            return str(error)
        if self.speakers is not None and speaker not in self.speakers:
            return f"speaker {speaker} is unknown, expected one of {', '.join(map(str, sorted(self.speakers)))}"
        return None

    def _clip(self, path: Path) -> Clip | str:
        if path not in self._clips:
            try:
                self._clips[path] = self._read_clip(path)
            except AudioError as error:
                self._clips[path] = str(error)
            except OSError as error:  # a name too long, a folder that may not be entered
                self._clips[path] = f"cannot read {path!s:.80}: {error.strerror}; expected the path of a clip"
        return self._clips[path]

    def _read_clip(self, path: Path) -> Clip | str:
        """The clip, or what is wrong with it. Sound is read only where the header promises one of a fitting length."""
        from_hz, n_samples = audio_info(path)
        to_hz, frame_size = self.csm.sample_rate_hz, self.csm.frame_size
        duration_s = n_samples / from_hz
        longest_s = self.max_rows * frame_size / to_hz
        if self.max_s is not None:
            longest_s = min(longest_s, self.max_s)
        shortest_s = max(self.min_s or 0.0, frame_size / to_hz)
        if duration_s > longest_s:
            return f"{path} is {duration_s:.1f} s long, expected at most {longest_s:.1f} s; cut it into shorter clips"
        if duration_s < shortest_s:
            return f"{path} is {duration_s:.2f} s long, expected at least {shortest_s:.2f} s; leave it out"
        if from_hz != to_hz and not self.resample:
            return (
                f"{path} is at {from_hz} Hz, the codec takes {to_hz} Hz; convert it with "
                f"'ffmpeg -i {path.name} -ar {to_hz} {path.stem}-{to_hz}.wav', or have all resampled (--resample)"
            )
        pcm = read_audio(path, to_hz)
        peak, rms = float(np.abs(pcm).max()), float(np.sqrt(np.mean(np.square(pcm, dtype=np.float64))))
        if peak < SILENT_PEAK or rms < SILENT_RMS:
            return (
                f"{path} is silent: its peak is {_decibels(peak)}, its mean {_decibels(rms)} of full scale; replace it"
            )
        return Clip(path=path, duration_s=duration_s, n_frames=-(-len(pcm) // frame_size))


def _decibels(amplitude: float) -> str:
    return f"{20 * np.log10(amplitude):.0f} dB" if amplitude else "zero"
