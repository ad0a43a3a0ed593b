"""rustymimi: Kyutai's Mimi in Rust."""

# pyright: reportMissingImports=false
import numpy as np
import rustymimi
from worker import CACHE, CLIP_FRAMES, FRAME_SIZE, N_CODEBOOKS, N_CODES, Measure, nothing, repeated, serve


def row(method: str, n_frames: int) -> Measure:
    tokenizer = rustymimi.Tokenizer(str(CACHE / "mimi-kyutai.safetensors"), num_codebooks=N_CODEBOOKS)
    rng = np.random.default_rng(0)
    x = 0.1 * rng.standard_normal((1, 1, n_frames * FRAME_SIZE)).astype(np.float32)
    if method.startswith("decode"):
        x = rng.integers(0, N_CODES, (1, N_CODEBOOKS, n_frames), dtype=np.uint32)
    run = getattr(tokenizer, method)
    return repeated(lambda: run(x), before=nothing if n_frames == 1 else tokenizer.reset)


if __name__ == "__main__":
    serve(
        ["rustymimi"],
        {
            "mimi_stream_encode": lambda: row("encode_step", 1),
            "mimi_stream_decode": lambda: row("decode_step", 1),
            "mimi_clip_encode": lambda: row("encode", CLIP_FRAMES),
            "mimi_clip_decode": lambda: row("decode", CLIP_FRAMES),
        },
    )
