"""PCM without devices: read and write sound files, resample, pad to whole frames.

PCM is a float32 array (n_samples,), mono, nominally in [-1, 1].
"""

import contextlib
import os
import secrets
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, BinaryIO, Literal, Protocol, cast

import numpy as np

from csm_mlx.errors import AudioError

if TYPE_CHECKING:
    import soundfile
    from typing_extensions import Self

Format = Literal["wav", "flac", "mp3"]
FORMATS: tuple[Format, ...] = ("wav", "flac", "mp3")
"""What `write_audio` and `AudioWriter` write; `read_audio` also reads ogg, opus, aiff, au and caf."""

_READ_BLOCK_SAMPLES = 1 << 16
_UNKNOWN_LENGTH = 0xFFFFFFFF
_WAV_HEADER_BYTES = 44


def read_audio(path: str | Path, sample_rate_hz: int) -> np.ndarray:
    """The sound of a file: float32 (n_samples,) at `sample_rate_hz`, its channels averaged.

    Reads files whose header lacks the length, as a pipe or a killed writer leaves them.
    `AudioError` when the file is missing, unreadable or empty, or holds NaN or infinite samples.
    """
    with _opened(path) as file:
        from_hz, blocks = file.samplerate, []
        while len(block := file.read(_READ_BLOCK_SAMPLES, dtype="float32", always_2d=True)):
            blocks.append(block.mean(axis=1))
    pcm = np.concatenate(blocks) if blocks else np.zeros(0, np.float32)
    if not len(pcm):
        raise AudioError(f"{path} holds no samples; expected some sound")
    if not np.isfinite(pcm).all():
        raise AudioError(f"{path} holds NaN or infinite samples; export it again as 16-bit wav")
    return resample(pcm, from_hz, sample_rate_hz)


def audio_info(path: str | Path) -> tuple[int, int]:
    """Sample rate in Hz and samples per channel as the file's header tells; errors as `read_audio`'s."""
    with _opened(path) as file:
        return file.samplerate, file.frames


@contextlib.contextmanager
def _opened(path: str | Path) -> "Iterator[soundfile.SoundFile]":
    import soundfile

    path = Path(path)
    if not path.is_file():
        raise AudioError(f"{path} is {'no regular file' if path.exists() else 'missing'}; expected a sound file")

    class ForwardFile(soundfile.SoundFile):
        """Reads without seeking, which libsndfile cannot do in a FLAC file of unknown length."""

        def seekable(self) -> bool:
            return False

    try:
        with ForwardFile(str(path)) as file:
            yield file
    except soundfile.LibsndfileError as error:
        raise AudioError(
            f"cannot read {path} ({error.error_string.rstrip('.')}); expected wav, flac, mp3, ogg or aiff: "
            f"convert it with 'ffmpeg -i {path.name} {path.stem}-new.wav'"
        ) from None


def resample(pcm: np.ndarray, from_hz: int, to_hz: int) -> np.ndarray:
    """`pcm` at another sample rate: float32, about `len(pcm) * to_hz / from_hz` samples."""
    if from_hz <= 0 or to_hz <= 0:
        raise AudioError(f"cannot resample from {from_hz} Hz to {to_hz} Hz; expected rates above 0")
    pcm = np.asarray(pcm, dtype=np.float32)
    if from_hz == to_hz or not len(pcm):
        return pcm
    import soxr

    return soxr.resample(pcm, from_hz, to_hz, quality="VHQ")


def pad_to_frames(pcm: np.ndarray, frame_size: int) -> np.ndarray:
    """`pcm` (n_samples,) with silence after it, so that its length is a multiple of `frame_size` samples."""
    return np.pad(pcm, (0, -len(pcm) % frame_size))


def format_of(path: str | Path) -> Format:
    """The format that a file's ending names; `AudioError` lists the known endings."""
    ending = Path(path).suffix.lower().removeprefix(".")
    if ending not in FORMATS:
        given = f"has the ending .{ending}" if ending else "has no ending"
        raise AudioError(f"{path} {given}; expected one of {', '.join('.' + f for f in FORMATS)}")
    return cast(Format, ending)


