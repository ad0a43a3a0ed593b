"""Conversations: what a programmer holds."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from csm_mlx.config import SamplingConfig
from csm_mlx.errors import ConfigError
from csm_mlx.frames import Turn, TurnRows, check_codes, check_pcm, check_speaker, text_ids
from csm_mlx.generate.batch import Utterance, utterances
from csm_mlx.generate.context import Context, ContextSnapshot
from csm_mlx.generate.speech import Speech
from csm_mlx.models.csm import CsmModel
from csm_mlx.models.loaded import Loaded
from csm_mlx.sampling import Sampler, first_key
from csm_mlx.stored import CheckpointConfig
from csm_mlx.tokenizer import Tokenizer


@dataclass(frozen=True, eq=False)
class Csm(Loaded[CsmModel, Tokenizer, CheckpointConfig]):
    """A loaded checkpoint. One serves many sessions; it holds no state of theirs."""

    def session(self, *, seed: int = 0, sampling: SamplingConfig | None = None) -> "CsmSession":
        """A new conversation. The same seed and the same calls give the same sound; `sampling` defaults to the
        checkpoint's own. ConfigError for a seed that is none."""
        return CsmSession(self, seed, sampling or self.config.sampling)

    def generate_batch(
        self,
        texts: Iterable[str],
        *,
        batch_size: int = 8,
        speaker: int = 0,
        reference: Turn | Sequence[Turn] = (),
        seed: int = 0,
        sampling: SamplingConfig | None = None,
        max_seconds: float | None = None,
    ) -> Iterator[Utterance]:
        """Speaks many texts, `batch_size` at a time, each as a new session with this seed and reference would.

        Yields them as they end, in any order; takes texts as rows get free, so that they may be many. A text that
        cannot be spoken is an utterance with an error. Raises ConfigError, and what `CsmSession.add` does for a
        reference.
        """
        if not isinstance(batch_size, int) or batch_size < 1:
            raise ConfigError(f"batch_size is {batch_size!r}, expected a whole number from 1 on")
        check_speaker(speaker)
        self.max_frames(max_seconds)
        session, sampling = self.session(seed=seed, sampling=sampling), sampling or self.config.sampling
        for turn in (reference,) if isinstance(reference, Turn) else reference:
            session.add(turn, reference=True)
        return utterances(
            session,
            self.model,
            self.codec,
            Sampler(sampling),
            iter(texts),
            batch_size=batch_size,
            speaker=speaker,
            max_seconds=max_seconds,
        )

    def max_frames(self, max_seconds: float | None) -> int | None:
        """How many frames so many seconds are, at least one; None for as many as a text could need."""
        if max_seconds is None:
            return None
        if not max_seconds > 0:
            raise ConfigError(f"max_seconds is {max_seconds}, expected more than 0")
        # It may be endless; the positions are not.
        n_frames = min(max_seconds * self.codec.config.frame_rate_hz, self.config.csm.max_positions)
        return max(1, math.floor(n_frames + 1e-6))  # 2.32 s are 28.999… frames to a computer

    def encode(self, pcm: np.ndarray) -> np.ndarray:
        """Sound (n_samples,) at `sample_rate_hz` to codes (n_frames, n_codebooks) int32; the last frame is padded."""
        check_pcm(pcm)
        codes, _ = self.codec.encode(mx.array(pcm[None, :, None]), n_codebooks=self.config.csm.n_codebooks)
        return np.array(codes[0])


@dataclass(frozen=True, eq=False)
class Snapshot:
    """A session at one moment; see `CsmSession.snapshot`."""

    context: ContextSnapshot
    key: mx.array
    n_spoken: int | None


