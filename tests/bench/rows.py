"""What is measured: the rows, their stages, and the peers."""

from dataclasses import dataclass

SLOW_MS = 10_000


@dataclass(frozen=True, kw_only=True)
class Row:
    """`per_round` repetitions at each of a peer's `turns` in each of at most `max_rounds` rounds. `warm` ones before
    the first do not count. A peer that takes `SLOW_MS` for one has one turn a round."""

    name: str
    title: str
    unit: str = "ms"
    """ms of processor time and of the clock, or what a single number counts."""
    per_round: int = 1
    turns: int = 1
    warm: int = 1
    max_rounds: int = 3


@dataclass(frozen=True)
class Stage:
    """Rows whose weights the workers hold at the same time; after it they end, and give their memory back."""

    name: str
    title: str
    rows: tuple[Row, ...]
    worker_mb: int
    """What a worker needs, at most."""


STAGES = (
    Stage(
        "mimi",
        "Mimi, true dimensions, 32 codebooks",
        (
            Row(name="mimi_stream_decode", title="streamed decode, a frame", per_round=10, warm=4, max_rounds=99),
            Row(name="mimi_stream_encode", title="streamed encode, a frame", per_round=10, warm=4, max_rounds=99),
            Row(name="mimi_clip_decode", title="10 s, decode", turns=4),
            Row(name="mimi_clip_encode", title="10 s, encode", turns=4),
        ),
        worker_mb=1500,
    ),
    Stage(
        "overhead",
        "Overhead: csm-1b's 16 + 4 layers, 32 codebooks and 2,051 codes, every width tiny",
        (
            Row(name="overhead_frame", title="a frame", per_round=10, warm=4, max_rounds=99),
            Row(
                name="overhead_batch",
                title="8 utterances at once, a frame each",
                per_round=10,
                warm=4,
                max_rounds=99,
            ),
            Row(name="overhead_build", title="its graph, in Python", per_round=10, warm=4, max_rounds=99),
            Row(name="overhead_queue", title="from call to queued", per_round=10, warm=4, max_rounds=99),
            Row(name="overhead_nodes", title="operations in its graph", unit="nodes", warm=0, max_rounds=1),
        ),
        worker_mb=1200,
    ),
    Stage(
        "csm",
        "CSM, csm-1b's true dimensions",
        (
            Row(name="csm_frame", title="a frame", turns=6, warm=2),
            Row(name="csm_prefill_text", title="prefill, 64 rows of text"),
            Row(name="csm_prefill_audio", title="prefill, 500 rows of sound", max_rounds=5),
            Row(name="csm_prefill_memory", title="its peak above the weights", unit="MB", warm=0),
        ),
        worker_mb=6000,
    ),
)


@dataclass(frozen=True)
class Peer:
    """One column of the table. The floors and ours share a worker, whose rows for them have a prefix."""

    name: str
    script: str
    environment: str
    """`ours`, `bench` (MLX) or `parity` (PyTorch and Rust)."""
    stages: tuple[str, ...]
    """Those that it can do something of: loading the others' weights would take memory for nothing."""
    prefix: str = ""


ALL, MIMI = ("mimi", "overhead", "csm"), ("mimi",)
PEERS = (
    Peer("csm-mlx", "peer_ours.py", "ours", ALL),
    Peer("mlx-audio", "peer_mlx_audio.py", "bench", ALL),
    Peer("moshi-mlx", "peer_moshi_mlx.py", "bench", MIMI),
    Peer("moshi", "peer_moshi.py", "parity", MIMI),
    Peer("rustymimi", "peer_rustymimi.py", "parity", MIMI),
    Peer("transformers", "peer_transformers.py", "parity", ALL),
    Peer("floor", "peer_ours.py", "ours", ("csm",), "floor:"),
    Peer("matvecs", "peer_ours.py", "ours", ("csm",), "matvec:"),
)


@dataclass(frozen=True)
class Figure:
    """One number of a start of `csm say`, and the most that it should be."""

    name: str
    title: str
    goal: float | None = None
    """Of two cores with OpenBLAS and the files in memory."""


STARTUP = (
    Figure("first_sound_s", "start of the process to the first sound (s)", 2.5),
    Figure("load_s", "of which: loading the model (s)"),
    Figure("first_audio_s", "of which: from the loaded model to the first sound (s)", 0.38),
    Figure("real_time_factor", "real-time factor", 0.5),
)
