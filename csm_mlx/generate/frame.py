"""One frame: the loop over codebooks, which exists once."""

from collections.abc import Sequence

import mlx.core as mx

from csm_mlx.models.csm import CsmModel
from csm_mlx.sampling import Sampler


def sample_frame(model: CsmModel, hidden: mx.array, sampler: Sampler, key: mx.array) -> mx.array:
    """Draws the codes of the frame that a backbone state predicts; builds the graph and waits for nothing.

    hidden: (B, dim), the backbone's normed state of the last row.
    key: of `mx.random`; all noise of the frame comes from it. (B, 2), one per row, where each is to draw what it would
        draw alone.

    Returns codes (B, n_codebooks) int32, all below `codebook_size`: specials and padding are never drawn.
    """
    n_codebooks, batch = model.config.n_codebooks, hidden.shape[0]
    noise = _noise(sampler, key, (n_codebooks, batch, model.config.codebook_size))
    codes = [sampler(model.code_logits(hidden, 0), noise[0])]
    # The first call has two positions, the backbone's state and the first code.
    x = mx.stack([model.depth_input(hidden), model.depth_code(codes[0], 0)], axis=1).reshape(2 * batch, -1)
    state, n_steps = model.depth_decoder.make_state(batch, hidden.dtype, 0), 2
    for k in range(1, n_codebooks):
        y, state = model.depth_decoder.rows(x, n_steps, state, last_only=True)
        codes.append(sampler(model.code_logits(y, k), noise[k]))
        if k + 1 < n_codebooks:
            x, n_steps = model.depth_code(codes[k], k), 1
    return mx.concatenate(codes, axis=1).astype(mx.int32)


def _noise(sampler: Sampler, key: mx.array, shape: tuple[int, int, int]) -> Sequence[mx.array | None]:
    """One (B, V) per codebook."""
    if key.ndim == 2 and sampler.config.temperature > 0:
        noise = mx.vmap(lambda own: sampler.noise(own, (shape[0], shape[2])), out_axes=1)(key)
    else:
        noise = sampler.noise(key, shape)
    return [None] * shape[0] if noise is None else list(mx.split(noise.reshape(-1, shape[2]), shape[0]))
