"""A Mimi with random weights that behaves like a trained one, in transformers' and in Kyutai's layout.

Plain random weights would prove little: layer scales of 0.01 hide the transformers, zero biases hide the biases, and
codebooks that ignore the latents hide the encoder. So scales are 0.1 to 0.6, every bias and norm is moved away from its
default, and each codebook is fitted to what the one before it left over of real speech.
"""

# pyright: reportMissingImports=false
import numpy as np
import torch
from transformers import MimiConfig, MimiModel

INPUT_GAIN = 16.0
"""Speech at its usual level leaves the first ELU linear; a louder first layer does not."""
MIN_MARGIN = 2e-5
"""How much nearer the nearest centroid must be than the second, of its distance; float32 noise is about 1e-7."""
MAX_DRAWS = 100


@torch.no_grad()
def randomize(model: MimiModel, training: np.ndarray, test: np.ndarray, seed: int) -> None:
    """Draw all weights of `model` anew, its codebooks fitted to the speech `training` (n,), for use on `test` (n,)."""
    generator = torch.Generator().manual_seed(seed)

    def normal(shape: torch.Size, std: float, mean: float = 0.0) -> torch.Tensor:
        return torch.randn(shape, generator=generator) * std + mean

    for name, p in model.named_parameters():
        if name.endswith("layer_scale.scale"):
            p.copy_(torch.rand(p.shape, generator=generator) * 0.5 + 0.1)
        elif "layernorm" in name:
            p.copy_(normal(p.shape, 0.1, mean=1.0 if name.endswith("weight") else 0.0))
        elif name.endswith("bias"):
            p.copy_(normal(p.shape, 0.05))
        else:
            p.copy_(normal(p.shape, _fan_in(name, p) ** -0.5))
    model.encoder.encoder_seanet.layers[0].conv.weight.mul_(INPUT_GAIN)
    _fit_codebooks(model, training, test, generator)
    _set_output_level(model, training, rms=0.1)


def _fan_in(name: str, p: torch.Tensor) -> int:
    if p.ndim == 2:
        return p.shape[1]
    if "decoder_seanet" in name and p.shape[-1] % 2 == 0:  # transposed: (in, out, 2 * stride), two taps reach a sample
        return 2 * p.shape[0]
    if "upsample" in name:
        return 2
    return p.shape[1] * p.shape[2]


def _fit_codebooks(model: MimiModel, training: np.ndarray, test: np.ndarray, generator: torch.Generator) -> None:
    """Each codebook is drawn from the Gaussian of the residuals it has to code, as small as codes them best.

    A draw that leaves a frame of `test` nearly between two centroids is drawn again: there float32 noise, not the
    model, would decide the code, and each of the originals would decide it its own way.
    """
    latents = [model.encoder(torch.from_numpy(pcm)[None, None]).latents for pcm in (training, test)]
    for rvq in (model.quantizer.semantic_residual_vector_quantizer, model.quantizer.acoustic_residual_vector_quantizer):
        residual, test_residual = (rvq.input_proj(x)[0].T for x in latents)
        for layer in rvq.layers:
            codebook = layer.codebook
            codebook.initialized.fill_(1)
            usage = torch.rand(len(codebook.embed_sum), generator=generator) * 9 + 1
            codebook.cluster_usage.copy_(usage)
            for _ in range(MAX_DRAWS):
                centroids = _draw_centroids(residual, len(usage), generator)
                codebook.embed_sum.copy_(centroids * usage[:, None])
                codebook._embed = None
                if _margin(test_residual, codebook.embed) > MIN_MARGIN:
                    break
            else:
                raise SystemExit(f"no codebook without near-ties in {MAX_DRAWS} draws; lower MIN_MARGIN {MIN_MARGIN}")
            residual = residual - codebook.decode(codebook.encode(residual))
            test_residual = test_residual - codebook.decode(codebook.encode(test_residual))


