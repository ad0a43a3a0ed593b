"""Write a random speech-to-text model as transformers saves it, and what transformers makes of codes and of sound.

    python transformers_stt_reference.py OUT_FOLDER

OUT_FOLDER gets `checkpoint/` by `save_pretrained` and `reference.safetensors`. Nothing here is longer than the
attention window: without a cache, transformers' attention has none.
"""

# pyright: reportMissingImports=false
import sys
from pathlib import Path

import torch
from random_csm import small_codec
from random_mimi import randomize
from safetensors.torch import save_file
from speech import test_speech, training_speech
from transformers import (
    KyutaiSpeechToTextConfig,
    KyutaiSpeechToTextFeatureExtractor,
    KyutaiSpeechToTextForConditionalGeneration,
)

N_TEXTS, N_CODEBOOKS, CODEBOOK_SIZE = 60, 5, 64
N_FRAMES = 40
SECONDS = 4.0


def random_model(seed: int) -> KyutaiSpeechToTextForConditionalGeneration:
    config = KyutaiSpeechToTextConfig(
        vocab_size=N_TEXTS + 1,
        bos_token_id=N_TEXTS,
        codebook_vocab_size=CODEBOOK_SIZE + 1,
        audio_bos_token_id=CODEBOOK_SIZE,
        audio_pad_token_id=N_TEXTS + 1 + N_CODEBOOKS * (CODEBOOK_SIZE + 1),
        num_codebooks=N_CODEBOOKS,
        hidden_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        ffn_dim=320,
        sliding_window=100,
        max_position_embeddings=100,
        rope_parameters={"rope_type": "default", "rope_theta": 100_000.0},
        codec_config=small_codec(num_quantizers=N_CODEBOOKS, codebook_size=CODEBOOK_SIZE),
    )
    model = KyutaiSpeechToTextForConditionalGeneration(config).eval()
    generator = torch.Generator().manual_seed(seed)
    for name, p in model.named_parameters():
        if name.startswith("codec_model."):
            continue
        if "norm" in name:
            p.normal_(1.0, 0.1, generator=generator)
        else:
            p.normal_(0.0, 2.0 * p.shape[1] ** -0.5, generator=generator)
    # As its converter leaves them: what nobody says, and what stands for no token at all.
    model.lm_head.weight[-1] = 0
    model.model.embed_tokens.embed_tokens.weight[-1] = 0
    randomize(model.codec_model, training_speech(30.0), test_speech(SECONDS), seed)
    return model


@torch.no_grad()
def run(out: Path) -> None:
    model = random_model(11)
    model.save_pretrained(out / "checkpoint", max_shard_size="500KB")
    KyutaiSpeechToTextFeatureExtractor(audio_delay_seconds=0.16, audio_silence_prefix_seconds=0.08).save_pretrained(
        out / "checkpoint"
    )
    generator = torch.Generator().manual_seed(12)
    text = torch.randint(0, N_TEXTS, (2, N_FRAMES, 1), generator=generator)
    codes = torch.randint(0, CODEBOOK_SIZE, (2, N_FRAMES, N_CODEBOOKS), generator=generator)
    text[:, 0], codes[:, 0] = N_TEXTS, CODEBOOK_SIZE  # with which a stream begins
    tokens = torch.cat([text, codes], dim=2)
    pcm = torch.from_numpy(test_speech(SECONDS))[None, None]
    said = model.generate(input_values=pcm, do_sample=False, max_new_tokens=pcm.shape[-1] // 1920)
    reference = {
        "tokens": tokens.int(),
        "logits": model(input_ids=tokens, use_cache=False).logits[..., :N_TEXTS],
        "pcm": pcm[0, 0],
        "codes": model.codec_model.encode(pcm).audio_codes[0].T.int(),
        "said": said[0].int(),
    }
    save_file({name: value.contiguous() for name, value in reference.items()}, out / "reference.safetensors")


if __name__ == "__main__":
    run(Path(sys.argv[1]))
