"""Rows that several peers on MLX measure alike: a Mimi with moshi_mlx's interface, which mlx-audio's copy of it has
too, and what a frame costs besides its weights."""

# pyright: reportMissingImports=false
import io
import time
from collections.abc import Callable
from typing import Any, Protocol

import mlx.core as mx
from worker import CACHE, CLIP_FRAMES, FRAME_SIZE, N_CODEBOOKS, N_CODES, Measure, counted, repeated


def mimi_rows(construct: Callable[[], Any]) -> dict[str, Callable[[], Measure]]:
    """Each row with a model of its own: its state is inside."""

    def load() -> Any:
        model = construct()
        model.load_pytorch_weights(str(CACHE / "mimi-kyutai.safetensors"))
        mx.eval(model.parameters())
        return model

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


class Loop(Protocol):
    """CSM's frames, one after the other."""

    def build(self) -> Any:
        """The graph of the next frame, not computed: arrays."""
        ...

    def finish(self) -> None:
        """Computes what was built."""
        ...

    def run(self) -> None:
        """A frame."""
        ...


def overhead_rows(make_loop: Callable[[], Loop]) -> dict[str, Callable[[], Measure]]:
    """Each row with frames of its own, of tiny widths; a first one is run before."""

    def ready() -> Loop:
        loop = make_loop()
        loop.run()
        return loop

    def build() -> Measure:
        loop = ready()
        return repeated(loop.build, after=loop.finish, clock=time.thread_time)

    def queue() -> Measure:
        loop = ready()
        return repeated(lambda: mx.async_eval(loop.build()), after=loop.finish, clock=time.thread_time)

    def nodes() -> float:
        built, dot = ready().build(), io.StringIO()
        mx.export_to_dot(dot, *(built if isinstance(built, tuple) else (built,)))
        return dot.getvalue().count("shape=rectangle")

    return {
        "overhead_frame": lambda: repeated(ready().run),
        "overhead_build": build,
        "overhead_queue": queue,
        "overhead_nodes": lambda: counted(nodes),
    }
