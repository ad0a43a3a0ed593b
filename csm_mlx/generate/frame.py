"""One frame: the loop over codebooks, which exists once."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import mlx.core as mx

from csm_mlx.models.csm import CsmModel
from csm_mlx.nn.cache import CacheState
from csm_mlx.sampling import Sampler

State = TypeVar("State")


def sample_codes(
    step: Callable[[int, mx.array, State], tuple[mx.array, State]],
    first: mx.array,
    state: State,
    sampler: Sampler,
    noise: Sequence[mx.array | None],
) -> list[mx.array]:
    """Draws a frame's codes one after the other; builds the graph and waits for nothing.

    step: logits (B, codebook_size) of codebook k and the state after it, of k, of the code before it, and of the state.
    first: what the step of the first codebook is given in that code's place.
    noise: of `frame_noise`, one per codebook. Returns as many codes (B, 1).
    """
    codes, code = [], first
    for k, drawn in enumerate(noise):
        logits, state = step(k, code, state)
        code = sampler(logits, drawn)
        codes.append(code)
    return codes


def frame_noise(sampler: Sampler, key: mx.array, shape: tuple[int, int, int]) -> Sequence[mx.array | None]:
    """Noise for `shape` (n_codebooks, B, codebook_size), drawn at once: one (B, codebook_size) per codebook.

    key: of `mx.random`; (B, 2), one per row, where each is to draw what it would draw alone.
    """
    if key.ndim == 2 and sampler.config.temperature > 0:
        noise = mx.vmap(lambda own: sampler.noise(own, (shape[0], shape[2])), out_axes=1)(key)
    else:
        noise = sampler.noise(key, shape)
    return [None] * shape[0] if noise is None else list(mx.split(noise.reshape(-1, shape[2]), shape[0]))


def sample_frame(model: CsmModel, hidden: mx.array, sampler: Sampler, key: mx.array) -> mx.array:
    """Draws the codes of the frame that a backbone state predicts.

    hidden: (B, dim), the backbone's normed state of the last row. key: as for `frame_noise`.

    Returns codes (B, n_codebooks) int32, all below `codebook_size`: specials and padding are never drawn.
    """
    batch = hidden.shape[0]

    def step(k: int, code: mx.array, state: CacheState) -> tuple[mx.array, CacheState]:
        if k == 0:
            return model.code_logits(hidden, 0), state
        x, n_steps = model.depth_code(code, k - 1), 1
        if k == 1:  # the first call has two positions, the backbone's state and the first code
            x, n_steps = mx.stack([model.depth_input(hidden), x], axis=1).reshape(2 * batch, -1), 2
        y, state = model.depth_decoder.rows(x, n_steps, state, last_only=True)
        return model.code_logits(y, k), state

    n_codebooks = model.config.n_codebooks
    noise = frame_noise(sampler, key, (n_codebooks, batch, model.config.codebook_size))
    state = model.depth_decoder.make_state(batch, hidden.dtype, n_codebooks)
    return mx.concatenate(sample_codes(step, hidden, state, sampler, noise), axis=1).astype(mx.int32)
