"""Write CSM checkpoints with random weights and what transformers makes of a conversation with them.

    python csm_reference.py OUT_FOLDER CASE...

CASE is a name in `random_csm.CASES`, or the path of a checkpoint in the transformers layout. For each, OUT_FOLDER gets
NAME/checkpoint/ (unless it was a path), NAME/reference.safetensors and NAME/conversation.json.
"""

# pyright: reportMissingImports=false
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import torch
from random_csm import CASES, write_random_csm
from safetensors.torch import save_file
from speech import FRAME_SIZE, test_speech, training_speech
from tokenizers import Tokenizer
from transformers import CsmForConditionalGeneration

N_FRAMES = 25
MIN_GAP = 2e-4
"""Between the best and the second logit of a greedy choice: twice what two correct models may differ by."""
FEWEST_FRAMES = 10
"""Of a conversation that says something of a model."""
N_ATTEMPTS = 5
TURNS = ((0, "Did you hear the thunder?", 27), (1, "No, but the dog did.", 17))
"""Speaker, text and frames of sound."""
REPLY = (0, "Then we should go inside, it is starting to rain.")


class DoubtError(Exception):
    """What another seed may mend."""


def main(out: Path, cases: list[str]) -> None:
    clips = context_clips()
    for case in cases:
        folder = out / Path(case).name
        folder.mkdir(parents=True, exist_ok=True)
        write_conversation(folder)
        try:
            reference = drawn(case, folder / "checkpoint", clips) if case in CASES else loaded(Path(case), clips)
        except DoubtError as doubt:
            raise SystemExit(f"{case}: {doubt}; give another checkpoint") from None
        save_file({name: value.contiguous() for name, value in reference.items()}, folder / "reference.safetensors")
        logits = reference["logits"]
        print(f"{folder.name}: logits {tuple(logits.shape)} of std {logits.std():.2f}")


def drawn(case: str, checkpoint: Path, clips: list[np.ndarray]) -> dict[str, torch.Tensor]:
    """`run` of random weights that leave no doubt: which do depends on the machine, whose sums differ a little."""
    training = training_speech(90.0 if case == "csm-1b" else 30.0)
    for attempt in range(N_ATTEMPTS):
        shutil.rmtree(checkpoint, ignore_errors=True)
        write_random_csm(case, checkpoint, training, np.concatenate(clips), attempt)
        try:
            return loaded(checkpoint, clips)
        except DoubtError as doubt:
            print(f"{case}: {doubt}; drawing again")
    raise SystemExit(f"{case}: in doubt with each of {N_ATTEMPTS} seeds; choose another in random_csm.py")


def loaded(checkpoint: Path, clips: list[np.ndarray]) -> dict[str, torch.Tensor]:
    """`run` of a checkpoint."""
    model = CsmForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32).eval()
    return run(model, checkpoint / "tokenizer.json", clips)


def write_conversation(folder: Path) -> None:
    """What is said, for the other side."""
    conversation = {
        "turns": [{"speaker": speaker, "text": text} for speaker, text, _ in TURNS],
        "reply": {"speaker": REPLY[0], "text": REPLY[1]},
    }
    (folder / "conversation.json").write_text(json.dumps(conversation, indent=2) + "\n")


def context_clips() -> list[np.ndarray]:
    pcm, clips, start = test_speech(8.0), [], FRAME_SIZE * 5
    for _, _, n_frames in TURNS:
        clips.append(pcm[start : start + n_frames * FRAME_SIZE])
        start += n_frames * FRAME_SIZE
    return clips