def _draw_centroids(residual: torch.Tensor, size: int, generator: torch.Generator) -> torch.Tensor:
    mean, centred = residual.mean(0), residual - residual.mean(0)
    weights = torch.randn(size, len(residual), generator=generator) / len(residual) ** 0.5
    spread = weights @ centred
    scales = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0])
    costs = torch.stack([torch.cdist(centred, spread * s).amin(1).square().mean() for s in scales])
    return mean + spread * scales[costs.argmin()]


def _margin(residual: torch.Tensor, centroids: torch.Tensor) -> float:
    best = torch.cdist(residual.double(), centroids.double()).topk(2, largest=False).values
    return ((best[:, 1] - best[:, 0]) / best[:, 1]).min().item()


def _set_output_level(model: MimiModel, speech: np.ndarray, rms: float) -> None:
    """Make the last convolution as loud as speech, so that an absolute tolerance means what it says."""
    pcm = model(torch.from_numpy(speech[: 2 * 24_000])[None, None]).audio_values
    last = model.decoder.decoder_seanet.layers[-1].conv
    last.weight.mul_(rms / pcm.std())
    last.bias.mul_(rms / pcm.std())


def random_mimi(config: MimiConfig, training: np.ndarray, test: np.ndarray, seed: int) -> MimiModel:
    """A model of `config`'s dimensions in evaluation mode; see `randomize`."""
    model = MimiModel(config).eval()
    randomize(model, training, test, seed)
    return model


def kyutai_state(state: dict[str, torch.Tensor], n_heads: int) -> dict[str, torch.Tensor]:
    """Tensors as `MimiModel.save_pretrained` names them, renamed to what Kyutai's checkpoint files hold."""
    out: dict[str, torch.Tensor] = {}
    for name, value in state.items():
        if ".self_attn." in name and ("q_proj" in name or "k_proj" in name or "v_proj" in name):
            continue
        out[_kyutai_name(name)] = value
    for side in ("encoder_transformer", "decoder_transformer"):
        layer = 0
        while f"{side}.layers.{layer}.self_attn.q_proj.weight" in state:
            q, k, v = (state[f"{side}.layers.{layer}.self_attn.{x}_proj.weight"] for x in "qkv")
            stacked = torch.cat([_interleave(q, n_heads), _interleave(k, n_heads), v])
            out[f"{side}.transformer.layers.{layer}.self_attn.in_proj_weight"] = stacked
            layer += 1
    return {name: value.contiguous() for name, value in out.items()}


def _interleave(weight: torch.Tensor, n_heads: int) -> torch.Tensor:
    """Rows of each head from transformers' two halves to Kyutai's adjacent pairs."""
    rows, columns = weight.shape
    return weight.view(n_heads, 2, rows // n_heads // 2, columns).transpose(1, 2).reshape(rows, columns)


def _kyutai_name(name: str) -> str:
    name = name.replace("semantic_residual_vector_quantizer", "rvq_first")
    name = name.replace("acoustic_residual_vector_quantizer", "rvq_rest")
    if name.startswith("quantizer."):
        name = name.replace(".layers.", ".vq.layers.").replace(".codebook.", "._codebook.")
        return name.replace("embed_sum", "embedding_sum").replace("._codebook.initialized", "._codebook._initialized")
    if name.startswith("downsample."):
        return name.replace("downsample.conv.", "downsample.conv.conv.conv.")
    if name.startswith("upsample."):
        return name.replace("upsample.conv.", "upsample.convtr.convtr.convtr.")
    if "_transformer." in name:
        name = name.replace("_transformer.layers.", "_transformer.transformer.layers.")
        for theirs, ours in (
            ("self_attn.o_proj", "self_attn.out_proj"),
            ("input_layernorm", "norm1"),
            ("post_attention_layernorm", "norm2"),
            ("self_attn_layer_scale", "layer_scale_1"),
            ("mlp_layer_scale", "layer_scale_2"),
            ("mlp.fc1", "linear1"),
            ("mlp.fc2", "linear2"),
        ):
            name = name.replace(theirs, ours)
        return name
    side, _, rest = name.partition(".layers.")
    is_transposed = side == "decoder" and rest.split(".")[0] in {"2", "5", "8", "11"}
    return f"{side}.model." + rest.replace("conv.", "convtr.convtr." if is_transposed else "conv.conv.")
