"""Speech to text as it is spoken, by Kyutai's models: sound in, words with times out, a frame at a time.

Text follows sound by a delay. At the end of a turn `SttSession.flush` pushes silence through the model, faster than it
would come, until all that was said is told. That silence stays in the model's memory, as in Kyutai's own servers: were
it taken back, the last words would be told again, and perhaps otherwise. It is no part of the sound: words are timed
without it, and the codec, which others may listen to, never hears it.
"""

import math
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice

import mlx.core as mx
import numpy as np

from csm_mlx.config import SamplingConfig
from csm_mlx.errors import AudioError, ConfigError
from csm_mlx.frames import check_pcm
from csm_mlx.generate.duplex import TokenSession
from csm_mlx.generate.reader import (
    MAX_MORE_S,
    SUFFIX_S,
    Frame,
    Queued,
    Reader,
    SttStats,
    SttStep,
    Stuck,
    Transcript,
    merged,
    queue,
)
from csm_mlx.generate.tail import is_silent
from csm_mlx.generate.transcribe_batch import transcripts
from csm_mlx.generate.words import GUARD, GuardRule, PauseRule
from csm_mlx.models.loaded import Loaded
from csm_mlx.models.mimi import CHUNK_FRAMES, State
from csm_mlx.models.moshi import MoshiModel
from csm_mlx.stored import MoshiCheckpointConfig, SttConfig
from csm_mlx.tokenizer import SpmTokenizer


@dataclass(frozen=True, eq=False)
class Stt(Loaded[MoshiModel, SpmTokenizer, MoshiCheckpointConfig]):
    """A loaded checkpoint of a model that writes what it hears. One serves many sessions; it holds no state of theirs.

    `ConfigError` for a model that speaks.
    """

    def __post_init__(self) -> None:
        if self.config.stt is None:
            raise ConfigError(
                f"{self.path} says {self.model.config.n_generated} codebooks; transcribing needs a model that writes "
                "text alone, such as kyutai/stt-1b-en_fr"
            )

    @property
    def _timing(self) -> SttConfig:
        assert self.config.stt is not None
        return self.config.stt

    @property
    def delay_frames(self) -> int:
        """By which text follows the sound, as words are timed."""
        return int(self._timing.delay_s * self.codec.config.frame_rate_hz)

    @property
    def flush_frames(self) -> int:
        """Of silence that push out what the delay holds."""
        return math.ceil(self._timing.delay_s * self.codec.config.frame_rate_hz) + 1

    @property
    def prefix_frames(self) -> int:
        """Of silence that the model hears before any sound."""
        return math.ceil(self._timing.prefix_s * self.codec.config.frame_rate_hz)

    def reader(self, pause: PauseRule, guard: GuardRule | None) -> Reader:
        """Of one stream."""
        return Reader(
            self.model.config,
            self.tokenizer.decode,
            pause,
            guard,
            delay_frames=self.delay_frames,
            frame_rate_hz=self.codec.config.frame_rate_hz,
        )

    def session(
        self,
        *,
        seed: int = 0,
        sampling: SamplingConfig | None = None,
        pause: PauseRule | None = None,
        guard: GuardRule | None = GUARD,
    ) -> "SttSession":
        """A stream of sound to listen to. sampling: of the text, by default the checkpoint's own, which is greedy as a
        rule. guard: None lets the model be stuck. `ConfigError` for a seed that is none."""
        if not isinstance(seed, int) or not 0 <= seed < 1 << 64:
            raise ConfigError(f"seed is {seed!r}, expected a whole number from 0 to 2^64 - 1")
        return SttSession(self, seed, sampling or self.config.text_sampling, pause or PauseRule(), guard)

    def transcribe(
        self,
        pcm: np.ndarray,
        *,
        seed: int = 0,
        sampling: SamplingConfig | None = None,
        guard: GuardRule | None = GUARD,
    ) -> Transcript:
        """The words of a whole sound, (n_samples,) float32 at `sample_rate_hz`. `AudioError` for anything else."""
        session = self.session(seed=seed, sampling=sampling, guard=guard)
        steps = list(session.follow(pcm))
        return Transcript.of(steps, session.stats)

    def transcribe_batch(
        self,
        pcms: Sequence[np.ndarray],
        *,
        seed: int = 0,
        sampling: SamplingConfig | None = None,
        guard: GuardRule | None = GUARD,
    ) -> list[Transcript]:
        """The words of several whole sounds, heard in step, each as `transcribe` gives them; with a temperature above 0
        the draws are others. Sounds of like length lose the least."""
        sampling = self.session(seed=seed, sampling=sampling).sampling
        batch = transcripts(self, pcms, seed=seed, sampling=sampling, guard=guard)
        # A model that is stuck in one of them is freed where it is alone.
        return [
            one or self.transcribe(pcm, seed=seed, sampling=sampling, guard=guard)
            for one, pcm in zip(batch, pcms, strict=True)
        ]


