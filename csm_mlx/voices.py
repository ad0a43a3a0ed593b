"""Voices: a clip, its transcript and its codes, stored by name in a folder that belongs to them.

ROOT/NAME/voice.json         transcript, speaker and what the codes were made with
ROOT/NAME/clip.wav           the sound, 16-bit
ROOT/NAME/codes.safetensors  `codes` int32 (n_frames, n_codebooks)
"""

import dataclasses
import errno
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import mlx.core as mx
import numpy as np

from csm_mlx.audio import audio_info, read_audio, write_audio
from csm_mlx.config import MimiConfig
from csm_mlx.errors import ConfigError, VoiceError
from csm_mlx.strict import Strict

META_FILE, CLIP_FILE, CODES_FILE = "voice.json", "clip.wav", "codes.safetensors"
MIN_CLIP_S = 0.3
SILENT_PEAK = 1e-3
"""-60 dB of full scale: a clip that never gets louder is no speech."""
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")


class Codec(Protocol):
    """What a voice asks of `csm_mlx.models.mimi.Mimi`."""

    quantizer: Any

    @property
    def config(self) -> MimiConfig: ...

    def encode(self, pcm: mx.array) -> tuple[mx.array, Any]: ...


def codec_fingerprint(codec: Codec) -> str:
    """16 hex digits of a codec's configuration and codebooks: codes of one mean nothing to another."""
    digest = hashlib.sha256(json.dumps(codec.config.to_dict(), sort_keys=True).encode())
    for part in (codec.quantizer.semantic, codec.quantizer.acoustic):
        digest.update(np.asarray(part.codebooks.astype(mx.float32)).tobytes())
    return digest.hexdigest()[:16]


@dataclass(frozen=True, kw_only=True)
class VoiceMeta(Strict):
    """`voice.json`."""

    text: str
    """What the clip says, word for word."""
    speaker: int
    sample_rate_hz: int
    """Of clip.wav."""
    codec: str
    """`codec_fingerprint` of the codec that made the codes."""
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Voice(VoiceMeta):
    """A stored voice; `codes` come from `VoiceStore.codes`, which knows whether they still fit."""

    name: str
    path: Path
    """Its folder."""

    def pcm(self, sample_rate_hz: int | None = None) -> np.ndarray:
        """The clip, float32 (n_samples,), at `sample_rate_hz` or else at its own rate."""
        return read_audio(self.path / CLIP_FILE, sample_rate_hz or self.sample_rate_hz)


def check_clip(pcm: np.ndarray, sample_rate_hz: int) -> None:
    """`VoiceError` for what cannot be anybody's voice: another shape, too short a sound, or silence."""
    if pcm.ndim != 1:
        raise VoiceError(f"the clip has the shape {pcm.shape}, expected (n_samples,) of one channel")
    advice = "5 to 15 s of one person's clear speech are best"
    if len(pcm) < MIN_CLIP_S * sample_rate_hz:
        raise VoiceError(f"the clip lasts {len(pcm) / sample_rate_hz:.2f} s, expected {MIN_CLIP_S:g} or more; {advice}")
    if np.abs(pcm).max() < SILENT_PEAK:
        raise VoiceError(f"the clip is silent, expected speech; {advice}")


