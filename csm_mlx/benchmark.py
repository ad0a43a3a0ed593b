"""How fast a checkpoint speaks on this machine, part by part, and the least that its weights allow.

The floor is what the same weights cost as bare products: every matrix that a frame reads, as often as the frame reads
it, times one row, with nothing between. It is timed between the utterances that it is compared with, so that a busy
machine slows both. Below it lies what the memory's bandwidth allows, which MLX's products need not reach: on a CPU the
BLAS, and how the weights lie in memory, decide that.
"""

import io
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from csm_mlx.config import SamplingConfig
from csm_mlx.errors import ConfigError, GenerationError
from csm_mlx.frames import TurnRows
from csm_mlx.generate.batch import Lanes
from csm_mlx.generate.context import Context
from csm_mlx.generate.frame import sample_frame
from csm_mlx.generate.session import Csm
from csm_mlx.generate.speech import Prefilled
from csm_mlx.models.csm import CsmModel
from csm_mlx.models.mimi import Mimi
from csm_mlx.models.moshi import MoshiModel
from csm_mlx.nn.linear import Layers, Product
from csm_mlx.quantize import named_parameters
from csm_mlx.sampling import Sampler

TEXT = "The boat left the harbour before the sun was up."
_WARM_FRAMES = 8
_PREFILL_ROWS, _CODEC_FRAMES, _REPEATS = 100, 25, 5
_PROBE_BYTES = 256_000_000

OnFrames = Callable[[int, int], None]
"""Called with (frames timed so far, frames in all)."""


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """Times of the monotonic clock, each after a warm-up of its own; medians where there is one number."""

    frame_ms: tuple[float, ...]
    """Each frame of speech but an utterance's first: drawn, decoded and fed back, as a listener waits for it."""
    frame_budget_ms: float
    """What a frame lasts when heard: 80 ms for Mimi."""
    first_audio_s: float
    """From the call to the first sample."""
    first_audio_cold_s: float
    """The same for the first utterance after loading."""
    real_time_factor: float
    """Seconds of work per second of sound, prefill included."""
    prefill_s_per_100_rows: float
    encode_ms: float
    """Per frame, streamed."""
    decode_ms: float
    """Per frame, streamed; `frame_ms` contains it."""
    peak_bytes: int
    """Of all arrays that MLX holds in this process, weights included."""
    frame_bytes: int
    """Of the weights that a frame reads; see `frame_bytes`."""
    floor_ms: float
    """What those take as bare products."""
    memory_gb_per_s: float
    """How fast this machine reads memory, by a sum over the columns of an array too large for any cache."""
    graph_nodes: int
    """Operations of a frame without its codec."""
    graph_build_ms: float
    """From the call until that graph is there, nothing of it computed: Python's share."""

    @property
    def frame_p50_ms(self) -> float:
        return float(np.percentile(self.frame_ms, 50))

    @property
    def frame_p99_ms(self) -> float:
        return float(np.percentile(self.frame_ms, 99))

    @property
    def floor_share(self) -> float:
        """How much of the median frame the bare products would take; at 1 only fewer bits or better products help."""
        return self.floor_ms / self.frame_p50_ms

    @property
    def floor_gb_per_s(self) -> float:
        """How fast the bare products read their weights."""
        return self.frame_bytes / self.floor_ms / 1e6

    @property
    def bandwidth_ms(self) -> float:
        """What reading a frame's weights from memory takes at least."""
        return self.frame_bytes / self.memory_gb_per_s / 1e6

    def to_dict(self) -> dict[str, Any]:
        """JSON-like data."""
        names = ("frame_p50_ms", "frame_p99_ms", "floor_share", "floor_gb_per_s", "bandwidth_ms")
        return {name: getattr(self, name) for name in names} | asdict(self) | {"frame_ms": list(self.frame_ms)}


