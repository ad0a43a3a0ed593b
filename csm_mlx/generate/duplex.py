"""Listening and speaking at once, frame by frame: Moshi's streams, their delays, and the loop over its codebooks.

The step that a frame is heard in also says one (Kyutai's `LMGen`, but for its first step: it throws the first frame
away and so does `run_inference` by giving it twice; here a session begins with that step, on nothing but the initial
tokens, and loses none).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from typing import TypedDict

import mlx.core as mx
import numpy as np

from csm_mlx.config import MoshiConfig, SamplingConfig
from csm_mlx.errors import AudioError
from csm_mlx.generate.frame import frame_noise, sample_codes
from csm_mlx.generate.monologue import TextRules, TextSampler
from csm_mlx.models.moshi import MoshiModel
from csm_mlx.nn.cache import CacheState
from csm_mlx.sampling import Sampler, first_key

TEXT_SAMPLING = SamplingConfig(temperature=0.7, top_k=25)
AUDIO_SAMPLING = SamplingConfig(temperature=0.8, top_k=250)
"""Both as in Kyutai's `LMGen`."""

_WHOLE = (mx.int32, mx.uint32, mx.int64)


class DuplexState(TypedDict):
    """All of a conversation, as data: keeping an old one costs nothing and goes back to it."""

    cache: CacheState
    n_steps: int
    heard: list[mx.array]
    """The last frames of the other side (B, n_heard) int32, oldest first: as many as its delays look back."""
    said: list[mx.array]
    """The last tokens said (B, 1 + n_generated) int32, text first: as many as the delays look back."""
    key: mx.array
    hidden: mx.array
    """The temporal transformer's last state (B, dim)."""
    condition: mx.array | None
    """What the conversation was asked to be like, (dim,)."""
    recent: mx.array | None
    """The memory of `TextSampler`."""


@dataclass(frozen=True, eq=False)
class DuplexStep:
    """What one frame brought; arrays that may still be computing."""

    text: mx.array
    """(B,) int32, said now; `MoshiConfig.text_pad_id` where no word is."""
    codes: mx.array | None
    """(B, n_generated) int32, codes that belong together, for Mimi; None while the first ones are still on their way,
    and where the model says nothing."""


class TokenSession:
    """One conversation, or several in step with each other. Sessions of one model know nothing of each other."""

    def __init__(
        self,
        model: MoshiModel,
        *,
        batch: int = 1,
        seed: int = 0,
        text: SamplingConfig = TEXT_SAMPLING,
        audio: SamplingConfig = AUDIO_SAMPLING,
        conditions: Mapping[str, str] | None = None,
        rules: TextRules | None = None,
    ):
        """batch: conversations held at once, with as many rows in every frame.

        conditions: a value for each of the model's, by name. `ConfigError` for others or fewer.
        """
        self._model, self._batch = model, batch
        self._text, self._audio = TextSampler(model.config, text, rules or TextRules()), Sampler(audio)
        model.prepare()
        wanted = conditions or {}
        condition = model.condition(wanted) if wanted or model.config.conditions else None
        self.state = first_state(model, batch, first_key(seed), self._text, self._audio, condition)

    def step(self, frame: np.ndarray | mx.array) -> DuplexStep:
        """Hear one frame (B, n_heard) of codes, or (n_heard,) in a batch of one, and say one. `AudioError` for another
        shape or for codes that the codec does not know."""
        codes = self._checked(frame)
        step, self.state = duplex_step(self._model, codes, self.state, self._text, self._audio)
        # All of it: what is never asked for, such as the key, would grow by a step with every frame.
        s = self.state
        mx.async_eval(s["cache"], s["said"], s["key"], s["hidden"], *([] if s["recent"] is None else [s["recent"]]))
        return step

    def _checked(self, frame: np.ndarray | mx.array) -> mx.array:
        """An array of MLX's may still be computing, and its codes are not looked at."""
        c = self._model.config
        codes = frame if isinstance(frame, mx.array) else np.asarray(frame)
        codes = codes[None] if codes.ndim == 1 else codes
        is_whole = codes.dtype in _WHOLE if isinstance(codes, mx.array) else np.issubdtype(codes.dtype, np.integer)
        if codes.shape != (self._batch, c.n_heard) or not is_whole:
            raise AudioError(
                f"a frame of shape {tuple(frame.shape)} and type {codes.dtype} was heard, expected "
                f"({self._batch}, {c.n_heard}) integers: Mimi's first {c.n_heard} codes of 80 ms"
            )
        if isinstance(codes, mx.array):
            return codes.astype(mx.int32)
        if codes.size and not 0 <= codes.min() <= codes.max() <= c.codebook_size:
            raise AudioError(
                f"codes lie in {codes.min()} … {codes.max()}, expected 0 … {c.codebook_size - 1}, "
                f"or {c.codebook_size} for the end of the other side's sound"
            )
        return mx.array(codes.astype(np.int32))