def write_audio(path: str | Path, pcm: np.ndarray, sample_rate_hz: int, format: Format | None = None) -> None:
    """Write a whole sound, or nothing: on any error an older file at `path` stays as it was."""
    writer = AudioWriter(path, sample_rate_hz, format)
    try:
        writer.write(pcm)
        if not writer.n_samples:
            raise AudioError(f"nothing to write into {path}: 0 samples")
        writer.close()
    except BaseException:
        writer.discard()
        raise


class AudioWriter:
    """Appends PCM to a sound file as it is made; wav and flac hold 16 bits, mp3 80 kbit/s.

    `target` is a path, a binary stream, or `"-"` for stdout; streams take WAV only, with an unknown length in its
    header. Until `close()` a file grows beside its place as `NAME.….part.wav`, playable at any moment. Leaving the
    `with` block closes it, on an exception and on Ctrl-C too: what was written is kept. If nothing was written, nothing
    is touched. A full disk or a reader that went away is an `AudioError`.
    """

    def __init__(self, target: str | Path | BinaryIO, sample_rate_hz: int, format: Format | None = None):
        if format is not None and format not in FORMATS:
            raise AudioError(f"format is {format!r}, expected one of {', '.join(FORMATS)}")
        self.sample_rate_hz = sample_rate_hz
        self.n_samples = 0
        self._closed = False
        self._sink: _Sink
        if target != "-" and isinstance(target, str | Path):
            self._sink = _FileSink(Path(target), sample_rate_hz, format or format_of(target))
        elif format in (None, "wav"):
            stream = sys.stdout.buffer if target == "-" else cast(BinaryIO, target)
            self._sink = _StreamSink(stream, sample_rate_hz)
        else:
            raise AudioError(f"a stream takes wav, not {format}; name a file instead, such as out.{format}")

    def write(self, pcm: np.ndarray) -> None:
        """Append `pcm` (n_samples,), clipped to [-1, 1]."""
        if self._closed:
            raise AudioError("this AudioWriter is closed; make a new one for another sound")
        pcm = np.asarray(pcm, dtype=np.float32)
        if pcm.ndim != 1:
            raise AudioError(f"PCM has the shape {pcm.shape}, expected (n_samples,)")
        if not np.isfinite(pcm).all():
            raise AudioError("PCM holds NaN or infinite samples; nothing of it was written")
        if len(pcm):
            # 32768 is also what readers divide by, so that a 16-bit file survives reading and writing bit for bit.
            self._sink.write(np.clip(np.rint(pcm * 32768.0), -32768, 32767).astype("<i2"))
            self.n_samples += len(pcm)

    def close(self) -> None:
        """Finish the file and move it into its place; a second call does nothing."""
        if not self._closed:
            self._closed = True
            self._sink.close()

    def discard(self) -> None:
        """Throw away what was written; a file that was there before stays."""
        self._closed = True
        self._sink.discard()

    def __enter__(self) -> "Self":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


class _Sink(Protocol):
    def write(self, samples: np.ndarray) -> None: ...
    def close(self) -> None: ...
    def discard(self) -> None: ...


def _wav_header(sample_rate_hz: int, n_bytes: int | None) -> bytes:
    """RIFF header of 16-bit mono; with `n_bytes` None its sizes say "to the end", which players understand."""
    n_riff, n_data = (_UNKNOWN_LENGTH, _UNKNOWN_LENGTH) if n_bytes is None else (n_bytes + 36, n_bytes)
    fmt = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, sample_rate_hz, sample_rate_hz * 2, 2, 16)
    return struct.pack("<4sI4s", b"RIFF", n_riff, b"WAVE") + fmt + struct.pack("<4sI", b"data", n_data)