def benchmark(
    csm: Csm, *, n_frames: int = 100, text: str = TEXT, seed: int = 0, on_frames: OnFrames | None = None
) -> Benchmark:
    """Says `text` in fresh sessions until `n_frames` frames are timed, then times the parts by themselves.

    ConfigError for fewer than one frame; GenerationError for a model that says no two frames.
    """
    if n_frames < 1:
        raise ConfigError(f"n_frames is {n_frames}, expected 1 or more")
    mx.reset_peak_memory()
    cold = next(_utterances(csm, text, _WARM_FRAMES, seed))
    products = BareProducts(csm.model)
    products.run()
    said, floor_ms = [], []
    for utterance in _utterances(csm, text, n_frames, seed + 1):
        said.append(utterance)
        floor_ms += times(products.run, 3)
        if on_frames is not None:
            on_frames(sum(len(u.frame_ms) for u in said), n_frames)
    loop = FrameLoop(csm.model, csm.config.sampling)
    loop.run()
    builds = times(loop.build, _REPEATS, after=loop.finish)
    encode_ms, decode_ms = _codec_ms(csm.codec, csm.config.csm.n_codebooks)
    prefill_s_per_100_rows = _prefill_s_per_100_rows(csm.model)
    peak_bytes = mx.get_peak_memory()  # before the probe of the memory, which is none of the model's
    return Benchmark(
        frame_ms=tuple(ms for u in said for ms in u.frame_ms),
        frame_budget_ms=1000 / csm.codec.config.frame_rate_hz,
        first_audio_s=float(np.median([u.first_audio_s for u in said])),
        first_audio_cold_s=cold.first_audio_s,
        real_time_factor=sum(u.work_s for u in said) / sum(u.sound_s for u in said),
        prefill_s_per_100_rows=prefill_s_per_100_rows,
        encode_ms=encode_ms,
        decode_ms=decode_ms,
        peak_bytes=peak_bytes,
        frame_bytes=frame_bytes(csm.model),
        floor_ms=float(np.median(floor_ms)),
        memory_gb_per_s=_memory_gb_per_s(),
        graph_nodes=count_nodes(*loop.build()),
        graph_build_ms=float(np.median(builds)),
    )


def times(work: Callable[[], object], n: int, after: Callable[[], object] = lambda: None) -> list[float]:
    """Milliseconds of each of `n` calls of `work`; `after` each one comes something that does not count."""
    spent = []
    for _ in range(n):
        started = time.perf_counter()
        work()
        spent.append(1000 * (time.perf_counter() - started))
        after()
    return spent


class _Utterance(NamedTuple):
    frame_ms: list[float]
    """Of each frame but the first."""
    first_audio_s: float
    work_s: float
    sound_s: float


def _utterances(csm: Csm, text: str, n_frames: int, seed: int) -> Iterator[_Utterance]:
    """As many as it takes to time `n_frames` frames; the last one breaks off."""
    n_left = n_frames
    while n_left > 0:
        speech = csm.session(seed=seed).speak(text)
        frame_ms, before = [], speech.stats
        for _ in speech:
            stats = speech.stats
            n_made = stats.n_frames - before.n_frames  # several, where a pause is held back until speech follows
            if before.n_frames:
                frame_ms += [1000 * (stats.work_s - before.work_s) / max(1, n_made)] * n_made
            before = stats
            if len(frame_ms) >= n_left:
                speech.close()
        stats = speech.stats
        if not frame_ms or stats.first_audio_s is None:
            raise GenerationError(
                f"{text!r:.60} ended or fell silent at its first frame, which leaves none to time; "
                "give another text or seed"
            )
        yield _Utterance(frame_ms[:n_left], stats.first_audio_s, stats.work_s, stats.sound_s)
        n_left, seed = n_left - len(frame_ms), seed + 1


class FrameLoop:
    """CSM's frames without the codec and without an end, one after the other, from a prompt of text."""

    def __init__(self, model: CsmModel, sampling: SamplingConfig, n_text_rows: int = 16):
        self._model, self._sampler = model, Sampler(sampling)
        self._context = Context(model)
        self._hidden = self._context.open_turn((0,) * n_text_rows)
        self._n_frames = 0

    def build(self) -> tuple[mx.array, mx.array]:
        """The graph of the next frame, not computed: its codes (1, n_codebooks), and the state that predicts the one
        after it (1, dim)."""
        self._n_frames += 1
        codes = sample_frame(self._model, self._hidden, self._sampler, mx.random.key(self._n_frames))
        self._hidden = self._context.step(codes)
        return codes, self._hidden

    def finish(self) -> None:
        """Computes what was built."""
        mx.eval(self._hidden, self._context.evaluated())

    def run(self) -> None:
        self.build()
        self.finish()


