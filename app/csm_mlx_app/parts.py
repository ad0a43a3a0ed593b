"""The sounds that `csm say --batch` makes, one a line: whole files, each known by what determines its sound."""

import contextlib
import fcntl
import json
import os
import shutil
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from csm_mlx.audio import AudioWriter, read_audio, write_audio
from csm_mlx.checkpoint.save import write_error, write_text
from csm_mlx.errors import CsmError

INDEX = "index.jsonl"
NOTES = ".csm-say"
"""The folder in the folder: what is known of each sound and what processes tell each other. A sign that it is ours."""
JOINED_SUFFIX = ".parts"
"""Of the folder beside a sound that is joined from its parts."""
_LOCK = "lock"


@dataclass(frozen=True, kw_only=True)
class Part:
    """A sound that is there."""

    fingerprint: str
    """Of all that determines its sound."""
    seconds: float
    stop: str
    """Why it ended, as `Utterance.stop`."""
    n_bytes: int


class Parts:
    """A folder of sounds, `0001.wav` and on: those with the fingerprints wanted are kept, others are replaced.

    A sound's note is written after its sound is on the disk, and removed before another sound takes its place, so that
    no kill at any moment leaves a note beside a sound that it does not describe. `CsmError` when the disk refuses.
    """

    def __init__(self, folder: Path, fingerprints: Sequence[str], sample_rate_hz: int):
        self.folder, self._fingerprints, self._sample_rate_hz = folder, fingerprints, sample_rate_hz
        self.notes = folder / NOTES

    def path(self, index: int) -> Path:
        """Of the sound of line `index`, from 0 on."""
        return self.folder / f"{index + 1:04}.wav"

    def _note(self, sound: Path) -> Path:
        return self.notes / f"{sound.stem}.json"

    def begin(self) -> Any:
        """Makes the folder, or cleans up what a kill left in it; for one process only, before the others write.

        Returns what keeps other runs out as long as it is held. `CsmError` when one is at work, or when the folder
        holds what is not ours.
        """
        try:
            if self.folder.exists() and not self.notes.is_dir():
                foreign = sorted(path.name for path in self.folder.iterdir() if path.name != ".DS_Store")
                if foreign:
                    raise CsmError(
                        f"{self.folder} holds what csm say --batch did not make ({', '.join(foreign[:3])}); "
                        "choose another folder"
                    )
            self.notes.mkdir(parents=True, exist_ok=True)
            lock = self._locked()
            sounds, indices = self.folder.glob("[0-9]*.part.wav"), self.folder.glob(f"{INDEX}.*.part")
            for leftover in (*sounds, *indices, *self.notes.glob("*.part")):
                leftover.unlink(missing_ok=True)
            self._adopt()
        except OSError as error:
            raise write_error(self.folder, error) from error
        return lock

    def _locked(self) -> Any:
        lock = (self.notes / _LOCK).open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            raise CsmError(
                f"another csm say writes into {self.folder}; wait for it, or choose another folder"
            ) from None
        except OSError:
            pass  # a network disk without locks
        return lock

    def get(self, index: int) -> Part | None:
        """The sound of a line, when it is there and the one wanted."""
        part = self._read(self._note(self.path(index)), self.path(index))
        return part if part and part.fingerprint == self._fingerprints[index] else None

    def lacking(self) -> list[int]:
        return [index for index in range(len(self._fingerprints)) if self.get(index) is None]

    def _read(self, note: Path, sound: Path) -> Part | None:
        try:
            part = Part(**json.loads(note.read_text(encoding="utf-8")))
            return part if sound.stat().st_size == part.n_bytes else None
        except (OSError, ValueError, TypeError):
            return None

    def write(self, index: int, pcm: Any, stop: str) -> Part:
        """Replaces the sound of a line by `pcm` (n_samples,); where that fails, or is interrupted, there is none."""
        sound = self.path(index)
        try:
            self._note(sound).unlink(missing_ok=True)
            write_audio(sound, pcm, self._sample_rate_hz)
            with sound.open("rb") as file:
                os.fsync(file.fileno())
            part = Part(
                fingerprint=self._fingerprints[index],
                seconds=len(pcm) / self._sample_rate_hz,
                stop=stop,
                n_bytes=sound.stat().st_size,
            )
            replace_text(self._note(sound), json.dumps(asdict(part)))
        except BaseException as error:
            with contextlib.suppress(OSError):
                self._remove(sound)
            if isinstance(error, OSError):
                raise write_error(sound, error) from error
            raise
        return part

    def remove(self, index: int) -> None:
        """An older sound of a line, which is not what the line says now."""
        self._remove(self.path(index))

    def _remove(self, sound: Path) -> None:
        self._note(sound).unlink(missing_ok=True)
        sound.unlink(missing_ok=True)

    def _adopt(self) -> None:
        """Moves sounds that are wanted under another number, as after a line was put between others.

        All go aside first, under their fingerprints, because the places that they go to may hold others of them.
        """
        places: dict[str, list[int]] = defaultdict(list)
        for index in self.lacking():
            places[self._fingerprints[index]].append(index)
        if not places:
            return
        right = {self._note(self.path(index)) for index in range(len(self._fingerprints)) if self.get(index)}
        for note in set(self.notes.glob("*.json")) - right:
            sound = self.folder / f"{note.stem}.wav"
            part = self._read(note, sound)
            if part is not None and part.fingerprint in places:
                aside = self._aside(part.fingerprint)
                os.replace(sound, aside)
                os.replace(note, aside.with_suffix(".json"))
        for fingerprint, indices in places.items():
            aside = self._aside(fingerprint)
            if self._read(aside.with_suffix(".json"), aside) is not None:
                self.remove(indices[0])
                os.replace(aside, self.path(indices[0]))
                os.replace(aside.with_suffix(".json"), self._note(self.path(indices[0])))

    def _aside(self, fingerprint: str) -> Path:
        return self.notes / f"{fingerprint}.wav"

    def write_index(self, lines: Sequence[dict[str, Any]]) -> None:
        replace_text(self.folder / INDEX, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))

    def tidy(self) -> None:
        """Removes what no line wants: sounds beyond the last one, and those moved aside."""
        wanted = {self._note(self.path(index)) for index in range(len(self._fingerprints))}
        for note in set(self.notes.glob("*.json")) - wanted:
            self._remove(self.folder / f"{note.stem}.wav")
        for aside in self.notes.glob("*.wav"):
            aside.unlink(missing_ok=True)

    def join(self, out: Path) -> float:
        """All sounds one after the other in one file, and the folder removed; seconds. On an error the folder stays."""
        writer = AudioWriter(out, self._sample_rate_hz)
        try:
            for index in range(len(self._fingerprints)):
                writer.write(read_audio(self.path(index), self._sample_rate_hz))
            writer.close()
            with out.open("rb") as file:
                os.fsync(file.fileno())  # before its parts are gone
        except BaseException:
            writer.discard()
            raise
        for path in self.folder.iterdir():  # the notes last: a folder without them is not taken for ours
            if path != self.notes:
                path.unlink(missing_ok=True)
        shutil.rmtree(self.folder, ignore_errors=True)
        return writer.n_samples / self._sample_rate_hz


def replace_text(path: Path, text: str) -> None:
    """Whole or not at all; `CheckpointError` when the disk refuses."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        write_text(part, text)
        os.replace(part, path)
    except OSError as error:
        raise write_error(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
