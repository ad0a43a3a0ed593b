"""moshi: Kyutai's Mimi on PyTorch, uncompiled."""

# pyright: reportMissingImports=false
import os

os.environ["NO_TORCH_COMPILE"] = "1"

import torch
from moshi.models import loaders
from worker import CACHE, CLIP_FRAMES, FRAME_SIZE, N_CODEBOOKS, N_CODES, Measure, repeated, serve

torch.set_num_threads(1)
torch.set_grad_enabled(False)


def row(method: str, n_frames: int) -> Measure:
    mimi = loaders.get_mimi(CACHE / "mimi-kyutai.safetensors", num_codebooks=N_CODEBOOKS)
    if n_frames == 1:
        mimi.streaming_forever(1)
    pcm = 0.1 * torch.randn(1, 1, n_frames * FRAME_SIZE)
    x = pcm if method == "encode" else torch.randint(0, N_CODES, (1, N_CODEBOOKS, n_frames))
    run = getattr(mimi, method)
    return repeated(lambda: run(x))


if __name__ == "__main__":
    serve(
        ["moshi", "torch"],
        {
            "mimi_stream_encode": lambda: row("encode", 1),
            "mimi_stream_decode": lambda: row("decode", 1),
            "mimi_clip_encode": lambda: row("encode", CLIP_FRAMES),
            "mimi_clip_decode": lambda: row("decode", CLIP_FRAMES),
        },
    )
