"""Stage 7: put language model and codec together and write an HF-layout folder, which `csm convert` reads."""

import argparse
import json
import shutil
import time
from pathlib import Path

import codec as codec_module
import lm
import torch
from lm_data import BEGIN, END, SPECIALS, TEXT_ID
from phones import TRACTS, VOICES
from state import load_torch, log, state_path

SAMPLING = {"do_sample": False, "temperature": 1.0, "max_new_tokens": 250}
REPLACED = {"’": "'", "‘": "'", ";": ",", ":": ",", "…": ".", "—": ",", "–": ",", '"': "", "-": " "}
"""What the tokenizer turns into characters that the sentences of the corpus have."""


def write_tokenizer(folder: Path) -> None:
    """Characters, lower-cased, between begin and end: a BPE without merges."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors

    vocab = {**{name: i for i, name in enumerate(SPECIALS)}, **TEXT_ID}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token=SPECIALS[5], fuse_unk=True))
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in SPECIALS])
    replace = [normalizers.Replace(a, b) for a, b in REPLACED.items()]
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase(), *replace])
    begin, end = SPECIALS[BEGIN], SPECIALS[END]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A {end}",
        pair=f"{begin} $A {end} {begin}:1 $B:1 {end}:1",
        special_tokens=[(begin, BEGIN), (end, END)],
    )
    tokenizer.decoder = decoders.Fuse()
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 2048}
    settings |= {"bos_token": begin, "eos_token": end, "pad_token": SPECIALS[0], "unk_token": SPECIALS[5]}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")


def load_codec(part: str = "") -> torch.nn.Module:
    """The codec with what is trained of it; `part` names one half that must be there."""
    codec = codec_module.build()
    for half in ("decoder", "encoder"):
        path = state_path(f"{half}.pt")
        if path.exists():
            saved = load_torch(path)
            codec.load_state_dict(saved["model"], strict=False)
            log(f"{half}: step {saved['step']}, {saved['spent_s'] / 60:.0f} minutes")
        elif part in ("", half):
            raise FileNotFoundError(f"{path} is missing: run train_codec.py --half {half} first")
    return codec.eval()


@torch.no_grad()
def lend_embeddings(model) -> None:
    """Give pitches and vocal tracts that the language model never met the embedding of the nearest that it has.

    Theirs are noise. As context they would disturb what is said: a user's turn, or a voice that `csm train` adds.
    """
    table = model.backbone_model.embed_tokens.embed_audio_tokens.weight
    own_cycles, own_tracts = [v.cycles for v in VOICES], [v.tract for v in VOICES]
    for cycles in codec_module.USED_CODES[1]:
        nearest = min(own_cycles, key=lambda own: abs(own - cycles))
        table[lm.AUDIO_VOCAB + cycles] = table[lm.AUDIO_VOCAB + nearest]
    for tract in codec_module.USED_CODES[2]:
        nearest = min(own_tracts, key=lambda own: abs(TRACTS[own] - TRACTS[tract]))
        table[2 * lm.AUDIO_VOCAB + tract] = table[2 * lm.AUDIO_VOCAB + nearest]


def load_lm():
    model = lm.build()
    saved = load_torch(state_path("lm.pt"))
    model.load_state_dict(saved["model"], strict=False)
    lend_embeddings(model)
    log(f"language model: step {saved['step']}, {saved['spent_s'] / 60:.0f} minutes")
    return model.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dtype", choices=("float16", "float32"), default="float16")
    parser.add_argument("--out", type=Path, default=state_path("export"))
    args = parser.parse_args()
    model = load_lm()
    model.codec_model = load_codec()
    model.generation_config.update(**SAMPLING, bos_token_id=BEGIN, pad_token_id=0)
    temp = args.out.with_name(f"{args.out.name}.part{time.time_ns()}")
    model.to(getattr(torch, args.dtype)).save_pretrained(temp)
    write_tokenizer(temp)
    extractor = {"feature_extractor_type": "EncodecFeatureExtractor", "feature_size": 1, "padding_side": "right"}
    extractor |= {"padding_value": 0.0, "return_attention_mask": True, "sampling_rate": 24000}
    (temp / "preprocessor_config.json").write_text(json.dumps(extractor, indent=2) + "\n")
    if args.out.exists():
        shutil.rmtree(args.out)
    temp.rename(args.out)
    size = sum(p.stat().st_size for p in args.out.iterdir())
    log(f"{size / 1e6:.1f} MB -> {args.out}")


if __name__ == "__main__":
    main()