class CsmSession:
    """One conversation: the backbone's cache of all that was said, kept from turn to turn.

    Only what is new is prefilled. When the positions run short, the oldest turns that are not the voice's reference
    are forgotten whole. Use it from one thread, the one that owns MLX.
    """

    def __init__(self, csm: Csm, seed: int, sampling: SamplingConfig):
        self._csm = csm
        self._sampler = Sampler(sampling)
        self._key = first_key(seed)
        self._context = Context(csm.model)
        self._speech: Speech | None = None
        self._n_spoken: int | None = None
        """Frames of the last utterance, as long as nothing came after it; its turn is the last one unless this is 0."""

    @property
    def n_positions(self) -> int:
        """Rows of the conversation that are in the cache now."""
        return self._context.n_positions

    @property
    def turns(self) -> tuple[TurnRows, ...]:
        """The turns that are in the cache now, oldest first."""
        return tuple(held.rows for held in self._context.turns)

    def add(self, turn: Turn, *, reference: bool = False) -> None:
        """Puts what somebody said into the conversation.

        A reference is never forgotten: it is the voice that the model speaks with. Raises ContextError when the
        turn does not fit even into an otherwise empty conversation, and AudioError for codes that are none.
        """
        self._end_speech()
        codes = turn.codes
        if codes is None and turn.pcm is not None:
            codes = self._csm.encode(turn.pcm)
        if codes is not None:
            codes = check_codes(codes, self._csm.config.csm)
        ids = self._text_ids(turn.text, turn.speaker) if turn.text.strip() else ()
        self._context.add(TurnRows(ids, codes), reference)
        self._n_spoken = None

    def speak(self, text: str, speaker: int = 0, *, max_seconds: float | None = None) -> Speech:
        """Speaks `text` as the next turn; iterate over the result for its sound, which is made as you go.

        max_seconds: the longest that it may become; by default what the text could need. An utterance that is still
        going on when the session is used again ends there.
        """
        self._end_speech()
        if not text.strip():
            raise ConfigError("there is no text to speak; give at least one word")
        max_frames = self._csm.max_frames(max_seconds)
        self._key, key = mx.random.split(self._key)
        mx.eval(self._key)
        self._speech = Speech(
            self._csm.model,
            self._csm.codec,
            self._context,
            text=text,
            text_ids=self._text_ids(text, speaker),
            max_frames=max_frames,
            sampler=self._sampler,
            key=key,
        )
        return self._speech

    def make_room(self, n_positions: int) -> None:
        """Forgets now, in idle time, what would have to be forgotten before `n_positions` more were spoken or added.

        Only the oldest turns that are no reference go, whole; where that is not enough, no more is done.
        """
        self._end_speech()
        last = self.turns[-1:]
        self._context.reserve(n_positions)
        if self.turns[-1:] != last:  # what was spoken last is forgotten: there is nothing to cut
            self._n_spoken = None

    def cut(self, n_frames: int) -> None:
        """Cuts the turn just spoken to its first `n_frames`, those that were heard; 0 takes it out altogether.

        Raises ConfigError when the last turn was not spoken here, or has fewer frames.
        """
        self._end_speech()
        n_spoken = self._n_spoken
        if n_spoken is None or not 0 <= n_frames <= n_spoken:
            there = "the last turn was not spoken by this session" if n_spoken is None else f"it has {n_spoken}"
            raise ConfigError(f"cannot cut the last turn to {n_frames} frames: {there}")
        self._n_spoken = None
        if n_spoken:  # else it ended before its first frame and left no turn
            codes = self._context.turns[-1].rows.codes
            assert codes is not None
            self._context.close_turn(codes[:n_frames])
        self._n_spoken = n_frames or None

    def snapshot(self) -> Snapshot:
        """The conversation at this moment, for `rewind`; free until the session goes on, then one copy of the cache."""
        self._end_speech()
        return Snapshot(self._context.snapshot(), self._key, self._n_spoken)

    def rewind(self, snapshot: Snapshot) -> None:
        """Back to a snapshot of this session, its randomness included."""
        self._end_speech()
        self._context.restore(snapshot.context)
        self._key = snapshot.key
        self._n_spoken = snapshot.n_spoken

    def _text_ids(self, text: str, speaker: int) -> tuple[int, ...]:
        return text_ids(text, speaker, self._csm.tokenizer, self._csm.config.csm)

    def _end_speech(self) -> None:
        if self._speech is not None:
            speech, self._speech = self._speech, None
            speech.close()
            self._n_spoken = speech.n_kept
