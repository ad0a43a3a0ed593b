"""Clips as codes, made once; examples as rows; and which examples make which step."""

import contextlib
import hashlib
import io
import os
import secrets
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import mlx.core as mx
import numpy as np

from csm_mlx import __version__
from csm_mlx.audio import read_audio
from csm_mlx.checkpoint.save import write_error
from csm_mlx.errors import AudioError, ConfigError
from csm_mlx.frames import TurnRows, check_codes
from csm_mlx.generate.session import Csm
from csm_mlx.quantize import named_parameters
from csm_mlx.train.manifest import Example

ORDER, FRAMES, VALIDATION_FRAMES = 0, 1, 2
"""What a draw is for: the same seed gives each its own."""

OnClip = Callable[[int, int], None]
"""Called with (clips so far, clips in all)."""


@dataclass(frozen=True, eq=False)
class EncodedExample:
    """An example as rows of the prompt."""

    where: str
    turns: tuple[TurnRows, ...]
    """The context, oldest first; the last one, with codes, is what is learnt."""

    @property
    def turn_rows(self) -> tuple[int, ...]:
        """Positions of each turn."""
        return tuple(turn.n_rows for turn in self.turns)

    @property
    def n_frames(self) -> int:
        """Frames to learn, the end frame included."""
        codes = self.turns[-1].codes
        return 0 if codes is None else len(codes) + 1

    def fitted(self, max_rows: int) -> "EncodedExample":
        """The example without the oldest turns that do not fit; `ConfigError` when the last one does not either."""
        n_kept = n_fitting(self.turn_rows, max_rows)
        if not n_kept:
            raise ConfigError(
                f"{self.where} takes {self.turn_rows[-1]} positions, expected at most {max_rows}; cut its clip, "
                "or allow more with max_rows"
            )
        return self if n_kept == len(self.turns) else replace(self, turns=self.turns[-n_kept:])


def n_fitting(turn_rows: Sequence[int], max_rows: int) -> int:
    """How many of the last turns fit into `max_rows` positions."""
    totals = np.cumsum(np.asarray(turn_rows)[::-1])
    return int((totals <= max_rows).sum())


def encode_examples(
    csm: Csm, examples: Sequence[Example], *, cache: Path, on_clip: OnClip | None = None
) -> list[EncodedExample]:
    """The examples of a manifest with their clips as codes, which are kept in the folder `cache`.

    A clip is known by its bytes and by the codec's weights; a file of the cache that is broken is made again. Clips at
    another rate are resampled. Raises CheckpointError when the cache cannot be written.
    """
    codec_hash, codes = _codec_hash(csm), {}
    paths = dict.fromkeys(turn.clip.path for example in examples for turn in example.turns if turn.clip)
    for n_done, path in enumerate(paths, 1):
        codes[path] = _codes(csm, path, cache, codec_hash)
        if on_clip is not None:
            on_clip(n_done, len(paths))
    return [
        EncodedExample(
            example.where,
            tuple(TurnRows(turn.text_ids, codes[turn.clip.path] if turn.clip else None) for turn in example.turns),
        )
        for example in examples
    ]


def _codec_hash(csm: Csm) -> bytes:
    digest = hashlib.sha256(f"{__version__} {csm.codec.config} {csm.config.csm.n_codebooks}".encode())
    for name, weights in sorted(named_parameters(csm.codec).items()):
        digest.update(name.encode())
        digest.update(np.array(weights).tobytes())
    return digest.digest()


def _codes(csm: Csm, path: Path, cache: Path, codec_hash: bytes) -> np.ndarray:
    try:
        key = hashlib.sha256(codec_hash + path.read_bytes()).hexdigest()
    except OSError as error:
        raise AudioError(f"cannot read {path}: {error.strerror}; it was there when the manifest was read") from None
    file = cache / f"{key}.npz"
    try:
        held = np.load(io.BytesIO(file.read_bytes()))  # a zip file, whose checksums tell what is broken
        return check_codes(held["codes"], csm.config.csm)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error, AudioError):
        codes = check_codes(csm.encode(read_audio(path, csm.sample_rate_hz)), csm.config.csm)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, codes=codes)
    part = file.with_suffix(f".{secrets.token_hex(4)}.part")
    try:
        cache.mkdir(parents=True, exist_ok=True)
        part.write_bytes(buffer.getbuffer())
        os.replace(part, file)
    except OSError as error:
        raise write_error(file, error) from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
    return codes


