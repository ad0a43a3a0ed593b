"""One utterance: frames drawn one by one, decoded as they come, guarded against the ways in which CSM goes wrong."""

import math
import time
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Literal, NamedTuple

import mlx.core as mx
import numpy as np

from csm_mlx.config import MimiConfig, SamplingConfig
from csm_mlx.errors import ContextError, GenerationError
from csm_mlx.frames import is_end
from csm_mlx.generate.context import Context, ContextSnapshot
from csm_mlx.generate.frame import sample_frame
from csm_mlx.generate.tail import Tail, is_silent
from csm_mlx.models.csm import CsmModel
from csm_mlx.models.mimi import Mimi
from csm_mlx.nn.cache import CacheState
from csm_mlx.sampling import Sampler

N_RETRIES = 3
"""New keys tried when the first frame is an end frame."""
MAX_SILENCE_S = 3.0
MAX_REPEATS = 10
"""Equal frames in a row after which the model is stuck."""
MIN_LIMIT_S = 4.0
LIMIT_S_PER_CHARACTER = 0.15
"""Twice what unhurried English takes."""
EXPECTED_S_PER_CHARACTER = 0.08
MIN_FRAMES = 12

Stop = Literal["end", "length", "silence", "repeat", "closed"]


@dataclass(frozen=True)
class SpeechStats:
    """What an utterance cost; times of the monotonic clock on this machine."""

    n_frames: int
    sound_s: float
    """Of what was handed out."""
    prefill_s: float
    """From the start to the state that predicts the first frame."""
    first_audio_s: float | None
    """From the start to the first sample handed out; None if there was none."""
    work_s: float
    """Spent making it, without the time that the listener took between chunks."""
    stop: Stop | None
    """Why it ended: the end frame, the length limit, a guard, or the listener; None while it goes on."""
    n_retries: int

    @property
    def real_time_factor(self) -> float | None:
        """Seconds of work per second of sound; below 1 is faster than real time."""
        return self.work_s / self.sound_s if self.sound_s else None


def expected_frames(text: str, frame_rate_hz: float) -> int:
    """How many frames a text is likely to take: what the context makes room for."""
    return math.ceil(max(MIN_LIMIT_S / 2, EXPECTED_S_PER_CHARACTER * len(text)) * frame_rate_hz)


def limit_frames(text: str, frame_rate_hz: float) -> int:
    """How many frames a text may take before the model has lost its end."""
    return math.ceil(max(MIN_LIMIT_S, LIMIT_S_PER_CHARACTER * len(text)) * frame_rate_hz)


class Guards:
    """Which of the frames drawn are said, and when an utterance is over: at its end frame, its limit, or where the
    model is stuck or has fallen silent. Takes a frame, then its sound, and so on."""

    def __init__(self, text: str, sampling: SamplingConfig, codec: MimiConfig, limit: int = 0):
        self._text, self._codec = text, codec
        self._max_retries = 0 if sampling.temperature == 0 else N_RETRIES
        self._n_silent = self._n_repeats = 0
        self.limit = limit
        """The most frames that it may have; known once the context has made room."""
        self.codes: list[np.ndarray] = []
        """Frames (n_codebooks,) that are said."""
        self.stop: Stop | None = None
        self.n_retries = 0

    def retries(self, first: np.ndarray) -> bool:
        """Whether the first frame (n_codebooks,) is to be drawn again, because it is an end frame; GenerationError once
        that was tried often enough."""
        if not is_end(first):
            return False
        if self.n_retries == self._max_retries:
            n_tries = 1 + self._max_retries
            raise GenerationError(
                f"the model ended its turn before the first frame of {self._text!r:.60}, in {n_tries} of {n_tries} "
                "tries; try another seed, a temperature above 0, or a voice with a longer reference"
            )
        self.n_retries += 1
        return True

    def take(self, frame: np.ndarray) -> bool:
        """The next frame drawn (n_codebooks,); whether it is said, and not the end frame."""
        if is_end(frame):
            self.stop = "end"
            return False
        self._n_repeats = self._n_repeats + 1 if self.codes and np.array_equal(frame, self.codes[-1]) else 0
        self.codes.append(frame)
        return True

    def hear(self, pcm: np.ndarray) -> None:
        """The sound (frame_size,) of the frame just taken, which was handed out; sets `stop` where it was the last."""
        self._n_silent = self._n_silent + 1 if is_silent(pcm) else 0
        if self._n_repeats >= MAX_REPEATS:
            self._drop("repeat", self._n_repeats)
        elif self._n_silent * self._codec.frame_size >= MAX_SILENCE_S * self._codec.sample_rate_hz:
            self._drop("silence", self._n_silent - 1)
        elif len(self.codes) >= self.limit:
            self.stop = "length"

    def _drop(self, stop: Stop, n_frames: int) -> None:
        """Ends the turn without its last `n_frames`, in which nothing was said."""
        self.stop = stop
        del self.codes[len(self.codes) - n_frames :]


