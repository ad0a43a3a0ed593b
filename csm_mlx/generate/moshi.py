"""Conversations in which both sides may speak at any time: what a programmer holds of Moshi and Hibiki."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypedDict

import mlx.core as mx
import numpy as np

from csm_mlx.config import SamplingConfig
from csm_mlx.errors import AudioError, ConfigError
from csm_mlx.generate.duplex import DuplexState, TokenSession
from csm_mlx.generate.monologue import TextRules
from csm_mlx.models.loaded import Loaded
from csm_mlx.models.mimi import State
from csm_mlx.models.moshi import MoshiModel
from csm_mlx.stored import MoshiCheckpointConfig
from csm_mlx.tokenizer import PieceStream, SpmTokenizer


@dataclass(frozen=True, eq=False)
class Moshi(Loaded[MoshiModel, SpmTokenizer, MoshiCheckpointConfig]):
    """A loaded checkpoint. One serves many sessions; it holds no state of theirs."""

    def session(
        self,
        *,
        seed: int = 0,
        text: SamplingConfig | None = None,
        audio: SamplingConfig | None = None,
        conditions: Mapping[str, str] | None = None,
        repetition_penalty: float = 1.0,
        repetition_context: int = 64,
        pad_bias: float = 0.0,
        batch: int = 1,
    ) -> "MoshiSession":
        """A new conversation. The same seed and the same sound give the same answers.

        text, audio: how tokens and codes are drawn; the checkpoint's own by default. conditions: one value for each of
        the model's, by name. The others are those of `TextRules`. batch: conversations held at once (`step_rows`).
        ConfigError for values out of range, and for a model that only transcribes.
        """
        if not self.config.moshi.n_generated:
            raise ConfigError(f"{self.path} only writes down what it hears; it takes part in no conversation")
        if not isinstance(batch, int) or batch < 1:
            raise ConfigError(f"batch is {batch!r}, expected a whole number from 1 on")
        rules = TextRules(
            repetition_penalty=repetition_penalty, repetition_context=repetition_context, pad_bias=pad_bias
        )
        tokens = TokenSession(
            self.model,
            batch=batch,
            seed=seed,
            text=text or self.config.text_sampling,
            audio=audio or self.config.audio_sampling,
            conditions=conditions,
            rules=rules,
        )
        return MoshiSession(self, tokens, batch)


class MoshiState(TypedDict):
    """All of a conversation, as data: keeping one costs nothing until the session goes on, then one copy of it."""

    tokens: DuplexState
    encoder: State | None
    decoder: State | None
    pending: tuple[bytes, ...]
    """Of each row, of a character of which more bytes are to come."""


@dataclass(frozen=True)
class MoshiStats:
    """What a conversation cost so far; times of the monotonic clock on this machine."""

    n_frames: int
    sound_s: float
    work_s: float
    """Spent in steps, without the time that frames took to come."""
    last_s: float
    """Of that, in the last step."""

    @property
    def real_time_factor(self) -> float | None:
        """Seconds of work per second of sound; below 1 is faster than real time."""
        return self.work_s / self.sound_s if self.sound_s else None


class MoshiSession:
    """One conversation, frame by frame, without an end. Use it from one thread, the one that owns MLX.

    A frame is answered in the step that hears it. Its semantic codes are said with it and its acoustic ones up to
    `max(delays)` steps later, and a frame is sound once all of its codes are there. So words that answer a frame begin
    that many frames after its end: with Moshi's delay of one, 160 ms after its beginning, its own 80 ms included. A
    session begins with a step of its own, so that the first `max(delays) - 1` frames said are silence: none for Moshi,
    one for Hibiki, whose delay is two.
    """

    def __init__(self, moshi: Moshi, tokens: TokenSession, batch: int):
        """Made by `Moshi.session`."""
        self._moshi, self._tokens, self._batch = moshi, tokens, batch
        c = moshi.config.moshi
        self._silent_ids = (c.text_pad_id, c.text_word_id)
        self._streams = [PieceStream(moshi.tokenizer) for _ in range(batch)]
        self._encoder: State | None = None
        self._decoder: State | None = None
        self._text_ids = np.zeros(batch, np.int32)
        self._codes = np.full((batch, c.n_generated), c.codebook_size, np.int32)
        self._n_frames, self._work_s, self._last_s = 0, 0.0, 0.0

    def step(self, frame: np.ndarray) -> tuple[np.ndarray, str | None]:
        """Hear 80 ms and say 80 ms.

        frame: (frame_size,) floats in [-1, 1] at `sample_rate_hz`. Returns (frame_size,) float32 in [-1, 1], and what
        it adds to the text: a word or a piece of one with the space before it, None where there is none. AudioError for
        sound of another shape. Waits for the device once.
        """
        self._require_one()
        pcm, pieces = self.step_rows(np.asarray(frame)[None])
        return pcm[0], pieces[0]

    def step_codes(self, codes: np.ndarray | mx.array) -> tuple[np.ndarray, str | None]:
        """As `step`, for who has Mimi's codes of the frame already: (n_heard,) of its first codebooks."""
        self._require_one()
        pcm, pieces = self._said(codes, time.perf_counter())
        return pcm[0], pieces[0]

    def end(self) -> tuple[np.ndarray, str | None]:
        """As `step`, with a frame that says that the other side's sound is over: Hibiki then translates what it still
        has to, while it hears silence, and ends its text with the tokenizer's `eos_id`. Moshi does not know it."""
        c = self._moshi.config.moshi
        return self.step_codes(np.full(c.n_heard, c.codebook_size))

    def step_rows(self, frames: np.ndarray) -> tuple[np.ndarray, tuple[str | None, ...]]:
        """`step` for all conversations of a batch: frames (B, frame_size); as many, and a text of each."""
        began_s = time.perf_counter()
        size, shape = self._moshi.frame_size, np.shape(frames)
        if shape != (self._batch, size) or not np.issubdtype(frames.dtype, np.floating):
            raise AudioError(
                f"a frame of shape {shape[1:]} and type {frames.dtype} was heard, expected {size} floats in [-1, 1]"
                + (f" for each of {self._batch} conversations" if self._batch > 1 or shape[:1] != (1,) else "")
            )
        if not np.isfinite(frames).all():
            raise AudioError("a frame holds NaN or infinite samples, expected numbers in [-1, 1]")
        pcm = mx.array(frames.astype(np.float32))[..., None]
        n_heard = self._moshi.config.moshi.n_heard
        codes, self._encoder = self._moshi.codec.encode(pcm, self._encoder, n_codebooks=n_heard)
        mx.async_eval(codes, self._encoder)  # it runs while the next graph is built; so do the others
        return self._said(codes[:, 0], began_s)

    def _said(self, codes: np.ndarray | mx.array, began_s: float) -> tuple[np.ndarray, tuple[str | None, ...]]:
        """What is said to codes (B, n_heard): pcm (B, frame_size) and the pieces of text."""
        moshi, step = self._moshi, self._tokens.step(codes)
        if step.codes is None:
            pcm = np.zeros((self._batch, moshi.frame_size), np.float32)
            mx.eval(step.text)
        else:
            sound, self._decoder = moshi.codec.decode(step.codes[:, None], self._decoder)
            mx.async_eval(self._decoder)
            mx.eval(sound, step.text, step.codes)
            pcm = np.clip(np.array(sound[..., 0], np.float32), -1.0, 1.0)
            self._codes = np.array(step.codes)
        self._text_ids = np.array(step.text)
        pieces = tuple(map(self._piece, self._streams, self._text_ids.tolist()))
        self._n_frames += 1
        self._last_s = time.perf_counter() - began_s
        self._work_s += self._last_s
        return pcm, pieces

    def _piece(self, stream: PieceStream, token: int) -> str | None:
        return None if token in self._silent_ids else stream.put(token) or None

    def _require_one(self) -> None:
        if self._batch > 1:
            raise ConfigError(f"this session holds {self._batch} conversations; step_rows is for all of them")

    @property
    def text_ids(self) -> np.ndarray:
        """(B,) int32: the text tokens of the last step, pads and word marks included."""
        return self._text_ids

    @property
    def codes(self) -> np.ndarray:
        """(B, n_generated) int32: what the sound of the last step was decoded from; `codebook_size` where it was the
        silence before the first codes."""
        return self._codes

    @property
    def stats(self) -> MoshiStats:
        sound_s = self._n_frames * self._moshi.frame_size / self._moshi.sample_rate_hz
        return MoshiStats(self._n_frames, sound_s, self._work_s, self._last_s)

    def snapshot(self) -> MoshiState:
        """The conversation at this moment, for `rewind`."""
        pending = tuple(stream.pending for stream in self._streams)
        return {"tokens": self._tokens.state, "encoder": self._encoder, "decoder": self._decoder, "pending": pending}

    def rewind(self, state: MoshiState) -> None:
        """Back to a snapshot of this session, its randomness included; `stats` go on."""
        self._tokens.state = state["tokens"]
        self._encoder, self._decoder = state["encoder"], state["decoder"]
        for stream, pending in zip(self._streams, state["pending"], strict=True):
            stream.pending = pending
