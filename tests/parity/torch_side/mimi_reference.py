"""Write a random Mimi in both layouts, and what the three originals make of 12 s of speech.

    python mimi_reference.py OUT_FOLDER
    python mimi_reference.py OUT_FOLDER CSM_FOLDER

OUT_FOLDER gets `kyutai.safetensors`, `transformers/` (save_pretrained) and `reference.safetensors`. With the folder of
a CSM in the transformers layout its own, trained codec runs instead, in transformers alone.
"""

# pyright: reportMissingImports=false
import os
import sys
from pathlib import Path

os.environ["NO_TORCH_COMPILE"] = "1"

import numpy as np
import rustymimi
import torch
from moshi.models import loaders
from random_mimi import kyutai_state, random_mimi
from safetensors.torch import load_file, save_file
from speech import test_speech, training_speech
from transformers import CsmForConditionalGeneration, MimiConfig, MimiModel

SECONDS = 12.0


def run_random(out: Path) -> None:
    pcm = test_speech(SECONDS)
    model = random_mimi(MimiConfig(), training_speech(90.0), pcm, seed=1)
    model.save_pretrained(out / "transformers")
    saved = load_file(out / "transformers" / "model.safetensors")
    save_file(kyutai_state(saved, n_heads=8), out / "kyutai.safetensors")
    del model

    x = torch.from_numpy(pcm)[None, None]
    reference: dict[str, torch.Tensor] = {"pcm": torch.from_numpy(pcm)}
    with torch.no_grad():
        theirs = MimiModel.from_pretrained(out / "transformers").eval()
        reference["codes.transformers"] = theirs.encode(x).audio_codes[0].T
        codes = reference["codes.transformers"]
        reference["decoded.transformers"] = theirs.decode(codes.T[None]).audio_values[0, 0]
        reference["decoded8.transformers"] = theirs.decode(codes.T[None, :8]).audio_values[0, 0]
        del theirs
        kyutai = loaders.get_mimi(out / "kyutai.safetensors", num_codebooks=32)
        reference["codes.moshi"] = kyutai.encode(x)[0].T
        reference["decoded.moshi"] = kyutai.decode(codes.T[None])[0, 0]
        # A clip that is no whole number of frames: Kyutai pads it at the right, once, in front of everything.
        reference["codes_partial.moshi"] = kyutai.encode(x[..., : 24_000 * 2 + 777])[0].T
        del kyutai
    rusty = rustymimi.Tokenizer(str(out / "kyutai.safetensors"), num_codebooks=32)
    reference["codes.rustymimi"] = torch.from_numpy(np.asarray(rusty.encode(pcm[None, None])).astype(np.int64))[0].T
    rusty.reset()
    decoded = rusty.decode(np.ascontiguousarray(codes.T[None].numpy(), np.uint32))
    reference["decoded.rustymimi"] = torch.from_numpy(np.asarray(decoded))[0, 0]

    _save(reference, out)


def run_trained(out: Path, checkpoint: Path) -> None:
    pcm = test_speech(SECONDS)
    codec = CsmForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32).codec_model.eval()
    reference = {"pcm": torch.from_numpy(pcm)}
    with torch.no_grad():
        reference["codes.transformers"] = codec.encode(torch.from_numpy(pcm)[None, None]).audio_codes[0].T
        decoded = codec.decode(reference["codes.transformers"].T[None]).audio_values
        reference["decoded.transformers"] = decoded[0, 0]
    _save(reference, out)


def _save(reference: dict[str, torch.Tensor], out: Path) -> None:
    reference = {
        name: (value.int() if name.startswith("codes") else value).contiguous() for name, value in reference.items()
    }
    save_file(reference, out / "reference.safetensors")
    codes = reference["codes.transformers"]
    distinct = [len(codes[:, k].unique()) for k in range(codes.shape[1])]
    print(f"{len(codes)} frames; distinct codes per codebook {min(distinct)} to {max(distinct)}")


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    run_trained(folder, Path(sys.argv[2])) if len(sys.argv) > 2 else run_random(folder)