@torch.no_grad()
def run(model: CsmForConditionalGeneration, tokenizer: Path, clips: list[np.ndarray]) -> dict[str, torch.Tensor]:
    """Codes of the clips, prompt ids, greedy frames by `generate`, and logits by one forward pass without a cache."""
    config = model.config
    reference = {f"pcm.{i}": torch.from_numpy(clip) for i, clip in enumerate(clips)}
    codes = [model.codec_model.encode(torch.from_numpy(clip)[None, None]).audio_codes[0].T for clip in clips]
    codes = [c[:, : config.num_codebooks] for c in codes]
    reference |= {f"codes.{i}": c.int() for i, c in enumerate(codes)}
    reference["decoded.0"] = model.codec_model.decode(codes[0].T[None]).audio_values[0, 0]

    prompt = _prompt(tokenizer, [len(c) for c in codes])
    input_values = torch.from_numpy(np.concatenate(clips))[None, None]
    cutoffs = torch.tensor([len(clip) for clip in clips]).cumsum(0)[None]
    inputs = {"input_ids": prompt, "input_values": input_values, "input_values_cutoffs": cutoffs}
    reference["prompt_ids"] = prompt[0].int()

    # Ids that the codec does not know are never drawn on our side; transformers has to be asked not to.
    unknown = list(range(config.codec_config.codebook_size, config.vocab_size))
    greedy = model.generate(
        **inputs,
        attention_mask=torch.ones_like(prompt),
        do_sample=False,
        max_new_tokens=N_FRAMES,
        suppress_tokens=unknown,
        depth_decoder_do_sample=False,
        depth_decoder_suppress_tokens=unknown,
    )[0]
    reference["greedy"] = greedy.int()

    rows = model._merge_input_ids_with_input_values(prompt, input_values, cutoffs)["inputs_embeds"]
    reference["prompt_rows"] = rows[0]
    rows = torch.cat([rows, model.backbone_model.embed_tokens(greedy[None])], dim=1)
    hidden = model.backbone_model(inputs_embeds=rows, use_cache=False).last_hidden_state
    hidden = hidden[0, prompt.shape[1] - 1 : -1]
    c0 = model.lm_head(hidden)
    depth_ids = torch.cat([torch.zeros_like(greedy[:, :1]), greedy[:, :-1]], dim=1)
    # With a mask that hides nothing: without one, transformers fails where there are as many frames as codebooks.
    others = model.depth_decoder(
        input_ids=depth_ids,
        backbone_last_hidden_state=hidden.clone(),
        attention_mask=torch.ones_like(depth_ids),
        use_cache=False,
    ).logits
    reference["hidden"] = hidden
    reference["logits"] = torch.cat([c0[:, None], others], dim=1)
    _check_doubts(reference["logits"][..., : config.codec_config.codebook_size], greedy)
    return reference


def _prompt(tokenizer_file: Path, n_frames: list[int]) -> torch.Tensor:
    """What `CsmProcessor.apply_chat_template` gives: text, then one placeholder a frame and one for the end frame."""
    parts = []
    for (speaker, text, _), n in zip(TURNS, n_frames, strict=True):
        parts.append(f"<|begin_of_text|>[{speaker}]{text}<|end_of_text|>" + "<|AUDIO|>" * n + "<|audio_eos|>")
    parts.append(f"<|begin_of_text|>[{REPLY[0]}]{REPLY[1]}<|end_of_text|>")
    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    return torch.tensor([tokenizer.encode("".join(parts), add_special_tokens=False).ids])


def _check_doubts(logits: torch.Tensor, greedy: torch.Tensor) -> None:
    best = logits.topk(2, dim=-1)
    if not torch.equal(best.indices[..., 0], greedy):
        raise DoubtError("transformers' own generate and forward disagree")
    if len(greedy) < FEWEST_FRAMES:
        raise DoubtError(f"it ends after {len(greedy)} frames")
    n_distinct = len(greedy.unique(dim=0))
    if 2 * n_distinct <= len(greedy):
        raise DoubtError(f"only {n_distinct} of {len(greedy)} frames are distinct")  # our guard would end such speech
    gap = (best.values[..., 0] - best.values[..., 1]).min().item()
    if gap < MIN_GAP:
        raise DoubtError(f"two logits of a greedy choice are {gap:.1e} apart")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