class VoiceStore:
    """The voices of one folder, which is made when the first voice is added.

    A name is 1 to 64 of a-z, 0-9, - and _, and never a path. `VoiceError` for any other, for one that is unknown, and
    for a stored voice that is broken.
    """

    def __init__(self, root: str | Path):
        self.root = Path(root)

    def list(self) -> "tuple[Voice, ...]":
        """All voices by name."""
        return tuple(self.get(name) for name in self._names())

    def _names(self) -> Iterator[str]:
        names = sorted(p.parent.name for p in self.root.glob(f"*/{META_FILE}"))
        return (name for name in names if _NAME.fullmatch(name))

    def get(self, name: str) -> Voice:
        folder = self._folder(name)
        if not folder.is_dir():
            known = ", ".join(self._names())
            raise VoiceError(f"no voice {name!r} in {self.root}; there {f'are {known}' if known else 'is none yet'}")
        broken = f"the voice {name!r} is broken ({{}}); remove it and add it again"
        try:
            data = json.loads((folder / META_FILE).read_text(encoding="utf-8"))
            meta = VoiceMeta.from_dict(data, str(folder / META_FILE))
        except OSError as error:
            raise VoiceError(broken.format(f"{META_FILE}: {error.strerror}")) from None
        except (ValueError, ConfigError) as error:
            raise VoiceError(broken.format(error)) from None
        if not (folder / CLIP_FILE).is_file():
            raise VoiceError(broken.format(f"{CLIP_FILE} is missing"))
        return Voice(name=name, path=folder, **dataclasses.asdict(meta))

    def codes(self, name: str, codec: Codec, n_codebooks: int | None = None) -> np.ndarray:
        """Codes of the clip, int32 (n_frames, K), the first `n_codebooks` of the codec's or all.

        Those of another codec, or none, are made again from the clip, and kept where the folder can be written.
        """
        voice = self.get(name)
        codes = _read_codes(voice.path / CODES_FILE) if voice.codec == codec_fingerprint(codec) else None
        if codes is None and os.access(self.root, os.W_OK) and os.access(voice.path, os.W_OK):
            self._write(voice.path, voice.path / CLIP_FILE, codec, voice.text, voice.speaker)
            codes = _read_codes(voice.path / CODES_FILE)
        if codes is None:
            codes = _encode(voice.path / CLIP_FILE, codec)
        return codes[:, :n_codebooks]

    def add(
        self, name: str, pcm: np.ndarray, text: str, codec: Codec, *, speaker: int = 0, force: bool = False
    ) -> Voice:
        """Store a clip, (n_samples,) at the codec's rate, and its codes; `force` replaces a voice of that name."""
        folder = self._folder(name)
        if folder.exists() and not force:
            raise VoiceError(
                f"the voice {name!r} is there already, in {folder}; replace it with --force, or choose another name"
            )
        if not text.strip():
            raise VoiceError(f"the voice {name!r} has no transcript; CSM needs the words that the clip says")
        if speaker < 0:
            raise VoiceError(f"speaker is {speaker}, expected 0 or more")
        pcm = np.asarray(pcm, dtype=np.float32)
        check_clip(pcm, codec.config.sample_rate_hz)
        self._write(folder, pcm, codec, text.strip(), speaker)
        return self.get(name)

    def remove(self, name: str) -> None:
        """Forget a voice, also a broken one."""
        folder = self._folder(name)
        if folder.is_symlink():
            folder.unlink()
        elif folder.is_dir():
            shutil.rmtree(folder)
        else:
            self.get(name)

    def _folder(self, name: str) -> Path:
        if not _NAME.fullmatch(name):
            raise VoiceError(
                f"{name!r} is no voice name; expected 1 to 64 of a-z, 0-9, - and _, such as anna or anna-2"
            )
        return self.root / name

    def _write(self, folder: Path, clip: np.ndarray | Path, codec: Codec, text: str, speaker: int) -> None:
        # Names that begin with a dot are no voice names, so that a half-written voice is never taken for one.
        new = self.root / f".{folder.name}.{secrets.token_hex(4)}.new"
        try:
            new.mkdir(parents=True)
            if isinstance(clip, Path):
                shutil.copyfile(clip, new / CLIP_FILE)
            else:
                write_audio(new / CLIP_FILE, clip, codec.config.sample_rate_hz)
            # From the 16-bit clip, so that making the codes again gives the same.
            codes = _encode(new / CLIP_FILE, codec)
            mx.save_safetensors(str(new / CODES_FILE), {"codes": mx.array(codes)})
            if _read_codes(new / CODES_FILE) is None:  # mlx does not report what fails when the file is closed
                raise OSError(errno.EIO, "the codes could not be written; is the disk full?")
            meta = _meta(new / CLIP_FILE, codec, text, speaker)
            meta_json = json.dumps(meta.to_dict(), indent=2, ensure_ascii=False) + "\n"
            (new / META_FILE).write_text(meta_json, encoding="utf-8")
            _replace_folder(new, folder)
        except (OSError, RuntimeError) as error:
            reason = getattr(error, "strerror", None) or error
            raise VoiceError(f"cannot store the voice {folder.name!r} in {self.root}: {reason}") from error
        finally:
            shutil.rmtree(new, ignore_errors=True)


def _meta(clip: Path, codec: Codec, text: str, speaker: int) -> VoiceMeta:
    rate, n_samples = audio_info(clip)
    return VoiceMeta(
        text=text,
        speaker=speaker,
        sample_rate_hz=rate,
        codec=codec_fingerprint(codec),
        seconds=round(n_samples / rate, 3),
    )


def _replace_folder(new: Path, target: Path) -> None:
    old = new.with_suffix(".old")
    if target.exists():
        target.rename(old)
    try:
        new.rename(target)
    except BaseException:
        if old.exists():
            old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _encode(clip: Path, codec: Codec) -> np.ndarray:
    pcm = read_audio(clip, codec.config.sample_rate_hz)
    codes, _ = codec.encode(mx.array(pcm)[None, :, None])
    return np.asarray(codes[0], dtype=np.int32)


def _read_codes(path: Path) -> np.ndarray | None:
    """None when the file is missing or damaged: the clip can make them again."""
    try:
        arrays = mx.load(str(path))
        codes = arrays.get("codes") if isinstance(arrays, dict) else None
        return None if codes is None or codes.ndim != 2 else np.asarray(codes, dtype=np.int32)
    except (OSError, RuntimeError, ValueError):
        return None
