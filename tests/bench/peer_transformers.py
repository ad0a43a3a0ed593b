"""transformers on PyTorch, eager: its Mimi, and its CSM through `generate`."""

# pyright: reportMissingImports=false
import time
from functools import cache
from itertools import pairwise
from typing import Any

import torch
from transformers import CsmConfig, CsmForConditionalGeneration
from worker import (
    AUDIO_ROWS,
    CACHE,
    CLIP_FRAMES,
    DEVICE,
    DTYPE,
    FRAME_SIZE,
    N_CODEBOOKS,
    N_CODES,
    TEMPERATURE,
    TEXT_ROWS,
    TOP_K,
    Measure,
    Sample,
    peak_above,
    repeated,
    serve,
)

torch.set_num_threads(1)
torch.set_grad_enabled(False)
torch.set_default_device("cuda" if DEVICE == "gpu" else "cpu")


@cache
def load(name: str) -> Any:
    """The weights of `name`; random ones where there is only a config."""
    folder, model_class = CACHE / name, CsmForConditionalGeneration
    if list(folder.glob("*.safetensors")):
        model: Any = model_class.from_pretrained(folder, dtype=torch.float32)
    else:
        model = model_class(CsmConfig.from_pretrained(folder)).to(getattr(torch, DTYPE))
    return model.eval()


def mimi() -> Any:
    return load("narrow").codec_model


def stream_encode() -> Measure:
    pcm, past, padding = 0.1 * torch.randn(1, 1, FRAME_SIZE), None, None

    def step() -> None:
        nonlocal past, padding
        out = mimi().encode(pcm, encoder_past_key_values=past, padding_cache=padding, use_streaming=True)
        past, padding = out.encoder_past_key_values, out.padding_cache

    return repeated(step)


def stream_decode() -> Measure:
    raise NotImplementedError("decode keeps no convolution state: frame by frame it makes another sound")


def clip_encode() -> Measure:
    pcm = 0.1 * torch.randn(1, 1, CLIP_FRAMES * FRAME_SIZE)
    return repeated(lambda: mimi().encode(pcm))


def clip_decode() -> Measure:
    codes = torch.randint(0, N_CODES, (1, N_CODEBOOKS, CLIP_FRAMES))
    return repeated(lambda: mimi().decode(codes))


def prefill_text() -> None:
    model = load("csm-1b")
    embedded = model.embed_text_tokens(torch.full((1, TEXT_ROWS), 5))
    model.backbone_model(inputs_embeds=embedded, use_cache=True)


def prefill_audio() -> None:
    load("csm-1b").backbone_model(input_ids=torch.full((1, AUDIO_ROWS, N_CODEBOOKS), 7), use_cache=True)


class Stamps:
    """A streamer that notes when each frame came."""

    def __init__(self) -> None:
        self.cpu: list[float] = []
        self.wall: list[float] = []

    def put(self, _: torch.Tensor) -> None:
        self.cpu.append(time.process_time())
        self.wall.append(time.perf_counter())

    def end(self) -> None:
        pass


def frames(name: str) -> Measure:
    """Those after the first, which carries the prefill."""
    sampling = {"do_sample": True, "temperature": TEMPERATURE, "top_k": TOP_K}
    sampling |= {f"depth_decoder_{option}": value for option, value in sampling.items()}

    def measure(n: int) -> list[Sample]:
        stamps = Stamps()
        ids = torch.full((1, TEXT_ROWS), 5)
        load(name).generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=n + 1, streamer=stamps, **sampling
        )
        pairs = list(zip(stamps.cpu, stamps.wall, strict=True))[-n - 1 :]
        return [
            {"cpu_ms": 1000 * (cpu - cpu_before), "wall_ms": 1000 * (wall - wall_before)}
            for (cpu_before, wall_before), (cpu, wall) in pairwise(pairs)
        ]

    return measure


if __name__ == "__main__":
    serve(
        ["transformers", "torch"],
        {
            "mimi_stream_encode": stream_encode,
            "mimi_stream_decode": stream_decode,
            "mimi_clip_encode": clip_encode,
            "mimi_clip_decode": clip_decode,
            "overhead_frame": lambda: frames("narrow"),
            "csm_frame": lambda: frames("csm-1b"),
            "csm_prefill_text": lambda: repeated(prefill_text),
            "csm_prefill_audio": lambda: repeated(prefill_audio),
            "csm_prefill_memory": lambda: peak_above(prefill_audio),
        },
    )
