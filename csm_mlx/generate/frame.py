"""One frame: the loop over codebooks, which exists once."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import mlx.core as mx

from csm_mlx.models.csm import CsmModel
from csm_mlx.nn.cache import CacheState
from csm_mlx.sampling import Sampler

State = TypeVar("State")


def sample_codes(
    step: Callable[[int, mx.array, State], tuple[mx.array, State]], first: mx.array, state: State, n_codebooks: int
) -> list[mx.array]:
    """Draws a frame's codes one after the other; builds the graph and waits for nothing.

    step: codebook k's code (B, 1) and the state after it, of k, of the code before it, and of the state.
    first: what the step of the first codebook is given in that code's place. Returns as many codes as codebooks.
    """
    codes, code = [], first
    for k in range(n_codebooks):
        code, state = step(k, code, state)
        codes.append(code)
    return codes


def frame_noise(sampler: Sampler, key: mx.array, shape: tuple[int, int, int]) -> Sequence[tuple[mx.array, ...]]:
    """Noise for `shape` (n_codebooks, B, codebook_size), drawn at once: per codebook what `sampler.draw` takes besides
    logits, one (B, codebook_size) or nothing.

    key: of `mx.random`; (B, 2), one per row, where each is to draw what it would draw alone.
    """
    if key.ndim == 2 and sampler.config.temperature > 0:
        noise = mx.vmap(lambda own: sampler.noise(own, (shape[0], shape[2])), out_axes=1)(key)
    else:
        noise = sampler.noise(key, shape)
    if noise is None:
        return [()] * shape[0]
    return [(drawn,) for drawn in mx.split(noise.reshape(-1, shape[2]), shape[0])]


def sample_frame(model: CsmModel, hidden: mx.array, sampler: Sampler, key: mx.array) -> mx.array:
    """Draws the codes of the frame that a backbone state predicts.

    hidden: (B, dim), the backbone's normed state of the last row. key: as for `frame_noise`.

    Returns codes (B, n_codebooks) int32, all below `codebook_size`: specials and padding are never drawn.
    """
    batch, n_codebooks = hidden.shape[0], model.config.n_codebooks
    noise = frame_noise(sampler, key, (n_codebooks, batch, model.config.codebook_size))
    next_code = model.code_step(sampler.draw)

    def step(k: int, code: mx.array, state: CacheState) -> tuple[mx.array, CacheState]:
        if k == 0:
            return sampler.draw(model.code_logits(hidden, 0), *noise[0]), state
        x, n_steps = model.depth_code(code, k - 1), 1
        if k == 1:  # the first call has two positions, the backbone's state and the first code
            x, n_steps = mx.stack([model.depth_input(hidden), x], axis=1).reshape(2 * batch, -1), 2
        return next_code(k, x, n_steps, noise[k], state)

    state = model.depth_decoder.make_state(batch, hidden.dtype, n_codebooks)
    return mx.concatenate(sample_codes(step, hidden, state, n_codebooks), axis=1).astype(mx.int32)