class Prefilled(NamedTuple):
    """An utterance before its first frame, taken out of its session."""

    hidden: mx.array
    """(1, dim), the state that predicts the first frame."""
    state: CacheState
    """The backbone's, of one row: all that was said before, and the text."""
    key: mx.array
    """Of its noise."""
    limit: int
    """The most frames that it may have."""


class Speech(Iterator[np.ndarray]):
    """An utterance as it is made: iterate over it for sound, (n_samples,) float32 in [-1, 1], about a frame at a time.

    Nothing is computed before the first `next`. `close()`, or the next use of its session, ends the turn where it is.
    What is heard is the codec's output of `codes`, with the trailing silence trimmed and the end faded.
    """

    def __init__(
        self,
        model: CsmModel,
        codec: Mimi,
        context: Context,
        *,
        text: str,
        text_ids: tuple[int, ...],
        max_frames: int | None,
        sampler: Sampler,
        key: mx.array,
    ):
        self._model, self._codec, self._context = model, codec, context
        self._text, self._text_ids = text, text_ids
        self._max_frames, self._sampler, self._key = max_frames, sampler, key
        self._guards = Guards(text, sampler.config, codec.config)
        self._n_samples = 0
        self._n_kept = 0
        self._prefill_s = self._work_s = 0.0
        self._first_audio_s: float | None = None
        self._generator = self._run()

    def __iter__(self) -> "Speech":
        return self

    def __next__(self) -> np.ndarray:
        started = time.perf_counter()
        try:
            while True:
                pcm = next(self._generator)
                if len(pcm):
                    break
        finally:
            self._work_s += time.perf_counter() - started
        if self._first_audio_s is None:
            self._first_audio_s = self._work_s
        self._n_samples += len(pcm)
        return pcm

    def close(self) -> None:
        """Ends the turn after the frames made so far, which stay in the session; harmless when it has ended."""
        self._generator.close()
        self._guards.stop = self._guards.stop or "closed"  # also where it never began

    def prefilled(self) -> Prefilled:
        """Its text in the context, for somebody who goes on with that elsewhere; instead of iterating, and the session
        has to be rewound. ContextError as when iterating."""
        hidden = self._open()
        return Prefilled(hidden, self._context.snapshot().state, self._key, self._guards.limit)

    @property
    def n_kept(self) -> int:
        """Frames of its turn that are in the session: none before it has ended."""
        return self._n_kept

    @property
    def codes(self) -> np.ndarray:
        """(n_frames, n_codebooks) int32 of the turn so far, without the end frame."""
        return np.array(self._guards.codes, np.int32).reshape(-1, self._model.config.n_codebooks)

    @property
    def stats(self) -> SpeechStats:
        """Of the utterance so far."""
        return SpeechStats(
            n_frames=len(self._guards.codes),
            sound_s=self._n_samples / self._codec.config.sample_rate_hz,
            prefill_s=self._prefill_s,
            first_audio_s=self._first_audio_s,
            work_s=self._work_s,
            stop=self._guards.stop,
            n_retries=self._guards.n_retries,
        )

    def _run(self) -> Generator[np.ndarray, None, None]:
        started = time.perf_counter()
        hidden = self._open()
        try:
            mx.eval(hidden)
            self._prefill_s = time.perf_counter() - started
            tail = Tail(self._codec.config.sample_rate_hz)
            with closing(self._frames(hidden)) as frames:
                for pcm in frames:
                    yield np.clip(tail.push(pcm), -1.0, 1.0)
            yield np.clip(tail.finish(), -1.0, 1.0)
        finally:
            if self._guards.stop is None:
                self._guards.stop = "closed"
            # The turn ends in the cache like one that was heard whole, whatever ended it here.
            self._context.close_turn(self.codes)
            self._n_kept = len(self._guards.codes)

    def _open(self) -> mx.array:
        self._guards.limit = self._reserve()
        return self._context.open_turn(self._text_ids)

    def _reserve(self) -> int:
        """Makes room in the context; the most frames that this utterance may have. An error forgets nothing."""
        frame_rate_hz = self._codec.config.frame_rate_hz
        limit = self._max_frames or limit_frames(self._text, frame_rate_hz)
        n_text = len(self._text_ids)
        n_reachable = self._context.reachable_positions - n_text - 1
        if n_reachable < min(limit, MIN_FRAMES):
            raise ContextError(
                f"the text takes {n_text} positions and leaves {max(0, n_reachable)} for its sound, of "
                f"{self._model.config.max_positions}; shorten the text or the voice's reference"
            )
        self._context.reserve(n_text + min(limit, expected_frames(self._text, frame_rate_hz)) + 1)
        return min(limit, self._context.free_positions - n_text - 1)

    def _frames(self, hidden: mx.array) -> Generator[np.ndarray, None, None]:
        """Decoded frames (frame_size,) until the guards say that it is over.

        While the device computes a frame and its sound, Python builds the graph of the next one, before it knows that
        there is one. It is queued once the sound is handed out: MLX lets Python wait in `async_eval` until but ten
        command buffers are left, and the sound would wait with it. A graph that is not queued costs nothing.
        """
        guards, codec_state = self._guards, None
        codes = self._first(hidden)
        before: ContextSnapshot | None = None
        try:
            while True:
                decoded, codec_state = self._codec.decode(codes[:, None], codec_state)
                mx.async_eval(decoded, codec_state)
                before, last = self._context.snapshot(), len(guards.codes) + 1 >= guards.limit
                following = None if last else self._built(self._context.step(codes))
                if not guards.take(np.array(codes)[0]):
                    return
                pcm = np.array(decoded, dtype=np.float32)[0, :, 0]
                yield pcm
                guards.hear(pcm)
                if guards.stop is not None or following is None:
                    return
                before = None  # else what the next frame writes into the cache would be written into a copy
                codes = self._queued(*following)
        finally:
            if before is not None:
                self._context.restore(before)

    def _built(self, hidden: mx.array) -> tuple[mx.array, mx.array]:
        """The frame that `hidden` predicts, (1, n_codebooks), and the key after it: a graph."""
        key, own = mx.random.split(self._key)
        return sample_frame(self._model, hidden, self._sampler, own), key

    def _queued(self, codes: mx.array, key: mx.array) -> mx.array:
        """What `_built` returned, on its way; the codes."""
        self._key = key
        # The key too: greedy sampling asks for none, and splits would pile up.
        mx.async_eval(codes, key, self._context.evaluated())
        return codes

    def _first(self, hidden: mx.array) -> mx.array:
        """The first frame, (1, n_codebooks), computed; tried again where it is an end frame."""
        while True:
            codes = self._queued(*self._built(hidden))
            if not self._guards.retries(np.array(codes)[0]):
                return codes
