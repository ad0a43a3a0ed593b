"""One frame: the loop over codebooks, which exists once."""

import mlx.core as mx

from csm_mlx.models.csm import CsmModel
from csm_mlx.sampling import Sampler


def sample_frame(model: CsmModel, hidden: mx.array, sampler: Sampler, key: mx.array) -> mx.array:
    """Draws the codes of the frame that a backbone state predicts; builds the graph and waits for nothing.

    hidden: (B, dim), the backbone's normed state of the last row.
    key: of `mx.random`; all noise of the frame comes from it.

    Returns codes (B, n_codebooks) int32, all below `codebook_size`: specials and padding are never drawn.
    """
    config = model.config
    batch, n_codebooks, n_codes = hidden.shape[0], config.n_codebooks, config.codebook_size
    noise = sampler.noise(key, (n_codebooks, batch, n_codes))

    def draw(logits: mx.array, codebook: int) -> mx.array:
        return sampler(logits[:, :n_codes], None if noise is None else noise[codebook])

    codes = [draw(model.codebook0_head(hidden), 0)]
    state = model.depth_decoder.make_state(batch, hidden.dtype, n_codebooks)
    x = mx.stack([hidden, model.embed_code(codes[0], 0)], axis=1)
    for k in range(1, n_codebooks):
        y, state = model.depth_decoder(model.depth_input(x), state)
        codes.append(draw(model.audio_head[k - 1](y[:, -1]), k))
        x = model.embed_code(codes[k], k)[:, None]
    return mx.stack(codes, axis=1)