class BatchLoop:
    """`FrameLoop` for `n_rows` utterances in one batch, whose prompts are of unlike length."""

    def __init__(self, model: CsmModel, sampling: SamplingConfig, n_rows: int, n_text_rows: int = 16):
        self._lanes, self._rows = Lanes(model, Sampler(sampling)), list(range(n_rows))
        starts = []
        for row in self._rows:
            context = Context(model)
            hidden = context.open_turn((0,) * (n_text_rows + row))
            starts.append(Prefilled(hidden, context.snapshot().state, mx.random.key(row), model.config.max_positions))
        self._lanes.build([], starts)
        self.finish()

    def build(self) -> list[mx.array]:
        """The graph of the next frame of each row, not computed."""
        self._lanes.build(self._rows, [])
        return self._lanes.evaluated()

    def finish(self) -> None:
        """Computes what was built."""
        mx.eval(self._lanes.evaluated())

    def run(self) -> None:
        self.build()
        self.finish()


def count_nodes(*outputs: mx.array) -> int:
    """Operations between what is computed already and `outputs`; what `mx.compile` made one counts as one."""
    dot = io.StringIO()
    mx.export_to_dot(dot, *outputs)
    return dot.getvalue().count("shape=rectangle")


def _reads_per_frame(path: str, n_codebooks: int) -> int:
    """How often a frame of CSM reads a parameter: backbone, heads and projection once, the depth decoder once per code
    that it predicts, embeddings by the row, which is nothing."""
    if "embedding" in path:
        return 0
    return n_codebooks - 1 if path.startswith("depth_decoder.") else 1


def _reads_per_step(path: str, depth_schedule: tuple[int, ...]) -> int:
    """The same of a Moshi, whose codebooks each read one set of depth weights."""
    if ("embeddings." in path and not path.endswith("projection.weight")) or path.startswith("conditions."):
        return 0
    match = re.match(r"depth_decoders\.(\d+)\.", path)
    return depth_schedule.count(int(match[1])) if match else 1


def frame_bytes(model: CsmModel | MoshiModel) -> int:
    """Bytes of weights that one frame reads, as stored in memory: packed bits, their scales and biases.

    A model that was only constructed, from a config, knows them too.
    """
    if isinstance(model, MoshiModel):
        return sum(
            p.nbytes * _reads_per_step(path, model.config.depth_schedule) for path, p in named_parameters(model).items()
        )
    n_codebooks = model.config.n_codebooks
    return sum(p.nbytes * _reads_per_frame(path, n_codebooks) for path, p in named_parameters(model).items())


class BareProducts:
    """The matrices that a frame reads, as often as it does, each times one row, with nothing between: the products of
    a model that is prepared, in which some are joined and all lie as they are read fastest.

    prefill_rows: those of a prefill of so many rows instead, which reads the backbone once.
    """

    def __init__(self, model: CsmModel, prefill_rows: int | None = None):
        model.prepare()
        self._n_rows, self._dtype = prefill_rows or 1, model.dtype
        self._inputs: dict[int, mx.array] = {}
        once, again = list[Callable[[], list[mx.array]]](), list[Callable[[], list[mx.array]]]()
        for path, module in model.named_modules():
            if isinstance(module, Layers) and (prefill_rows is None or path.startswith("backbone.")):
                products = [self._product(module, product) for product in module.products]
                (again if path.startswith("depth_decoder.") else once).extend(products)
        n_codebooks = model.config.n_codebooks
        if prefill_rows is None:
            hidden, state = (self._input(config.dim) for config in (model.config.backbone, model.config.depth))
            once.append(lambda: [model.depth_input(hidden)])
            once += [lambda k=k: [model.code_logits(state if k else hidden, k)] for k in range(n_codebooks)]
        self._products = once + (n_codebooks - 1) * again

    def build(self) -> list[list[mx.array]]:
        """The outputs of every product, none computed."""
        return [product() for product in self._products]

    def run(self) -> None:
        mx.eval(self.build())

    def _product(self, owner: Layers, product: Product) -> Callable[[], list[mx.array]]:
        x = self._input(_n_inputs(owner[product.names[0]]))
        return lambda: product.parts(owner, x) if product.in_parts else [product(owner, x)]

    def _input(self, width: int) -> mx.array:
        if width not in self._inputs:
            self._inputs[width] = mx.random.normal((self._n_rows, width)).astype(self._dtype)
            mx.eval(self._inputs[width])
        return self._inputs[width]


