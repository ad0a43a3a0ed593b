"""Optional stage: train one half of the codec, `--half decoder` (codes to sound) or `--half encoder` (sound to codes).

The halves meet only in the fixed code vectors, so they train in any order, also at the same time.
"""

from functools import cache

import codec as codec_module
import numpy as np
import torch
from loop import Loop, parser_of
from speech_data import Speech
from state import state_path
from synth import FRAME_SAMPLES, SAMPLE_RATE_HZ
from torch import Tensor
from torch.nn import functional as F

EMPHASIS = 0.9
FFT_SIZES = (1024, 256)
MEL_BANDS = (80, 32)


@cache
def mel_matrix(size: int, bands: int) -> Tensor:
    """Triangular bands even on the mel scale, each of sum one: (size // 2 + 1, bands)."""
    mel = torch.linspace(0, 2595 * np.log10(1 + SAMPLE_RATE_HZ / 2 / 700), bands + 2)
    edges = 700 * (10 ** (mel / 2595) - 1)
    hz = torch.linspace(0, SAMPLE_RATE_HZ / 2, size // 2 + 1)[:, None]
    rising = (hz - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - hz) / (edges[2:] - edges[1:-1])
    bands_matrix = torch.minimum(rising, falling).clamp(min=0)
    return bands_matrix / bands_matrix.sum(0).clamp(min=1e-3)


def spectral_losses(made: Tensor, true: Tensor) -> dict[str, Tensor]:
    """L1 of mel bands' logs, of all bins' logs and of magnitudes of sounds (B, n_samples), over two resolutions."""
    parts: dict[str, list[Tensor]] = {"mel": [], "log": [], "linear": []}
    for size, bands in zip(FFT_SIZES, MEL_BANDS, strict=True):
        window = torch.hann_window(size, device=made.device)
        a, b = (
            torch.stft(x, size, size // 4, window=window, return_complex=True).abs().mT / size**0.5
            for x in (made, true)
        )
        mel = mel_matrix(size, bands).to(made.device)
        parts["mel"].append(F.l1_loss((a @ mel + 1e-3).log(), (b @ mel + 1e-3).log()))
        parts["log"].append(F.l1_loss((a + 3e-3).log(), (b + 3e-3).log()))
        parts["linear"].append(F.l1_loss(a, b))
    return {name: torch.stack(values).mean() for name, values in parts.items()}


def emphasise(x: Tensor) -> Tensor:
    return x - EMPHASIS * F.pad(x[..., :-1], (1, 0))


def wave_loss(made: Tensor, true: Tensor) -> Tensor:
    """Energy of the difference of the emphasised sounds, as a part of the energy."""
    made, true = emphasise(made), emphasise(true)
    return F.mse_loss(made, true) / true.square().mean()


def sound_losses(made: Tensor, true: Tensor) -> tuple[Tensor, dict[str, float]]:
    """What a decoder is trained on: spectra, and the waveform, which is locked to the frames."""
    parts = spectral_losses(made, true)
    parts["wave"] = wave_loss(made, true)
    loss = parts["mel"] + 0.5 * parts["log"] + 4 * parts["linear"] + 0.5 * parts["wave"]
    return loss, {name: value.item() for name, value in parts.items()}


def decoder_losses(codec, sound: Tensor, codes: Tensor, known: Tensor) -> tuple[Tensor, dict[str, float]]:
    heard = known.repeat_interleave(FRAME_SAMPLES, 1)[..., 0]
    return sound_losses(codec_module.decode(codec, codes).float() * heard, sound * heard)


def encoder_losses(codec, sound: Tensor, codes: Tensor, _: Tensor) -> tuple[Tensor, dict[str, float]]:
    latents = codec.encoder(codec_module.roughen(sound)[:, None]).latents
    return codec_module.code_losses(codec_module.logits_of(codec, latents), codes)


def main() -> None:
    parser = parser_of(__doc__, minutes=40, rows=5, peak=1.2e-3)
    parser.add_argument("--half", choices=("decoder", "encoder"), required=True)
    parser.add_argument("--frames", type=int, default=18, help="of 80 ms in a crop")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    codec = codec_module.build().to(args.device).train()
    of_half = codec_module.decoder_weights if args.half == "decoder" else codec_module.encoder_weights
    weights = {n: p for n, p in codec.named_parameters() if n in of_half(codec)}
    for n, p in codec.named_parameters():
        p.requires_grad_(n in weights)
    losses_of = decoder_losses if args.half == "decoder" else encoder_losses
    delay = codec_module.DELAY_FRAMES if args.half == "decoder" else 0
    loop = Loop(
        args,
        state_path(f"{args.half}.pt"),
        weights,
        state=lambda: {"model": of_half(codec)},
        restore=lambda saved: codec.load_state_dict(saved["model"], strict=False),
        betas=(0.8, 0.98),
        decay=0.01,
    )
    speech, rng = Speech(), np.random.default_rng(loop.step)

    def losses(_: float) -> tuple[Tensor, dict[str, float]]:
        crops = speech.crops(rng, args.rows, args.frames, delay)
        return losses_of(codec, *(x.to(args.device) for x in crops))

    loop.run(losses, on_save=speech.refresh)


if __name__ == "__main__":
    main()
