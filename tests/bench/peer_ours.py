"""csm-mlx, and the floor: our weights as bare products, in the same process so that they are in memory once."""

from functools import cache
from unittest.mock import patch

import mlx.core as mx
import numpy as np
from mlx_rows import overhead_rows
from worker import (
    AUDIO_ROWS,
    CACHE,
    CLIP_FRAMES,
    FRAME_SIZE,
    N_CODEBOOKS,
    N_CODES,
    TEMPERATURE,
    TEXT_ROWS,
    TOP_K,
    Measure,
    peak_above,
    repeated,
    serve,
)

import csm_mlx
from csm_mlx.benchmark import BareProducts, BatchLoop, FrameLoop
from csm_mlx.config import SamplingConfig
from csm_mlx.frames import TurnRows
from csm_mlx.generate.context import Context
from csm_mlx.generate.session import Csm
from csm_mlx.models.csm import CsmModel
from csm_mlx.models.mimi import Mimi

SAMPLING = SamplingConfig(temperature=TEMPERATURE, top_k=TOP_K)
BATCH = 8


@cache
def load(name: str) -> Csm:
    return csm_mlx.load(CACHE / name)


def codec() -> Mimi:
    return load("narrow").codec


def model() -> CsmModel:
    return load("csm-1b").model


def sound(n_frames: int) -> mx.array:
    return 0.1 * mx.random.normal((1, n_frames * FRAME_SIZE, 1))


def codes(n_frames: int) -> mx.array:
    return mx.random.randint(0, N_CODES, (1, n_frames, N_CODEBOOKS))


def stream_encode() -> Measure:
    pcm, state = sound(1), None

    def step() -> None:
        nonlocal state
        out, state = codec().encode(pcm, state)
        mx.eval(out, state)

    return repeated(step)


def stream_decode() -> Measure:
    frame, state = codes(1), None

    def step() -> None:
        nonlocal state
        out, state = codec().decode(frame, state)
        mx.eval(out, state)

    return repeated(step)


def clip_encode() -> Measure:
    pcm = sound(CLIP_FRAMES)
    return repeated(lambda: mx.eval(codec().encode(pcm)[0]))


def clip_decode() -> Measure:
    frames = codes(CLIP_FRAMES)
    return repeated(lambda: mx.eval(codec().decode(frames)[0]))


def prefill_text() -> None:
    mx.eval(Context(model()).open_turn((5,) * TEXT_ROWS))


def prefill_audio() -> None:
    rows = TurnRows((), np.full((AUDIO_ROWS - 1, N_CODEBOOKS), 7, np.int32))
    Context(model()).add(rows, reference=False)


def frame() -> Measure:
    return repeated(FrameLoop(model(), SAMPLING, TEXT_ROWS).run)


def matvecs() -> Measure:
    """The floor of a frame as `x @ weight.T` layer by layer, each weight as it lies in memory."""
    products = BareProducts(model())

    def run() -> None:
        with patch("csm_mlx.nn.linear.Product.operands", return_value=None):
            products.run()

    return repeated(run)


if __name__ == "__main__":
    serve(
        ["csm-mlx", "mlx"],
        {
            "mimi_stream_encode": stream_encode,
            "mimi_stream_decode": stream_decode,
            "mimi_clip_encode": clip_encode,
            "mimi_clip_decode": clip_decode,
            **overhead_rows(lambda: FrameLoop(load("narrow").model, SAMPLING, TEXT_ROWS)),
            "overhead_batch": lambda: repeated(BatchLoop(load("narrow").model, SAMPLING, BATCH, TEXT_ROWS).run),
            "csm_frame": frame,
            "csm_prefill_text": lambda: repeated(prefill_text),
            "csm_prefill_audio": lambda: repeated(prefill_audio),
            "csm_prefill_memory": lambda: peak_above(prefill_audio, before=mx.clear_cache),
            "floor:csm_frame": lambda: repeated(BareProducts(model()).run),
            "matvec:csm_frame": matvecs,
            "floor:csm_prefill_text": lambda: repeated(BareProducts(model(), TEXT_ROWS).run),
            "floor:csm_prefill_audio": lambda: repeated(BareProducts(model(), AUDIO_ROWS).run),
        },
    )
