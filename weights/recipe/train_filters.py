"""Stage 6: train the encoder behind a filterbank in place of most of SEANet, then write it into SEANet.

64 pairs of windowed cosines and sines of 10 ms, every 5 ms, are a matrix (128, 240) on the sound. SEANet's strided
convolutions hold it exactly (`seanet_from_filters`): three pass the samples on, with biases that keep every ELU in its
linear half, the fourth filters. The ELU after it rectifies, as it would any feature. A step costs a fifth of
SEANet's, and learning begins with a spectrum in place of noise. `train_codec.py --half encoder` goes on from there.
"""

import codec as codec_module
import numpy as np
import torch
from loop import Loop, parser_of
from speech_data import Speech
from state import log, save_torch, state_path
from synth import SAMPLE_RATE_HZ
from torch import Tensor
from torch.nn import functional as F
from train_basis import raise_layer_scales

N_FILTERS, LENGTH, HOP = 128, 240, 120
OFFSET = 1.0
"""Added to samples before ELU, taken off by the filters' biases."""
TYPICAL = 3.0
"""Standard deviation of a filter's output on speech, so that ELU rectifies it."""


def filterbank(speech: Speech) -> Tensor:
    """(N_FILTERS, LENGTH): cosines and sines under a Hann window, 64 frequencies even in mel from 80 to 8000 Hz."""
    mel = torch.linspace(2595 * np.log10(1 + 80 / 700), 2595 * np.log10(1 + 8000 / 700), N_FILTERS // 2)
    hz = 700 * (10 ** (mel / 2595) - 1)
    angle = 2 * torch.pi * hz[:, None] * torch.arange(LENGTH) / SAMPLE_RATE_HZ
    filters = torch.cat([angle.cos(), angle.sin()]) * torch.hann_window(LENGTH)
    filters = filters - torch.hann_window(LENGTH) * (filters.sum(1) / torch.hann_window(LENGTH).sum())[:, None]
    sound, *_ = speech.crops(np.random.default_rng(0), 300, 16)
    return filters * (TYPICAL / filtered(sound, filters)[:, :, 1:].std((0, 2)))[:, None]


def filtered(sound: Tensor, filters: Tensor) -> Tensor:
    """Sound (B, n) through the filters to (B, N_FILTERS, n / HOP), causal as SEANet.

    The padding before a stream lacks the offset that biases take off, in SEANet and so here.
    """
    features = (F.pad(sound, (HOP, 0)).unfold(1, LENGTH, HOP) @ filters.T).transpose(1, 2).contiguous()
    features[:, :, 0] -= OFFSET * filters[:, :HOP].sum(1)
    return features


def last_filters(codec) -> int:
    """Index of the strided convolution that takes over the filters, the last but one."""
    strided = [
        i for i, x in enumerate(codec.encoder.encoder_seanet.layers) if hasattr(x, "conv") and x.conv.stride[0] > 1
    ]
    return strided[-2]


def encode(codec, features: Tensor) -> Tensor:
    """The encoder behind the filters: (B, N_FILTERS, steps) to latents (B, D, T)."""
    encoder = codec.encoder
    x = features
    for layer in encoder.encoder_seanet.layers[last_filters(codec) + 1 :]:
        x = layer(x)
    x = encoder.encoder_transformer(x.transpose(1, 2)).last_hidden_state.transpose(1, 2)
    return encoder.downsample(x)


@torch.no_grad()
def seanet_from_filters(codec, filters: Tensor) -> None:
    """Make SEANet's layers up to `last_filters` compute `filtered`."""
    layers = codec.encoder.encoder_seanet.layers
    end = last_filters(codec)
    convs = [x.conv for x in layers[: end + 1] if hasattr(x, "conv")]
    for layer in layers[:end]:
        if hasattr(layer, "block"):
            layer.block[-1].conv.weight.zero_()
            layer.block[-1].conv.bias.zero_()
    first, *passing, last = convs
    first.weight[0], first.bias[0] = 0, OFFSET
    first.weight[0, 0, -1] = 1.0
    width = 1
    for conv in passing:
        stride = conv.stride[0]
        conv.weight[: width * stride], conv.bias[: width * stride] = 0, 0
        for step in range(stride):
            for channel in range(width):
                conv.weight[step * width + channel, channel, stride + step] = 1.0
        width *= stride
    last.weight.zero_()
    last.weight[:, :width] = filters.reshape(N_FILTERS, -1, width).transpose(1, 2)
    last.bias.copy_(-OFFSET * filters.sum(1))


def main() -> None:
    parser = parser_of(__doc__, minutes=20, rows=8, peak=1.5e-3)
    parser.add_argument("--frames", type=int, default=18, help="of 80 ms in a crop")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    codec = codec_module.build().to(args.device)
    replaced = tuple(f"encoder.encoder_seanet.layers.{i}." for i in range(last_filters(codec) + 1))
    names = {n for n in codec_module.encoder_weights(codec) if not n.startswith(replaced)}
    weights = {n: p for n, p in codec.named_parameters() if n in names}
    raise_layer_scales(weights)
    speech = Speech()
    filters = filterbank(speech).to(args.device)

    def losses(_: float) -> tuple[Tensor, dict[str, float]]:
        sound, codes, _ = (x.to(args.device) for x in speech.crops(rng, args.rows, args.frames))
        features = filtered(codec_module.roughen(sound), filters)
        return codec_module.code_losses(codec_module.logits_of(codec, encode(codec, features)), codes)

    loop = Loop(
        args,
        state_path("filters.pt"),
        weights,
        state=lambda: {"model": {n: t for n, t in codec.state_dict().items() if n in names}},
        restore=lambda saved: codec.load_state_dict(saved["model"], strict=False),
        betas=(0.9, 0.98),
        decay=0.02,
    )
    rng = np.random.default_rng(loop.step + 1)
    loop.run(losses, report_every=100, on_save=speech.refresh)
    with torch.no_grad():
        sound = speech.crops(rng, 4, args.frames)[0].to(args.device)
        plain = encode(codec, filtered(sound, filters))
        seanet_from_filters(codec, filters)
        whole = codec.encoder(sound[:, None]).latents
    log(f"SEANet equals the filters to {(whole - plain).abs().max().item():.1e} of {plain.abs().max().item():.1f}")
    encoder = codec_module.encoder_weights(codec)
    save_torch(state_path("encoder.pt"), {"model": encoder, "step": 0, "spent_s": 0.0, "curve": "[]"})
    log(f"encoder -> {state_path('encoder.pt')}")


if __name__ == "__main__":
    main()
