"""Several whole sounds become text in step with each other: the weights are read once for all of them."""

import math
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import mlx.core as mx
import numpy as np

from csm_mlx.config import SamplingConfig
from csm_mlx.frames import check_pcm
from csm_mlx.generate.duplex import TokenSession
from csm_mlx.generate.reader import MAX_MORE_S, SUFFIX_S, Frame, Queued, SttStats, SttStep, Transcript, queue
from csm_mlx.generate.tail import is_silent
from csm_mlx.generate.words import GuardRule, PauseRule
from csm_mlx.models.mimi import CHUNK_FRAMES

if TYPE_CHECKING:
    from csm_mlx.generate.transcribe import Stt


class _Row:
    """One of the sounds: what its frames are, and what they brought."""

    def __init__(self, stt: "Stt", pcm: np.ndarray, guard: GuardRule | None):
        rate_hz = stt.codec.config.frame_rate_hz
        check_pcm(pcm)
        self.voices = [not is_silent(part) for part in np.split(pcm, range(stt.frame_size, len(pcm), stt.frame_size))]
        self.steps: list[SttStep] = []
        self.is_over = self.is_stuck = False
        self._reader = stt.reader(PauseRule(), guard)
        self._n_prefix = stt.prefix_frames
        self._n_pushed = 0
        self._n_least = stt.flush_frames + math.ceil(SUFFIX_S * rate_hz)
        self._n_most = self._n_least + math.ceil(MAX_MORE_S * rate_hz)

    @property
    def n_frames(self) -> int:
        return len(self.voices)

    @property
    def max_frames(self) -> int:
        """That it may be heard for, silence included."""
        return self._n_prefix + self.n_frames + self._n_most

    def read(self, frame: mx.array, token: int, pauses: tuple[float, ...]) -> None:
        """What its next frame brought."""
        if self.is_over:
            return
        index = len(self.steps) - self._n_prefix
        if 0 <= index < self.n_frames:
            self.steps.append(self._reader.step(Frame(frame, "sound", self.voices[index]), token, pauses))
            self.is_over = self.is_stuck = self.steps[-1].stuck is not None
            return
        self.steps.append(self._reader.step(Frame(frame, "silence"), token, pauses))
        self._n_pushed += index >= self.n_frames
        if self._n_pushed == self._n_most or (self._n_pushed >= self._n_least and not self._reader.clock.n_growing):
            self.steps.append(SttStep(words=self._reader.clock.end()))
            self.is_over = True


def transcripts(
    stt: "Stt", pcms: Sequence[np.ndarray], *, seed: int, sampling: SamplingConfig, guard: GuardRule | None
) -> list[Transcript | None]:
    """As `Stt.transcribe_batch`; None for a sound at which the model was stuck, which ended it."""
    started = time.perf_counter()
    rows = [_Row(stt, pcm, guard) for pcm in pcms]
    if not rows:
        return []
    session = TokenSession(stt.model, batch=len(rows), seed=seed, text=sampling)
    waiting: tuple[mx.array, Queued] | None = None
    for frame in _frames(stt, pcms, max(row.max_frames for row in rows)):
        queued = frame, queue(stt.model, session, frame)
        if waiting is not None:
            _read(rows, *waiting)
        waiting = queued
        if all(row.is_over for row in rows):
            break
    if waiting is not None:
        _read(rows, *waiting)
    work_s, n_frames = time.perf_counter() - started, sum(row.n_frames for row in rows)
    return [None if row.is_stuck else _transcript(stt, row, work_s * row.n_frames / n_frames) for row in rows]


def _read(rows: list[_Row], frame: mx.array, queued: Queued) -> None:
    for row, token, pauses in zip(rows, *queued.read(), strict=True):
        row.read(frame, token, pauses)


def _frames(stt: "Stt", pcms: Sequence[np.ndarray], n_frames: int) -> Iterator[mx.array]:
    """Codes (B, n_heard) of all sounds, with the silence before and after them, encoded a chunk ahead."""
    frame_size, n_heard, state, waiting = stt.frame_size, stt.model.config.n_heard, None, None
    n_prefix = stt.prefix_frames * frame_size
    for start in range(0, n_frames, CHUNK_FRAMES):
        n_samples = min(CHUNK_FRAMES, n_frames - start) * frame_size
        chunk = np.zeros((len(pcms), n_samples, 1), np.float32)
        for row, pcm in zip(chunk, pcms, strict=True):
            first = start * frame_size - n_prefix
            part = pcm[max(0, first) : max(0, first + n_samples)]
            place = max(0, -first)
            row[place : place + len(part), 0] = part
        codes, state = stt.codec.encode(mx.array(chunk), state, n_codebooks=n_heard)
        mx.async_eval(codes, state)
        yield from () if waiting is None else waiting.swapaxes(0, 1)
        waiting = codes
    yield from () if waiting is None else waiting.swapaxes(0, 1)


def _transcript(stt: "Stt", row: _Row, work_s: float) -> Transcript:
    n_tokens = sum(len(step.tokens) for step in row.steps)
    sound_s = row.n_frames / stt.codec.config.frame_rate_hz
    stats = SttStats(row.n_frames, sound_s, work_s, n_more_frames=n_tokens - row.n_frames, n_restarts=0)
    return Transcript.of(row.steps, stats)
