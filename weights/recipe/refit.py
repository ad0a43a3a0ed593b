"""Stage 4b: the best last two matrices of `train_basis`, given its transformer, in closed form; kept if better.

Weighted least squares from the transformer's output (7 steps of it, SEANet's first convolution) to the templates, then
the best approximation of rank 255 (reduced-rank regression). Takes half a minute.
"""

import argparse

import codec as codec_module
import numpy as np
import torch
from speech_data import Speech
from state import load_torch, log, save_torch, state_path
from synth import FRAME_SAMPLES
from templates import Templates
from torch import Tensor
from train_basis import BLOCK, QUIET, RANK, block_loss, emphasis_matrix, hidden_states, latents, seanet_from_basis

RIDGE = 1e-4
OTHERS = 0.3
"""Weight of voices that have no templates, whose own sound is the target."""


def windows(hidden: Tensor, width: int) -> Tensor:
    """(1, D, steps) to (steps, D * width + 1): what a causal convolution of `width` taps sees, and a one."""
    seen = torch.nn.functional.pad(hidden, (width - 1, 0)).unfold(2, width, 1)[0].transpose(0, 1).flatten(1)
    return torch.cat([seen, torch.ones(len(seen), 1)], 1)


@torch.no_grad()
def refit(codec, speech: Speech, n_sentences: int) -> Tensor:
    """Sets SEANet's first convolution and returns the basis (BLOCK, RANK) that goes with it."""
    templates, first = Templates(speech), codec.decoder.decoder_seanet.layers[0].conv
    emphasis, width = emphasis_matrix(), first.kernel_size[0]
    size = first.in_channels * width + 1
    square, product, plain = torch.zeros(size, size), torch.zeros(size, BLOCK), torch.zeros(size, size)
    for i in np.random.default_rng(7).permutation(len(speech.codes))[:n_sentences]:
        codes = torch.from_numpy(speech.codes[i])[None]
        sound = torch.from_numpy(speech.sounds[i].astype(np.float32) / 32767)[None]
        known = (int(codes[0, 0, 1]), int(codes[0, 0, 2])) in templates.tables
        target = templates.idealise(sound, codes).reshape(-1, BLOCK) @ emphasis.T
        weight = (1.0 if known else OTHERS) / (target.square().mean(1) + QUIET**2)
        seen = windows(hidden_states(codec, codes), width)
        square += (seen * weight[:, None]).T @ seen
        product += (seen * weight[:, None]).T @ target
        plain += seen.T @ seen
    square = square.double() + RIDGE * square.diagonal().mean() * torch.eye(size)
    whole = torch.linalg.solve(square, product.double())
    _, _, right = torch.linalg.svd(torch.linalg.cholesky(square).T @ whole, full_matrices=False)
    directions = right[: RANK - 1].T
    reduced = whole @ directions
    spread = ((reduced * (plain.double() @ reduced)).sum(0) / plain[-1, -1]).sqrt()
    reduced, directions = (reduced / spread).float(), (directions * spread).float()
    first.weight[:-1] = reduced[:-1].T.reshape(RANK - 1, first.in_channels, width)
    first.bias[:-1] = reduced[-1]
    basis = torch.linalg.solve_triangular(emphasis, directions, upper=False)
    return torch.cat([basis, torch.zeros(BLOCK, 1)], 1)


@torch.no_grad()
def error_of(codec, basis: Tensor, speech: Speech, templates: Templates) -> float:
    sound, codes = speech.crops(np.random.default_rng(11), 64, 18)
    made = (latents(codec, codes)[..., :-1] @ basis[:, :-1].T).flatten(1)
    return block_loss(made, templates.idealise(sound, codes)).item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sentences", type=int, default=1600)
    args = parser.parse_args()
    torch.set_num_threads(1)
    codec, speech = codec_module.build().eval(), Speech()
    saved = load_torch(state_path("basis.pt"))
    codec.load_state_dict(saved["model"], strict=False)
    templates = Templates(speech)
    trained = error_of(codec, saved["basis"], speech, templates)
    basis = refit(codec, speech, args.sentences)
    closed = error_of(codec, basis, speech, templates)
    log(f"block error of step {saved['step']}: {trained:.4f}, in closed form: {closed:.4f}")
    if closed >= trained:
        log("the decoder stays as it was trained")
        return
    codes = speech.crops(np.random.default_rng(1), 4, 18)[1]
    with torch.no_grad():
        plain = (latents(codec, codes)[..., :-1] @ basis[:, :-1].T).flatten(1)
        seanet_from_basis(codec, basis)
        difference = (codec_module.decode(codec, codes) - plain).abs().max().item()
    log(f"SEANet equals the basis to {difference:.1e} over {codes.shape[1] * FRAME_SAMPLES} samples")
    decoder = codec_module.decoder_weights(codec)
    save_torch(state_path("decoder.pt"), {"model": decoder, "step": 0, "spent_s": 0.0, "curve": "[]"})


if __name__ == "__main__":
    main()
