"""Turns and the prompt rows they become, as CSM was trained on them (Sesame's `generator.py`), and the delays between
the streams of Moshi.

A turn is `[speaker]text` between begin and end tokens, one row per token, then one row per frame of its sound and a
row of zeros, the end frame. Turns follow each other with nothing between.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from csm_mlx.config import CsmConfig
from csm_mlx.errors import AudioError, ConfigError
from csm_mlx.tokenizer import Tokenizer

END_CODE = 0
"""A frame of nothing but this ends the sound of a turn."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Turn:
    """What one speaker said.

    speaker: a small number, 0 or 1 in Sesame's own prompts.
    text: the words, without the speaker's tag.
    pcm: (n_samples,) float32 at the codec's rate, or None.
    codes: (n_frames, n_codebooks) int32 of that sound where it is encoded already; wins over `pcm`.
    """

    speaker: int
    text: str
    pcm: np.ndarray | None = None
    codes: np.ndarray | None = None

    def __post_init__(self) -> None:
        check_speaker(self.speaker)
        if self.pcm is not None:
            check_pcm(self.pcm)
        if not self.text.strip() and self.pcm is None and self.codes is None:
            raise ConfigError("a turn has neither text nor sound; give it one of them")


@dataclass(frozen=True, eq=False)
class TurnRows:
    """The rows of one turn: `text_ids`, then `codes` (n_frames, n_codebooks) and the end frame, or no sound."""

    text_ids: tuple[int, ...]
    codes: np.ndarray | None

    @property
    def n_rows(self) -> int:
        return len(self.text_ids) + (0 if self.codes is None else len(self.codes) + 1)

    def audio_rows(self) -> np.ndarray:
        """(n_frames + 1, n_codebooks) int32: the frames and the end frame."""
        assert self.codes is not None
        return np.concatenate([self.codes, np.full((1, self.codes.shape[1]), END_CODE, np.int32)])


def check_speaker(speaker: int) -> None:
    """`ConfigError` unless it is a whole number from 0 on."""
    if not isinstance(speaker, int) or isinstance(speaker, bool) or speaker < 0:
        raise ConfigError(f"speaker is {speaker!r}, expected a whole number from 0 on")


def check_pcm(pcm: np.ndarray) -> None:
    """`AudioError` unless it is sound: (n_samples,) of finite floats, one or more."""
    kind = pcm.dtype if isinstance(pcm, np.ndarray) else type(pcm).__name__
    if not isinstance(pcm, np.ndarray) or not np.issubdtype(pcm.dtype, np.floating):
        raise AudioError(f"pcm is {kind}, expected a float32 array in [-1, 1]; divide 16-bit samples by 32768")
    if pcm.ndim != 1 or not pcm.size:
        raise AudioError(f"pcm has shape {pcm.shape}, expected (n_samples,) with at least one sample")
    if not np.isfinite(pcm).all():
        raise AudioError("pcm holds NaN or infinite samples, expected numbers in [-1, 1]; record or export it again")


def check_codes(codes: np.ndarray, config: CsmConfig) -> np.ndarray:
    """The codes as int32; `AudioError` unless they are (n_frames, n_codebooks) of ids that the codec knows."""
    codes = np.asarray(codes)
    if codes.ndim != 2 or codes.shape[1] != config.n_codebooks or not np.issubdtype(codes.dtype, np.integer):
        raise AudioError(
            f"codes have shape {codes.shape} and type {codes.dtype}, expected (n_frames, {config.n_codebooks}) integers"
        )
    if codes.size and not 0 <= codes.min() <= codes.max() < config.codebook_size:
        raise AudioError(f"codes lie in {codes.min()} … {codes.max()}, expected 0 … {config.codebook_size - 1}")
    return codes.astype(np.int32)


def text_ids(text: str, speaker: int, tokenizer: Tokenizer, config: CsmConfig) -> tuple[int, ...]:
    """Ids of one turn's text with its speaker's tag, begin and end tokens included."""
    check_speaker(speaker)
    return tuple(tokenizer.encode(config.speaker_format.format(speaker=speaker) + text.strip()))


def is_end(codes: np.ndarray) -> bool:
    """Whether a frame (n_codebooks,) ends the turn.

    As in transformers the last codebook is not asked: after zeros in all the others it says nothing, and a stray
    code there would let the model run on past its end.
    """
    return not codes[:-1].any()


class DelayLine:
    """Shifts each stream of frames by its own number of frames, and back: acoustic codes follow semantic ones."""

    def __init__(self, delays: Sequence[int]):
        """delays: of each stream, in frames."""
        self.delays = tuple(delays)
        self.max_delay = max(self.delays, default=0)

    def delayed(self, frames: np.ndarray, fill: Sequence[int]) -> np.ndarray:
        """frames (T, K) as (T + max_delay, K); `fill` (K,) stands where a stream has not begun or has ended."""
        out = np.tile(np.asarray(fill, frames.dtype), (len(frames) + self.max_delay, 1))
        for k, delay in enumerate(self.delays):
            out[delay : delay + len(frames), k] = frames[:, k]
        return out

    def undelayed(self, frames: np.ndarray) -> np.ndarray:
        """frames (T + max_delay, K) as (T, K) that belong together; `delayed` backwards."""
        n = max(0, len(frames) - self.max_delay)
        return np.stack([frames[delay : delay + n, k] for k, delay in enumerate(self.delays)], axis=1)
