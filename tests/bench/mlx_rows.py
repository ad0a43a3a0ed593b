"""The rows of a Mimi with moshi_mlx's interface, which mlx-audio's copy of it has too."""

# pyright: reportMissingImports=false
from collections.abc import Callable
from typing import Any

import mlx.core as mx
from worker import CLIP_FRAMES, FRAME_SIZE, N_CODEBOOKS, N_CODES, Measure, repeated


def mimi_rows(load: Callable[[], Any]) -> dict[str, Callable[[], Measure]]:
    """Each row with a model of its own: its state is inside."""

    def row(method: str, *, of_sound: bool, n_frames: int) -> Callable[[], Measure]:
        def make() -> Measure:
            run = getattr(load(), method)
            pcm = 0.1 * mx.random.normal((1, 1, n_frames * FRAME_SIZE))
            x = pcm if of_sound else mx.random.randint(0, N_CODES, (1, N_CODEBOOKS, n_frames))
            mx.eval(x)
            return repeated(lambda: mx.eval(run(x)))

        return make

    return {
        "mimi_stream_encode": row("encode_step", of_sound=True, n_frames=1),
        "mimi_stream_decode": row("decode_step", of_sound=False, n_frames=1),
        "mimi_clip_encode": row("encode", of_sound=True, n_frames=CLIP_FRAMES),
        "mimi_clip_decode": row("decode", of_sound=False, n_frames=CLIP_FRAMES),
    }