def _n_inputs(layer: nn.Module) -> int:
    """Of a linear layer, which may be packed, and adapted."""
    plain = layer.get("linear", layer)
    width = plain["weight"].shape[-1]
    return width * 32 // plain.bits if isinstance(plain, nn.QuantizedLinear) else width


def _prefill_s_per_100_rows(model: CsmModel) -> float:
    """Of a turn's sound, in a context of its own."""
    n_rows = min(_PREFILL_ROWS, model.config.max_positions)
    rows = TurnRows((), np.zeros((n_rows - 1, model.config.n_codebooks), np.int32))
    spent_ms = times(lambda: Context(model).add(rows, reference=False), 1 + _REPEATS)
    return float(np.median(spent_ms[1:])) / 1000 * 100 / n_rows


def _codec_ms(codec: Mimi, n_codebooks: int) -> tuple[float, float]:
    """Milliseconds per streamed frame: (encoding, decoding)."""
    pcm = 0.1 * mx.random.normal((1, codec.config.frame_size, 1))
    codes, encoder_state = codec.encode(pcm, n_codebooks=n_codebooks)
    decoded, decoder_state = codec.decode(codes)
    mx.eval(codes, encoder_state, decoded, decoder_state)

    def encode() -> None:
        nonlocal encoder_state
        codes, encoder_state = codec.encode(pcm, encoder_state, n_codebooks=n_codebooks)
        mx.eval(codes, encoder_state)

    def decode() -> None:
        nonlocal decoder_state
        decoded, decoder_state = codec.decode(codes, decoder_state)
        mx.eval(decoded, decoder_state)

    encode_ms, decode_ms = (times(step, 1 + _CODEC_FRAMES)[1:] for step in (encode, decode))
    return float(np.median(encode_ms)), float(np.median(decode_ms))


def _memory_gb_per_s() -> float:
    probe = mx.zeros((_PROBE_BYTES // 4096, 1024), mx.float32)
    mx.eval(probe)
    spent_ms = times(lambda: mx.eval(probe.sum(axis=0)), 1 + _REPEATS)
    return probe.nbytes / min(spent_ms[1:]) / 1e6


def plot(result: Benchmark, path: str | Path, title: str = "") -> None:
    """A PNG: the time of each frame, what it must stay below, and the floor; needs matplotlib (extra `plots`)."""
    from csm_mlx.plots import new_figure, save_figure

    figure = new_figure(10, 5)
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 1))
    budget_ms, p50_ms, p99_ms = result.frame_budget_ms, result.frame_p50_ms, result.frame_p99_ms
    left.plot(range(1, len(result.frame_ms) + 1), result.frame_ms, ".-", color="#4062bb", linewidth=0.7)
    left.set_xlabel("frame")
    left.set_ylabel("milliseconds")
    right.hist(result.frame_ms, bins=30, orientation="horizontal", color="#4062bb")
    right.set_xlabel("frames")
    for axis in (left, right):
        axis.axhline(budget_ms, color="#c44536", label=f"{budget_ms:.0f} ms: slower than this stutters")
        axis.axhline(p50_ms, color="black", linewidth=1, label=f"median {p50_ms:.1f} ms")
        axis.axhline(p99_ms, color="black", linewidth=1, linestyle=":", label=f"99 % are below {p99_ms:.1f} ms")
        axis.axhline(result.floor_ms, color="#59c3c3", label=f"its weights as bare products {result.floor_ms:.1f} ms")
    left.set_ylim(bottom=0)
    left.legend(loc="best", fontsize="small")
    figure.suptitle(f"{title + ': ' if title else ''}real-time factor {result.real_time_factor:.2f}")
    save_figure(figure, path)