class SttSession:
    """One stream of sound becoming text. It has no end, and many may share a model.

    Sound comes as PCM (`step`, `follow`) or as codes that `encode`, or another stream of the same codec, made of it
    (`step_codes`). Use it from one thread, the one that owns MLX.
    """

    def __init__(self, stt: Stt, seed: int, sampling: SamplingConfig, pause: PauseRule, guard: GuardRule | None):
        self._stt, self._seed, self.sampling, self._pause, self._guard = stt, seed, sampling, pause, guard
        self.reset()

    def reset(self) -> None:
        """Begins again, as a new session would."""
        self._reader = self._stt.reader(self._pause, self._guard)
        self._codec_state: State | None = None
        self._silent_prefix: list[Frame] = []
        if n := self._stt.prefix_frames:
            codes, self._codec_state = self._silence(n)
            self._silent_prefix = [Frame(row, "silence") for row in codes]
        self._kept: deque[Frame] = deque(maxlen=self._reader.max_again)
        self._n_frames = self._n_more = self._n_restarts = self._n_unflushed = 0
        self._work_s = 0.0
        self._session, self._prefix = self._begun(), self._silent_prefix

    @property
    def now_s(self) -> float:
        """Where in the sound the text is."""
        return self._reader.clock.now_s

    @property
    def stats(self) -> SttStats:
        """Of the session so far."""
        return SttStats(
            n_frames=self._n_frames,
            sound_s=self._n_frames / self._stt.codec.config.frame_rate_hz,
            work_s=self._work_s,
            n_more_frames=self._n_more,
            n_restarts=self._n_restarts,
        )

    def encode(self, pcm: np.ndarray) -> mx.array:
        """The codes (n_frames, n_heard) of the sound that follows what was encoded before, for `step_codes` and for
        whoever else wants them; they may still be computing. `AudioError` unless it is whole frames."""
        check_pcm(pcm)
        if len(pcm) % self._stt.frame_size:
            raise AudioError(
                f"{len(pcm)} samples were heard, expected a multiple of {self._stt.frame_size}, "
                "which is a frame; pad the end with audio.pad_to_frames"
            )
        codes, self._codec_state = self._encoded(mx.array(pcm.astype(np.float32)[None, :, None]), self._codec_state)
        return codes

    def step(self, pcm: np.ndarray) -> SttStep:
        """Hear one frame (frame_size,) of sound; waits for its text. `AudioError` for another length."""
        if len(pcm) != self._stt.frame_size:
            raise AudioError(f"{len(pcm)} samples were heard, expected a frame of {self._stt.frame_size}")
        started = time.perf_counter()
        codes = self.encode(pcm)[0]
        self._work_s += time.perf_counter() - started
        return self.step_codes(codes, is_voice=not is_silent(pcm))

    def step_codes(self, codes: np.ndarray | mx.array, *, is_voice: bool | None = None) -> SttStep:
        """Hear one frame (n_heard,) of codes; waits for its text. `AudioError` for codes of another shape.

        is_voice: whether somebody speaks in it, for the guard that notices a mute model; None where nobody knows.
        """
        return merged(self._timed(self._run([*self._take_prefix(), Frame(codes, "sound", is_voice)])))

    def follow(self, pcm: np.ndarray) -> Iterator[SttStep]:
        """Hear a whole sound (n_samples,), as it comes out of a file, and flush; faster than `step` by step.

        The text is the same. Ask nothing else of the session before the last step, unless it is `reset`.
        """
        check_pcm(pcm)
        frame_size = self._stt.frame_size
        padded = np.pad(pcm, (0, -len(pcm) % frame_size)).astype(np.float32)
        return chain(self._timed(self._run(chain(self._take_prefix(), self._frames_of(padded)))), self._end())

    def flush(self, extra_s: float = 0.0, silence: np.ndarray | mx.array | None = None) -> list[SttStep]:
        """Push out what the delay still holds, at the end of a turn; the last word ends with it. Nothing happens where
        nothing was heard since the last flush.

        extra_s: of silence besides the delay. silence: one frame (n_heard,) of codes in which nobody speaks, by default
        what the codec makes of silence after what it has encoded.
        """
        if not self._n_unflushed:
            return []
        least = self._stt.flush_frames + math.ceil(extra_s * self._stt.codec.config.frame_rate_hz)
        frames = self._pushed(least, silence)
        steps = list(self._timed(self._run(islice(frames, least))))
        for frame in frames:
            if not self._reader.clock.n_growing:
                break
            steps += self._timed(self._run([frame]))
        self._n_unflushed = 0
        return [*steps, SttStep(words=self._reader.clock.end())]

    def _end(self) -> Iterator[SttStep]:
        yield from self.flush(SUFFIX_S)

    # What the model hears.

    def _encoded(self, pcm: mx.array, state: State | None) -> tuple[mx.array, State]:
        codes, state = self._stt.codec.encode(pcm, state, n_codebooks=self._stt.model.config.n_heard)
        mx.async_eval(codes, state)
        return codes[0], state

    def _silence(self, n_frames: int, state: State | None = None) -> tuple[mx.array, State]:
        """The codes of silence, and the codec's state after it."""
        return self._encoded(mx.zeros((1, n_frames * self._stt.frame_size, 1)), state)

    def _pushed(self, n_frames: int, silence: np.ndarray | mx.array | None) -> Iterator[Frame]:
        """So many frames of silence in one go, then some more, one by one."""
        state, n_more = self._codec_state, math.ceil(MAX_MORE_S * self._stt.codec.config.frame_rate_hz)
        for n in (n_frames, *[1] * n_more):
            if silence is not None:
                codes = [silence] * n
            else:
                codes, state = self._silence(n, state)
            yield from (Frame(row, "silence") for row in codes)

    def _frames_of(self, pcm: np.ndarray) -> Iterator[Frame]:
        """A sound in chunks, each encoded before the text of the one before it is waited for."""
        frame_size, waiting = self._stt.frame_size, None
        for start in range(0, len(pcm), CHUNK_FRAMES * frame_size):
            chunk = pcm[start : start + CHUNK_FRAMES * frame_size]
            voices = [not is_silent(frame) for frame in chunk.reshape(-1, frame_size)]
            encoded = [Frame(c, "sound", v) for c, v in zip(self.encode(chunk), voices, strict=True)]
            yield from waiting or ()
            waiting = encoded
        yield from waiting or ()

    def _take_prefix(self) -> list[Frame]:
        prefix, self._prefix = self._prefix, []
        return prefix

    def _begun(self) -> TokenSession:
        """A model that has heard nothing."""
        seed = (self._seed + self._n_restarts) % (1 << 64)
        return TokenSession(self._stt.model, seed=seed, text=self.sampling)

    # What it writes.

    def _run(self, frames: Iterable[Frame]) -> Iterator[SttStep]:
        """Steps, each read when the next one is queued."""
        waiting: tuple[Frame, Queued] | None = None
        for frame in frames:
            queued = frame, queue(self._stt.model, self._session, frame.codes)
            if waiting is not None:
                step = self._read(*waiting)
                if step.stuck:  # the model is another one now
                    queued = frame, queue(self._stt.model, self._session, frame.codes)
                yield step
            waiting = queued
        if waiting is not None:
            yield self._read(*waiting)

    def _read(self, frame: Frame, queued: Queued) -> SttStep:
        tokens, pauses = queued.read()
        step = self._reader.step(frame, tokens[0], pauses[0])
        if frame.kind == "sound":
            self._kept.append(frame)
            self._n_frames += 1
            self._n_unflushed += 1
        else:
            self._n_more += 1
        return step if step.stuck is None else self._restarted(step, step.stuck)

    def _restarted(self, step: SttStep, stuck: Stuck) -> SttStep:
        n_again, words = self._reader.restart(stuck, len(self._kept))
        self._n_restarts += 1
        self._session = self._begun()
        again = [frame._replace(kind="again") for frame in list(self._kept)[len(self._kept) - n_again :]]
        heard = [*self._silent_prefix, *again]
        heard = merged(self._run(heard)) if heard else SttStep()
        return replace(step, words=(*step.words, *words, *heard.words), tokens=(*step.tokens, *heard.tokens))

    def _timed(self, steps: Iterator[SttStep]) -> Iterator[SttStep]:
        while True:
            started = time.perf_counter()
            try:
                step = next(steps)
            except StopIteration:
                return
            finally:
                self._work_s += time.perf_counter() - started
            yield step