def data_hash(*groups: Sequence[EncodedExample]) -> str:
    """Of all that is trained on and validated with, in order."""
    digest = hashlib.sha256()
    for group in groups:
        digest.update(f"group of {len(group)};".encode())
        for example in group:
            for turn in example.turns:
                shape = None if turn.codes is None else turn.codes.shape
                digest.update(f"{turn.text_ids} {shape};".encode())
                digest.update(b"" if turn.codes is None else turn.codes.tobytes())
    return digest.hexdigest()


def step_examples(seed: int, step: int, n_examples: int, n_per_step: int) -> list[int]:
    """Indices of the examples of step 0, 1, …: one permutation after the other, each of all examples."""
    indices, position = [], step * n_per_step
    while len(indices) < n_per_step:
        epoch, start = divmod(position + len(indices), n_examples)
        order = np.random.default_rng([seed, ORDER, epoch]).permutation(n_examples)
        indices += order[start : start + n_per_step - len(indices)].tolist()
    return indices


def chosen_frames(seed: int, purpose: int, step: int, index: int, n_frames: int, share: float) -> np.ndarray:
    """The frames of example `index`, at least one, on which the codebooks after the first are learnt in a step.

    A function of what is learnt, never of where: rank and place in the batch change nothing.
    """
    n_chosen = n_chosen_frames(n_frames, share)
    rng = np.random.default_rng([seed, purpose, step, index])
    return np.sort(rng.choice(n_frames, n_chosen, replace=False))


def n_chosen_frames(n_frames: int, share: float) -> int:
    return min(n_frames, max(1, round(share * n_frames)))


@dataclass(frozen=True, eq=False)
class Batch:
    """Examples side by side, padded on the right."""

    text_ids: mx.array
    """(n_text,) int32 of all turns."""
    codes: mx.array
    """(n_audio, n_codebooks) int32 of all turns, end frames included."""
    layout: mx.array
    """(B, T) int32: which row stands where, text ids counted first, then codes, then one row of padding."""
    own: mx.array
    """(n_own,) int32: which rows of `codes` are to be learnt."""
    before: mx.array
    """(n_own,) int32: the position, in B * T, from which each of them is predicted."""
    chosen: mx.array
    """(n_chosen,) int32: which of those are learnt to the last codebook."""

    @property
    def n_own(self) -> int:
        return self.own.shape[0]

    @property
    def n_chosen(self) -> int:
        return self.chosen.shape[0]


def make_batch(examples: Sequence[EncodedExample], chosen: Sequence[np.ndarray]) -> Batch:
    """chosen: per example, the frames that are learnt to the last codebook."""
    text_ids: list[int] = []
    codes: list[np.ndarray] = []
    rows: list[np.ndarray] = []
    own, before, picked, n_own, n_audio = [], [], [], 0, 0
    width = max(sum(example.turn_rows) for example in examples)
    for b, (example, frames) in enumerate(zip(examples, chosen, strict=True)):
        row: list[np.ndarray] = []
        for turn in example.turns:
            row.append(np.arange(len(text_ids), len(text_ids) + len(turn.text_ids)))
            text_ids += turn.text_ids
            if turn.codes is not None:
                codes.append(turn.audio_rows())
                row.append(-1 - np.arange(n_audio, n_audio + len(codes[-1])))  # negative until text is counted
                n_audio += len(codes[-1])
        rows.append(np.concatenate(row))
        own.append(np.arange(n_audio - example.n_frames, n_audio))
        first = len(rows[-1]) - example.n_frames
        before.append(b * width + first - 1 + np.arange(example.n_frames))
        picked.append(n_own + frames)
        n_own += example.n_frames
    layout = np.full((len(examples), width), len(text_ids) + n_audio)
    for b, places in enumerate(rows):
        layout[b, : len(places)] = np.where(places < 0, len(text_ids) - 1 - places, places)
    return Batch(
        text_ids=mx.array(np.array(text_ids, np.int32)),
        codes=mx.array(np.concatenate(codes).astype(np.int32)),
        layout=mx.array(layout.astype(np.int32)),
        own=_ids(own),
        before=_ids(before),
        chosen=_ids(picked),
    )


def _ids(parts: list[np.ndarray]) -> mx.array:
    return mx.array(np.concatenate(parts).astype(np.int32))
