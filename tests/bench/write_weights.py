"""Write the random weights that all peers read, in the environment of the PyTorch originals.

    python write_weights.py CACHE [--configs]    # the latter: of the models nothing but config.json

`csm-1b/`: csm-1b at its true dimensions but for a text table of 4,096 rows (it is only looked up, and three peers
must fit in memory at once) and a small codec. `narrow/`: the same layers and codebooks with every width tiny, and
Mimi at its true dimensions. `mimi-kyutai.safetensors`: that Mimi in Kyutai's layout.
"""

# pyright: reportMissingImports=false
import shutil
import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "parity" / "torch_side"))
from random_csm import CASES, write_tokenizer
from random_mimi import kyutai_state
from safetensors.torch import load_file, save_file
from transformers import CsmConfig, CsmForConditionalGeneration

TEXT_VOCAB = 4096
NARROW = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
}
SMALL_CODEC = {
    "model_type": "mimi",
    "num_filters": 4,
    "hidden_size": 64,
    "upsample_groups": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "intermediate_size": 128,
    "codebook_dim": 32,
    "vector_quantization_hidden_dimension": 32,
}
DEPTH = CASES["csm-1b"]["depth_decoder_config"]
NARROW_DEPTH = {**DEPTH, **NARROW, "backbone_hidden_size": NARROW["hidden_size"]}
MODELS: dict[str, dict[str, Any]] = {
    "csm-1b": {**CASES["csm-1b"], "codec_config": SMALL_CODEC},
    "narrow": {**CASES["csm-1b"], **NARROW, "depth_decoder_config": NARROW_DEPTH},
}


def write_config(name: str, folder: Path) -> CsmConfig:
    """The config, and the tokenizer whose special tokens it names."""
    folder.mkdir(parents=True)
    ids = write_tokenizer(folder / "tokenizer.json", TEXT_VOCAB - 4)
    special = {"bos_token_id": ids["<|begin_of_text|>"], "pad_token_id": ids["<|AUDIO|>"]}
    special |= {"audio_token_id": ids["<|AUDIO|>"], "audio_eos_token_id": ids["<|audio_eos|>"]}
    config = CsmConfig(**MODELS[name], **special, text_vocab_size=TEXT_VOCAB)
    config.save_pretrained(folder)
    return config


@torch.no_grad()
def write(name: str, folder: Path) -> CsmForConditionalGeneration:
    """transformers' own initial weights, codebooks drawn too."""
    config = write_config(name, folder)
    torch.manual_seed(0)
    model = CsmForConditionalGeneration(config).eval()
    for buffer_name, buffer in model.codec_model.named_buffers():
        if buffer_name.endswith("embed_sum"):
            buffer.normal_()
    model.save_pretrained(folder, max_shard_size="20GB")
    return model


def main(cache: Path) -> None:
    part = cache.with_name(f"{cache.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    write("csm-1b", part / "csm-1b")
    codec = write("narrow", part / "narrow").codec_model
    codec.save_pretrained(part / "mimi")
    save_file(kyutai_state(load_file(part / "mimi" / "model.safetensors"), n_heads=8), part / "mimi-kyutai.safetensors")
    shutil.rmtree(part / "mimi")
    shutil.rmtree(cache, ignore_errors=True)
    part.rename(cache)


if __name__ == "__main__":
    if sys.argv[2:] == ["--configs"]:
        for name in MODELS:
            write_config(name, Path(sys.argv[1]) / name)
    else:
        main(Path(sys.argv[1]))
