"""Stage 5: train the decoder's transformer with a linear synthesis in place of SEANet, then write that into SEANet.

Sound here is locked to the frames, so a half frame (960 samples) lies near a plane of few dimensions. A matrix
(960, 256), that begins as principal components of pre-emphasised sound, makes it from the output of SEANet's first
convolution: 6 times cheaper a step than SEANet and far better conditioned. SEANet's strided convolutions can hold any
such matrix exactly (`seanet_from_basis`), with biases that keep every ELU in its linear half and residual blocks that
begin at zero. `train_codec.py --half decoder` goes on from there.
"""

import codec as codec_module
import numpy as np
import torch
from loop import Loop, parser_of
from phones import VOICES
from speech_data import Speech
from state import log, save_torch, state_path
from synth import FRAME_SAMPLES
from torch import Tensor
from train_codec import EMPHASIS, emphasise

BLOCK = FRAME_SAMPLES // 2
RANK = 256
QUIET = 1.5e-3
"""Emphasised amplitude below which a block counts as silence."""
TYPICAL_BLOCK = 0.05
"""Emphasised amplitude of speech, which the basis gives for coefficients of one."""
LAYER_SCALE = 0.5
"""Of the transformer, which Mimi starts far lower: this one has minutes to learn."""
LATENT_OFFSET, SAMPLE_OFFSET = 6.0, 0.75
"""Added before ELU and taken off after it: larger than all but a few values, so that ELU passes them unchanged."""


def emphasis_matrix() -> Tensor:
    """`emphasise` of one block as a matrix (BLOCK, BLOCK)."""
    return torch.eye(BLOCK) - EMPHASIS * torch.diag(torch.ones(BLOCK - 1), -1)


def principal_basis(speech: Speech, rng: np.random.Generator) -> Tensor:
    """(BLOCK, RANK) with coefficients of variance one: components of the emphasised half frames, de-emphasised.

    Half frames count alike, loud or soft, as in `block_loss`.
    """
    blocks = emphasise(speech.crops(rng, 900, 16)[0]).reshape(-1, BLOCK)
    blocks = blocks / (blocks.square().mean(1, keepdim=True) + QUIET**2).sqrt()
    values, vectors = torch.linalg.eigh(blocks.T @ blocks / len(blocks))
    values, vectors = values[-RANK:].flip(0), vectors[:, -RANK:].flip(1)
    kept = (values.sum() / blocks.square().sum(1).mean()).item()
    log(f"{RANK} components hold {kept:.1%} of {len(blocks)} half frames")
    return torch.linalg.solve_triangular(emphasis_matrix(), vectors * values.sqrt() * TYPICAL_BLOCK, upper=False)


def raise_layer_scales(weights: dict[str, Tensor]) -> None:
    """Start the transformer's layer scales at LAYER_SCALE."""
    with torch.no_grad():
        for name, weight in weights.items():
            if name.endswith("layer_scale.scale"):
                weight.fill_(LAYER_SCALE)


def block_loss(made: Tensor, true: Tensor, known: Tensor) -> Tensor:
    """Mean over known half frames of the error's energy as a part of theirs: consonants count as much as vowels do.

    made, true: (B, T * FRAME_SAMPLES); known: (B, T, 1), 1.0 for frames that count.
    """
    error, reference = (emphasise(x).unflatten(-1, (-1, BLOCK)).square().mean(-1) for x in (made - true, true))
    known = known.repeat_interleave(2, 1)[..., 0]
    return (error / (reference + QUIET**2) * known).sum() / known.sum()


def hidden_states(codec, codes: Tensor) -> Tensor:
    """Codes (B, T, K) to what the decoder's transformer gives SEANet, (B, D, 2 T)."""
    decoder = codec.decoder
    x = decoder.upsample(codec.quantizer.decode(codes.transpose(1, 2)))
    return decoder.decoder_transformer(x.transpose(1, 2)).last_hidden_state.transpose(1, 2)


def latents(codec, codes: Tensor) -> Tensor:
    """Codes (B, T, K) to what SEANet's first convolution makes of them, (B, 2 T, RANK)."""
    return codec.decoder.decoder_seanet.layers[0](hidden_states(codec, codes)).transpose(1, 2)


