"""Stage 2: train the language model on text and codes, without any sound. Resumes by itself; --minutes is a total."""

import time

import lm
import numpy as np
import torch
from lm_data import Batches, Corpus, pack_rows
from loop import Loop, parser_of
from phones import PHONES
from state import log, state_path

WRONG_CONTEXT = 0.04
"""Part of the spoken phones that are replaced in the input, so that free running survives a mistake."""
DEPTH_PART = 0.25
"""Part of the frames on which codebooks 1 and 2 are trained."""
CHECK_EVERY_S = 480


def edits(a: list[int], b: list[int]) -> int:
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        previous, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (x != y))
    return row[-1]


def evaluate(model, held: Corpus, n: int) -> dict[str, float]:
    """Teacher-forced cross-entropy and free-running phone error rate (greedy) on held-out sentences."""
    model.eval()
    turns = [held.turn(i, i % 2) for i in range(n)]
    with torch.no_grad():
        batch = pack_rows([[t] for t in turns], 128).to(next(model.parameters()).device)
        figures = {k: v.item() for k, v in lm.losses(model, batch, batch.codes, 1.0).items()}
    spoken = lm.speak(model, [t.text_ids() for t in turns])
    wrong = [edits(t.codes[:, 0].tolist(), s[:, 0].tolist()) for t, s in zip(turns, spoken, strict=True)]
    figures["phone_error"] = sum(wrong) / sum(len(t.codes) for t in turns)
    figures["sentences_right"] = sum(w == 0 for w in wrong) / n
    worst = int(np.argmax(wrong))
    said = " ".join(PHONES[c] if c < len(PHONES) else "?" for c in spoken[worst][:, 0])
    log(f"worst: {turns[worst].text} -> {said}")
    log("held out: " + " ".join(f"{k} {v:.3f}" for k, v in figures.items()))
    model.train()
    return figures


def main() -> None:
    parser = parser_of(__doc__, minutes=75, rows=10, peak=1.5e-3)
    parser.add_argument("--length", type=int, default=160, help="positions of a row")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    model = lm.build().to(args.device).train()
    weights = {n: p for n, p in model.named_parameters() if not n.startswith("codec_model")}
    loop = Loop(
        args,
        state_path("lm.pt"),
        weights,
        state=lambda: {"model": {k: v for k, v in model.state_dict().items() if not k.startswith("codec_model")}},
        restore=lambda saved: model.load_state_dict(saved["model"], strict=False),
        betas=(0.9, 0.95),
        decay=0.05,
    )
    held = Corpus.load("heldout.npz")
    batches = Batches(Corpus.load("corpus.npz"), args.rows, args.length, np.random.default_rng(loop.step))

    def losses(progress: float) -> tuple[torch.Tensor, dict[str, float]]:
        batch = batches.next().to(args.device)
        inputs = batch.codes.clone()
        wrong = (torch.rand(inputs.shape[:2], device=inputs.device) < WRONG_CONTEXT) & (inputs[..., 0] > 0)
        inputs[..., 0] = torch.where(wrong, torch.randint_like(inputs[..., 0], 1, len(PHONES)), inputs[..., 0])
        parts = lm.losses(model, batch, inputs, DEPTH_PART)
        loss = parts["c0"] + 0.5 * parts["depth"] + max(0.03, 0.3 * (1 - 2 * progress)) * parts["guidance"]
        return loss, {k: v.item() for k, v in parts.items()}

    def check() -> None:
        nonlocal checked_at
        if time.time() - checked_at > CHECK_EVERY_S:
            loop.note({f"held_{k}": v for k, v in evaluate(model, held, 30).items()})
            checked_at = time.time()

    checked_at = time.time()
    loop.run(losses, on_save=check)
    loop.note({f"held_{k}": v for k, v in evaluate(model, held, len(held)).items()})
    loop.save()


if __name__ == "__main__":
    main()
