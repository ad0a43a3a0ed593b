"""The codec: transformers' MimiModel at a tiny size, whose three codebooks have a meaning.

Codebook 0 is the phone that a frame begins, codebook 1 the periods of the voice in the frame (12.5 Hz each), codebook 2
the length of the vocal tract. That is Mimi's distillation of WavLM taken to its end: encoder and decoder each learn
their side of known codes, so they train apart, and the language model needs no sound at all.

Code vectors are fixed and orthonormal (times SCALE). Quantizing to the nearest is then a linear classifier, which the
encoder trains with cross-entropy, and the residual after codebook 1 is codebook 2's alone. Codes without a meaning have
the zero vector: the encoder is trained never to be nearest to it.
"""

from functools import cache

import torch
from phones import PHONES, TRACTS
from torch import Tensor
from torch.nn import functional as F
from transformers import MimiConfig, MimiModel

DELAY_FRAMES = 1
"""The decoder gives the sound of a frame one frame after its codes: it has then seen the phone that follows. The last
frame of a turn, which is silence, is never heard."""

CODEBOOK_SIZE = 128
N_CODEBOOKS = 3
SCALE = 4.0
USED_CODES = (range(1, len(PHONES)), range(6, 32), range(1, len(TRACTS)))
INPUT_GAIN = 8.0
"""Factor on the first convolution at the start: speech of rms 0.1 leaves ELU nearly linear."""

OUTPUT_GAIN = 0.05
"""Factor on the decoder's last convolution and the encoder's last projections: they start far too loud and too sure."""


def codec_config() -> MimiConfig:
    return MimiConfig(
        sampling_rate=24000,
        num_filters=16,
        hidden_size=192,
        upsampling_ratios=[8, 6, 5, 4],
        num_hidden_layers=3,
        num_attention_heads=3,
        num_key_value_heads=3,
        head_dim=64,
        intermediate_size=768,
        codebook_size=CODEBOOK_SIZE,
        codebook_dim=96,
        vector_quantization_hidden_dimension=96,
        num_quantizers=N_CODEBOOKS,
        num_semantic_quantizers=1,
        upsample_groups=192,
        sliding_window=250,
        layer_scale_initial_scale=0.1,
        use_cache=False,
    )


@cache
def code_vectors() -> list[Tensor]:
    """One (CODEBOOK_SIZE, codebook_dim) table per codebook; those of codebooks 1 and 2 are orthogonal to each other."""
    generator = torch.Generator().manual_seed(0)
    dim = codec_config().codebook_dim
    tables, bases, used = [], [torch.linalg.qr(torch.randn(dim, dim, generator=generator))[0] for _ in range(2)], 0
    for k, codes in enumerate(USED_CODES):
        begin = used if k == 2 else 0
        table = torch.zeros(CODEBOOK_SIZE, dim)
        table[list(codes)] = bases[min(k, 1)][begin : begin + len(codes)] * SCALE
        used = len(codes)
        tables.append(table)
    return tables


def build() -> MimiModel:
    """A fresh codec with its code vectors in place."""
    codec = MimiModel(codec_config())
    quantizer = codec.quantizer
    layers = [
        *quantizer.semantic_residual_vector_quantizer.layers,
        *quantizer.acoustic_residual_vector_quantizer.layers,
    ]
    for layer, table in zip(layers, code_vectors(), strict=True):
        layer.codebook.embed_sum.copy_(table)
        layer.codebook.cluster_usage.fill_(1.0)
        layer.codebook._embed = None
    with torch.no_grad():
        codec.encoder.encoder_seanet.layers[0].conv.weight.mul_(INPUT_GAIN)
        codec.decoder.decoder_seanet.layers[-1].conv.weight.mul_(OUTPUT_GAIN)
        for side in (quantizer.semantic_residual_vector_quantizer, quantizer.acoustic_residual_vector_quantizer):
            side.input_proj.weight.mul_(OUTPUT_GAIN)
    return codec


def decoder_weights(codec: MimiModel) -> dict[str, Tensor]:
    """Everything between codes and sound."""
    return {n: p for n, p in codec.state_dict().items() if n.startswith("decoder.") or n.endswith("output_proj.weight")}


def encoder_weights(codec: MimiModel) -> dict[str, Tensor]:
    """Everything between sound and codes."""
    return {n: p for n, p in codec.state_dict().items() if n.startswith("encoder.") or n.endswith("input_proj.weight")}


def decode(codec: MimiModel, codes: Tensor) -> Tensor:
    """Codes (B, T, K) to sound (B, T * 1920)."""
    return codec.decoder(codec.quantizer.decode(codes.transpose(1, 2))).audio_values[:, 0]


def logits_of(codec: MimiModel, latents: Tensor) -> list[Tensor]:
    """Latents (B, D, T) to one (B, T, CODEBOOK_SIZE) per codebook, highest where the code vector is nearest."""
    quantizer, logits = codec.quantizer, []
    for k, table in enumerate(code_vectors()):
        side = quantizer.acoustic_residual_vector_quantizer if k else quantizer.semantic_residual_vector_quantizer
        x = side.input_proj(latents).transpose(1, 2).float()
        table = table.to(x.device)
        logits.append(x @ table.T - table.square().sum(1) / 2)
    return logits


def roughen(sound: Tensor) -> Tensor:
    """Sound (B, n) up to 6 dB louder or softer, with a little noise."""
    gain = torch.empty(len(sound), 1, device=sound.device).uniform_(-6, 6)
    return sound * 10 ** (gain / 20) + torch.randn_like(sound) * 10 ** torch.empty_like(gain).uniform_(-5, -3)


def code_losses(logits: list[Tensor], codes: Tensor) -> tuple[Tensor, dict[str, float]]:
    """Cross-entropies against codes (B, T, K): their weighted sum and figures."""
    figures, total = {}, torch.zeros((), device=codes.device)
    for k, (x, weight) in enumerate(zip(logits, (1.0, 0.3, 0.2), strict=True)):
        x, target = x.flatten(0, 1), codes[:, :, k].flatten()
        loss = F.cross_entropy(x, target)
        total = total + weight * loss
        figures[f"c{k}"] = loss.item()
        figures[f"right{k}"] = (x.argmax(-1) == target).float().mean().item()
    return total, figures