@torch.no_grad()
def seanet_from_basis(codec, basis: Tensor) -> None:
    """Make SEANet compute `basis @ latents`: each upsampling passes on its share of the 960 samples.

    The last latent is a constant: its column of the basis takes off what the others' offsets add.
    """
    seanet = codec.decoder.decoder_seanet
    convs = [layer.conv for layer in seanet.layers if hasattr(layer, "conv")]
    first, ups, last = convs[0], convs[1:-1], convs[-1]
    for layer in seanet.layers:
        if hasattr(layer, "block"):
            layer.block[-1].conv.weight.zero_()
            layer.block[-1].conv.bias.zero_()
    first.weight[-1] = 0
    first.bias[-1] = 0
    first.bias += LATENT_OFFSET
    basis = torch.cat([basis[:, :-1], -basis[:, :-1].sum(1, keepdim=True)], 1)
    width = BLOCK
    for i, up in enumerate(ups):
        stride = up.stride[0]
        width //= stride
        up.weight[:, :width] = 0
        up.bias.zero_()
        if i == 0:
            up.weight[:, :width, :stride] = basis.reshape(stride, width, RANK).permute(2, 1, 0)
            up.bias[:width] = SAMPLE_OFFSET
            continue
        rows = torch.arange(width)
        for step in range(stride):
            up.weight[step * width + rows, rows, step] = 1.0
    last.weight.zero_()
    last.weight[0, 0, -1] = 1.0
    last.bias.fill_(-SAMPLE_OFFSET)


def main() -> None:
    parser = parser_of(__doc__, minutes=20, rows=8, peak=2e-3)
    parser.add_argument("--frames", type=int, default=18, help="of 80 ms in a crop")
    parser.add_argument("--own-voices", action="store_true", help="only the two that the language model speaks with")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    codec = codec_module.build().to(args.device)
    names = {n for n in codec_module.decoder_weights(codec) if "decoder_seanet" not in n or "layers.0." in n}
    weights = {n: p for n, p in codec.named_parameters() if n in names}
    raise_layer_scales(weights)
    speech, path = Speech(), state_path("basis.pt")
    if args.own_voices:
        speech.keep({(voice.cycles, voice.tract) for voice in VOICES})
    start = torch.zeros(BLOCK, RANK) if path.exists() else principal_basis(speech, np.random.default_rng(0))
    basis = torch.nn.Parameter(start.to(args.device))

    def restore(saved: dict) -> None:
        codec.load_state_dict(saved["model"], strict=False)
        with torch.no_grad():
            basis.copy_(saved["basis"])

    def state() -> dict:
        return {"model": {n: t for n, t in codec.state_dict().items() if n in names}, "basis": basis.detach()}

    def made(codes: Tensor) -> Tensor:
        return (latents(codec, codes)[..., :-1] @ basis[:, :-1].T).flatten(1)

    def losses(_: float) -> tuple[Tensor, dict[str, float]]:
        crops = speech.crops(rng, args.rows, args.frames, codec_module.DELAY_FRAMES)
        sound, codes, known = (x.to(args.device) for x in crops)
        loss = block_loss(made(codes), sound, known)
        return loss, {"block": loss.item()}

    every = {**weights, "basis": basis}
    loop = Loop(args, path, every, state, restore, betas=(0.8, 0.98), decay=0.01, slower={"basis": 20.0})
    rng = np.random.default_rng(loop.step + 1)
    loop.run(losses, report_every=100, on_save=speech.refresh)
    with torch.no_grad():
        codes = speech.crops(rng, 4, args.frames)[1].to(args.device)
        plain = made(codes)
        seanet_from_basis(codec, basis.detach())
        difference = (codec_module.decode(codec, codes) - plain).abs().max().item()
    log(f"SEANet equals the basis to {difference:.1e}")
    decoder = codec_module.decoder_weights(codec)
    save_torch(state_path("decoder.pt"), {"model": decoder, "step": 0, "spent_s": 0.0, "curve": "[]"})
    log(f"decoder -> {state_path('decoder.pt')}")


if __name__ == "__main__":
    main()