class _StreamSink:
    """WAV into a stream that cannot seek."""

    def __init__(self, stream: BinaryIO, sample_rate_hz: int):
        self._stream = stream
        self._pending_header = _wav_header(sample_rate_hz, None)

    def write(self, samples: np.ndarray) -> None:
        try:
            self._stream.write(self._pending_header + samples.tobytes())
            self._stream.flush()
        except OSError as error:
            raise AudioError(f"cannot write to the stream: {error.strerror}; its reader may have gone") from error
        self._pending_header = b""

    def close(self) -> None:
        """The stream is the caller's."""

    def discard(self) -> None:
        """What a stream has taken cannot be taken back."""


class _WavFile:
    """A WAV file that is playable while it grows: its length is unknown until `close`."""

    def __init__(self, path: Path, sample_rate_hz: int):
        self._file = path.open("wb", buffering=0)
        self._sample_rate_hz = sample_rate_hz
        try:
            self._put(_wav_header(sample_rate_hz, None))
        except OSError:
            self._file.close()
            raise

    def _put(self, data: bytes) -> None:
        while data:  # an unbuffered file may take a part only
            data = data[self._file.write(data) :]

    def write(self, samples: np.ndarray) -> None:
        self._put(samples.tobytes())

    def close(self) -> None:
        if self._file.closed:
            return
        n_bytes = (self._file.tell() - _WAV_HEADER_BYTES) // 2 * 2  # a full disk may have cut a sample in two
        if 0 <= n_bytes < _UNKNOWN_LENGTH - 36:
            self._file.seek(0)
            self._put(_wav_header(self._sample_rate_hz, n_bytes))
        self._file.close()


class _FileSink:
    """A file made under a temporary name beside its place, and moved there by `close`."""

    def __init__(self, path: Path, sample_rate_hz: int, format: Format):
        self._path = path.resolve()  # so that a link's target is replaced, not the link
        self._sample_rate_hz = sample_rate_hz
        self._format = format
        self._part = self._path.with_name(f"{self._path.stem}.{secrets.token_hex(4)}.part.{format}")
        self._file: _WavFile | soundfile.SoundFile | None = None
        if not self._path.parent.is_dir():
            raise AudioError(f"cannot write {path}: its folder is missing; make it with 'mkdir -p {path.parent}'")
        if self._path.exists() and not self._path.is_file():
            raise AudioError(f"cannot write {path}: it is no regular file; name a file, or - for stdout")

    def write(self, samples: np.ndarray) -> None:
        with self._refusals():
            if self._file is None:
                self._file = self._open()
            self._file.write(samples)

    def _open(self) -> "_WavFile | soundfile.SoundFile":
        import soundfile

        self._part.open("xb").close()  # because libsndfile does not say why it cannot open
        # A constant bit rate lets players tell the length of an mp3 that was never closed.
        rate = {"bitrate_mode": "CONSTANT", "compression_level": 0.5} if self._format == "mp3" else {}
        try:
            if self._format == "wav":
                return _WavFile(self._part, self._sample_rate_hz)
            return soundfile.SoundFile(
                str(self._part), "w", self._sample_rate_hz, channels=1, format=self._format.upper(), **rate
            )
        except BaseException:
            self._part.unlink()
            raise

    @contextlib.contextmanager
    def _refusals(self) -> Iterator[None]:
        import soundfile

        try:
            yield
        except OSError as error:
            raise AudioError(f"cannot write {self._path}: {error.strerror}") from error
        except soundfile.LibsndfileError as error:
            reason = error.error_string.rstrip(".")
            raise AudioError(f"cannot write {self._path} at {self._sample_rate_hz} Hz: {reason}") from error

    def close(self) -> None:
        if self._file is not None:
            with self._refusals():
                self._file.close()
                os.replace(self._part, self._path)

    def discard(self) -> None:
        if self._file is not None:
            with self._refusals():
                self._part.unlink(missing_ok=True)
                self._file.close()
