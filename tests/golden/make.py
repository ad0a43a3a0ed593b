"""Make the golden files beside this script: what PyTorch computes, for the tests that run without PyTorch.

    PYTHONPATH=tests/parity/torch_side .parity/bin/python tests/golden/make.py CSM_TINY_HF

CSM_TINY_HF is csm-tiny in the transformers layout, as `weights/recipe/export.py` writes it. Its language model is taken
from `weights/csm-tiny`, unpacked where that is quantized, so that the files that are shipped are what is tested.
"""

# pyright: reportMissingImports=false
import shutil
import sys
from pathlib import Path

import numpy as np
import torch
from csm_reference import context_clips, run, write_conversation
from random_csm import write_random_csm
from safetensors.torch import load_file, save_file
from speech import test_speech, training_speech
from transformers import CsmForConditionalGeneration

HERE = Path(__file__).parent
WEIGHTS = HERE.parents[1] / "weights" / "csm-tiny"

LONG_S = 12.0
"""Past the codec's attention window of 10 s."""
KEPT_SAMPLES = 1920 * 8


def main(tiny_hf: Path) -> None:
    clips = [_rounded(clip) for clip in context_clips()]
    write_conversation(HERE)
    _make_random(clips)
    _make_tiny(tiny_hf, clips)


def _rounded(pcm: np.ndarray) -> np.ndarray:
    """As 16-bit sound holds it."""
    return (np.round(pcm * 32768) / 32768).astype(np.float32)


def _make_random(clips: list[np.ndarray]) -> None:
    folder = HERE / "random"
    shutil.rmtree(folder, ignore_errors=True)
    write_random_csm("golden", folder, training_speech(30.0), np.concatenate(clips))
    model = CsmForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    _save(run(model, folder / "tokenizer.json", clips), "random.safetensors")


@torch.no_grad()
def _make_tiny(tiny_hf: Path, clips: list[np.ndarray]) -> None:
    model = CsmForConditionalGeneration.from_pretrained(tiny_hf, dtype=torch.float32).eval()
    missing, unexpected = model.load_state_dict(_dequantized(model), strict=False)
    if unexpected or any(not name.startswith("codec_model.") for name in missing):
        raise SystemExit(f"weights/csm-tiny does not fit: {unexpected} {missing}")
    reference = run(model, tiny_hf / "tokenizer.json", clips)
    long = _rounded(test_speech(LONG_S))
    reference["long.pcm"] = torch.from_numpy(long)
    codes = model.codec_model.encode(torch.from_numpy(long)[None, None]).audio_codes
    reference["long.codes"] = codes[0].T.int()
    decoded = model.codec_model.decode(codes).audio_values[0, 0]
    reference["long.rms"] = decoded.view(-1, 1920).square().mean(1).sqrt()
    reference["long.end"] = decoded[-KEPT_SAMPLES:]
    _save(reference, "csm-tiny.safetensors")


def _dequantized(model: CsmForConditionalGeneration) -> dict[str, torch.Tensor]:
    """The language model of `weights/csm-tiny` under transformers' names."""
    stored = load_file(WEIGHTS / "model.safetensors")
    weights = {}
    for name, value in stored.items():
        stem, _, part = name.rpartition(".")
        if part == "weight":
            weights[stem] = _unpacked(value, stored, stem) if value.dtype == torch.uint32 else value.float()
    vocab, out = model.config.vocab_size, {}
    heads = [weights.pop(f"audio_head.{k}") for k in range(model.config.num_codebooks - 1)]
    out["depth_decoder.codebooks_head.weight"] = torch.stack([head[:vocab].T for head in heads])
    out["lm_head.weight"] = weights.pop("codebook0_head")[:vocab]
    out["embed_text_tokens.weight"] = weights.pop("text_embeddings")
    table = weights.pop("audio_embeddings")
    out["backbone_model.embed_tokens.embed_audio_tokens.weight"] = table
    out["depth_decoder.model.embed_tokens.weight"] = table
    out["depth_decoder.model.inputs_embeds_projector.weight"] = weights.pop("projection")
    for name, value in weights.items():
        backbone = name.startswith("backbone.")
        stack = ("backbone.", "backbone_model.") if backbone else ("depth_decoder.", "depth_decoder.model.")
        theirs = name.replace(*stack)
        head_dim = (model.config if backbone else model.config.depth_decoder_config).head_dim
        rotary = name.endswith(("q_proj", "k_proj"))
        out[f"{theirs}.weight"] = _halves(value, head_dim) if rotary else value
    return out


def _unpacked(packed: torch.Tensor, stored: dict[str, torch.Tensor], stem: str) -> torch.Tensor:
    """MLX's affine 8-bit: four values a word, the lowest byte first, times the scale of their group plus its bias."""
    scales, biases = stored[f"{stem}.scales"].float(), stored[f"{stem}.biases"].float()
    values = packed.view(torch.uint8).float().view(*scales.shape, -1)
    return (values * scales[..., None] + biases[..., None]).flatten(1)


def _halves(weight: torch.Tensor, head_dim: int) -> torch.Tensor:
    """Rows of each head from adjacent pairs to transformers' two halves."""
    rows, columns = weight.shape
    return weight.view(rows // head_dim, head_dim // 2, 2, columns).transpose(1, 2).reshape(rows, columns)


def _save(reference: dict[str, torch.Tensor], name: str) -> None:
    """Sound that was read is kept in 16 bits, sound that was made only for its first frames."""
    kept = {}
    for key, value in reference.items():
        if key.endswith("pcm") or key.startswith("pcm."):
            kept[key] = (value * 32768).round().to(torch.int16)
        elif key.startswith("decoded."):
            kept[key] = value[:KEPT_SAMPLES]
        elif key != "prompt_rows":
            kept[key] = value
    save_file({key: value.contiguous() for key, value in kept.items()}, HERE / name)
    print(f"{name}: {(HERE / name).stat().st_size / 1e6:.2f} MB, {len(reference['greedy'])} frames")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