def first_state(
    model: MoshiModel, batch: int, key: mx.array, text: TextSampler, audio: Sampler, condition: mx.array | None = None
) -> DuplexState:
    """A conversation that has begun: one step on the initial tokens alone."""
    c = model.config
    initial = mx.broadcast_to(mx.array([c.initial_tokens], mx.int32), (batch, 1 + c.n_codebooks))
    n_said = 1 + c.n_generated
    state: DuplexState = {
        "cache": model.make_state(batch),
        "n_steps": 0,
        "heard": [initial[:, n_said:]] * (1 + max(c.delays[n_said:], default=0)),
        "said": [initial[:, :n_said]] * (1 + _said_delay(c)),
        "key": key,
        "hidden": mx.zeros((batch, c.temporal.dim), model.dtype),
        "condition": condition,
        "recent": text.make_state(batch),
    }
    return _advanced(model, initial, state, text, audio)


def duplex_step(
    model: MoshiModel, frame: mx.array, state: DuplexState, text: TextSampler, audio: Sampler
) -> tuple[DuplexStep, DuplexState]:
    """Hears frame (B, n_heard) int32; what is said and the state after it. Builds the graph and waits for nothing."""
    heard = [*state["heard"][1:], frame]
    state = _advanced(model, _tokens(model.config, heard, state), {**state, "heard": heard}, text, audio)
    return DuplexStep(state["said"][-1][:, 0], _together(model.config, state)), state


def _said_delay(config: MoshiConfig) -> int:
    return max(config.delays[: 1 + config.n_generated])


def _tokens(config: MoshiConfig, heard: list[mx.array], state: DuplexState) -> mx.array:
    """What the model takes in next (B, 1 + n_codebooks): what it said last, and each heard stream in its delay."""
    n, n_said, last = state["n_steps"], 1 + config.n_generated, state["said"][-1]
    if n <= _said_delay(config):  # a stream that has not begun
        begun = mx.array([n > delay for delay in config.delays[:n_said]])
        last = mx.where(begun, last, mx.array(config.initial_tokens[:n_said], mx.int32))
    others = [heard[-1 - delay][:, start:stop] for delay, start, stop in _runs(config.delays[n_said:])]
    return mx.concatenate([last, *others], axis=1)


def _together(config: MoshiConfig, state: DuplexState) -> mx.array | None:
    """The codes that belong to one frame, the newest of which all are there."""
    latest = _said_delay(config)
    if not config.n_generated or state["n_steps"] <= latest:
        return None
    delays = config.delays[1 : 1 + config.n_generated]
    parts = [state["said"][-1 - latest + d][:, 1 + start : 1 + stop] for d, start, stop in _runs(delays)]
    return mx.concatenate(parts, axis=1)


@lru_cache(maxsize=16)
def _runs(delays: tuple[int, ...]) -> list[tuple[int, int, int]]:
    """(delay, start, stop) of neighbouring streams with the same delay."""
    runs, start = [], 0
    for delay, members in groupby(delays):
        stop = start + len(list(members))
        runs.append((delay, start, stop))
        start = stop
    return runs


def _advanced(
    model: MoshiModel, tokens: mx.array, state: DuplexState, text: TextSampler, audio: Sampler
) -> DuplexState:
    """The state after one step on tokens (B, 1 + n_codebooks): with the text and the codes that it says."""
    hidden, cache = model(tokens[:, None], state["cache"], state["condition"])
    hidden = hidden[:, 0]
    key, text_key, audio_key = mx.random.split(state["key"], 3)
    word, recent = text(model.text_logits(hidden), text_key, state["recent"])
    said = mx.concatenate([word, *_codes(model, hidden, word, audio, audio_key)], axis=1).astype(mx.int32)
    return {
        **state,
        "cache": cache,
        "n_steps": state["n_steps"] + 1,
        "said": [*state["said"][1:], said],
        "key": key,
        "hidden": hidden,
        "recent": recent,
    }


def _codes(model: MoshiModel, hidden: mx.array, word: mx.array, audio: Sampler, key: mx.array) -> list[mx.array]:
    """Draws the codes (B, 1) that a temporal state (B, dim) and its text (B, 1) predict."""
    c, batch = model.config, hidden.shape[0]
    if not c.n_generated:
        return []
    rows, noise = model.depth_inputs(hidden), frame_noise(audio, key, (c.n_generated, batch, c.codebook_size))

    def step(k: int, token: mx.array, state: CacheState) -> tuple[mx.array, CacheState]:
        logits, state = model.depth_step(k, rows[k], token.reshape(-1), state)
        return audio.draw(logits, *noise[k]), state

    return sample_codes(step, word, model.make_depth_state(batch), c.n_generated)
