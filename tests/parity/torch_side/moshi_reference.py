"""Write random language models of Kyutai's and what their PyTorch package makes of random codes.

    python moshi_reference.py OUT_FOLDER CASE...

OUT_FOLDER/CASE gets `torch/`, `mlx/`, `candle/` (weights and config.json) and `reference.safetensors`.
"""

# pyright: reportMissingImports=false
import os
import sys
from pathlib import Path

os.environ["NO_TORCH_COMPILE"] = "1"

import torch
from moshi.conditioners import ConditionAttributes, ConditionTensors
from moshi.models import LMGen
from moshi.models.lm import LMModel
from random_moshi import SEEDS, random_lm, write
from safetensors.torch import save_file

N_FRAMES = 60
BATCH = 2


@torch.no_grad()
def run(name: str, out: Path) -> None:
    model = random_lm(name)
    write(name, model, out)
    generator = torch.Generator().manual_seed(100 + SEEDS[name])
    reference = _forced(model, generator) | _greedy(model, generator)
    save_file({key: value.contiguous() for key, value in reference.items()}, out / "reference.safetensors")


def _codes(model: LMModel, batch: int, n_streams: int, generator: torch.Generator) -> torch.Tensor:
    return torch.randint(0, model.card, (batch, n_streams, N_FRAMES), generator=generator)


def _condition(model: LMModel, batch: int) -> ConditionTensors | None:
    """As `run_inference` asks Hibiki for it."""
    if model.condition_provider is None:
        return None
    wanted = ConditionAttributes(text={"description": "very_good"}, tensor={})
    return model.condition_provider.prepare_and_provide([wanted] * batch)


def _forced(model: LMModel, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Logits of given frames, some of whose tokens are nothing (-1): `LMModel.forward`, as it trains."""
    codes = _codes(model, BATCH, model.num_codebooks, generator)
    nothing = torch.rand(codes[:, model.dep_q + 1 :].shape, generator=generator) < 0.1
    codes[:, model.dep_q + 1 :][nothing] = model.zero_token_id
    if model.dep_q:
        output = model(codes, _condition(model, BATCH))
        audio = {"audio_logits": output.logits.nan_to_num(), "audio_mask": output.mask.int()}
        return {"codes": codes.int(), "text_logits": output.text_logits[:, 0], **audio}
    # `forward` needs a depth decoder; without one, and without delays, it comes down to this.
    shifted = torch.cat([model._get_initial_token().expand(BATCH, -1, -1), codes[:, :, :-1]], dim=2)
    hidden, text_logits = model.forward_text(shifted)
    extra = torch.stack([head(hidden) for head in model.extra_heads], dim=2)
    return {"codes": codes.int(), "text_logits": text_logits[:, 0], "extra_logits": extra}


def _greedy(model: LMModel, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Full duplex, frame by frame. The first one is thrown away by `LMGen`, which is what a session begins with."""
    n_heard = model.n_q - model.dep_q
    heard = _codes(model, 1, n_heard, generator)
    said, extra = [], []
    gen = LMGen(model, use_sampling=False, check=True, condition_tensors=_condition(model, 1))
    with gen.streaming(1):
        for i in range(-1, N_FRAMES):
            result = gen.step_with_extra_heads(heard[:, :, max(i, 0)][..., None])
            if result is not None:
                said.append(result[0][0, :, 0])
                extra.append(torch.stack([p[0, 0] for p in result[1]]) if result[1] else torch.zeros(1, 1))
    return {"heard": heard[0].T.int(), "said": torch.stack(said).int(), "extra": torch.stack(extra)}


if __name__ == "__main__":
    for case in sys.argv[2:]:
        run(case, Path(sys.argv[1]) / case)
