"""Every configuration of the package: frozen, keyword-only, strict about unknown and missing fields.

`config.json` of our own checkpoints is `CheckpointConfig.to_dict()`. Foreign configs are translated in
`csm_mlx/checkpoint/names/`; nothing here knows another project's spelling.
"""

import dataclasses
import difflib
import json
import math
import types
import typing
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from csm_mlx.errors import ConfigError

if TYPE_CHECKING:
    from typing_extensions import Self

FORMAT_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Strict:
    """Reads itself from JSON-like data, refusing what it does not know (`ConfigError` names field and place)."""

    @classmethod
    def from_dict(cls, data: Any, where: str = "config") -> "Self":
        if not isinstance(data, dict):
            raise ConfigError(f"{where} is {type(data).__name__} {data!r:.60}, expected an object of {cls.__name__}")
        hints = typing.get_type_hints(cls)
        fields = {f.name: f for f in dataclasses.fields(cls)}
        for name in data:
            if name not in fields:
                near = difflib.get_close_matches(str(name), fields, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(sorted(fields))}"
                raise ConfigError(f"{where} has the unknown field {name!r}; {hint}")
        for name, f in fields.items():
            if name not in data and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
                raise ConfigError(f"{where} lacks the field {name!r}; it has {', '.join(map(str, data)) or 'nothing'}")
        values = {name: _read(hints[name], value, f"{where}.{name}") for name, value in data.items()}
        try:
            return cls(**values)
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-like data; `from_dict` of it is equal to `self`. Fields that are None are left out."""
        return {f.name: _write(v) for f in dataclasses.fields(self) if (v := getattr(self, f.name)) is not None}


def _write(value: Any) -> Any:
    if isinstance(value, Strict):
        return value.to_dict()
    return list(value) if isinstance(value, tuple) else value


def _read(hint: Any, value: Any, where: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        (hint,) = [a for a in args if a is not type(None)]
        return _read(hint, value, where)
    if origin is Literal:
        if value not in args:
            raise ConfigError(f"{where} is {value!r}, expected one of {', '.join(map(repr, args))}")
        return value
    if isinstance(hint, type) and issubclass(hint, Strict):
        return hint.from_dict(value, where)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{where} is {value!r}, expected a list")
        return tuple(_read(args[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if origin is dict:
        if not isinstance(value, dict):
            raise ConfigError(f"{where} is {value!r}, expected an object")
        return dict(value)
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is not hint:
        raise ConfigError(f"{where} is {type(value).__name__} {value!r:.60}, expected {hint.__name__}")
    return value


def _positive(config: Any, *names: str) -> None:
    for name in names:
        if not getattr(config, name) > 0:
            raise ConfigError(f"{name} is {getattr(config, name)}, expected a number above 0")


@dataclass(frozen=True, kw_only=True)
class Llama3Rope(Strict):
    """Llama 3's stretching of the rotary frequencies (its `rope_scaling` of type `llama3`)."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_positions: int

    def __post_init__(self) -> None:
        _positive(self, "factor", "low_freq_factor", "original_max_positions")
        if not self.high_freq_factor > self.low_freq_factor:
            raise ConfigError(
                f"high_freq_factor {self.high_freq_factor} must be above low_freq_factor {self.low_freq_factor}"
            )


@dataclass(frozen=True, kw_only=True)
class TransformerConfig(Strict):
    """Dimensions and flavour of the one Transformer (`csm_mlx/nn/transformer.py`)."""

    dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    ffn_dim: int
    norm: Literal["rms", "layer"]
    """RMSNorm, or LayerNorm with weight and bias."""
    norm_eps: float
    mlp: Literal["swiglu", "gelu"]
    """`down(silu(gate(x)) * up(x))`, or `down(gelu(up(x)))` with the exact (erf) GELU."""
    layer_scale: bool
    """One learnt factor per channel after each sub-block."""
    final_norm: bool
    window: int | None = None
    """A query sees this many positions, itself included; None sees all before it."""
    rope_base: float | None = None
    """Of the rotary positions; None knows none, as Moshi's depth decoder."""
    rope_scaling: Llama3Rope | None = None

    def __post_init__(self) -> None:
        _positive(self, "dim", "n_layers", "n_heads", "n_kv_heads", "head_dim", "ffn_dim", "norm_eps")
        if self.rope_base is not None:
            _positive(self, "rope_base")
        elif self.rope_scaling is not None:
            raise ConfigError("rope_scaling is given without a rope_base; give both or neither")
        if self.n_heads % self.n_kv_heads:
            raise ConfigError(f"n_heads {self.n_heads} must be a multiple of n_kv_heads {self.n_kv_heads}")
        if self.head_dim % 2:
            raise ConfigError(f"head_dim is {self.head_dim}, expected an even number: rotary positions turn pairs")
        if self.window is not None and self.window < 1:
            raise ConfigError(f"window is {self.window}, expected 1 or more")


@dataclass(frozen=True, kw_only=True)
class MimiConfig(Strict):
    """Kyutai's Mimi codec: SEANet, a transformer, a stride to the frame rate, split residual quantization."""

    sample_rate_hz: int
    n_filters: int
    ratios: tuple[int, ...]
    """Upsampling factors in the decoder's order; the encoder takes them reversed."""
    dim: int
    kernel_size: int
    last_kernel_size: int
    residual_kernel_size: int
    n_residual_layers: int
    dilation_base: int
    compress: int
    """A residual block's hidden width is its width divided by this."""
    downsample_stride: int
    """Latents per frame; 1 when latents are frames and there is nothing to resample."""
    transformer: TransformerConfig
    codebook_size: int
    codebook_dim: int
    n_codebooks: int
    n_semantic_codebooks: int

    def __post_init__(self) -> None:
        _positive(self, "sample_rate_hz", "n_filters", "dim", "downsample_stride", "codebook_size", "codebook_dim")
        _positive(self, "kernel_size", "last_kernel_size", "residual_kernel_size", "dilation_base", "compress")
        if not self.ratios or min(self.ratios) < 1:
            raise ConfigError(f"ratios is {list(self.ratios)}, expected one or more whole numbers above 0")
        if self.n_residual_layers < 0:
            raise ConfigError(f"n_residual_layers is {self.n_residual_layers}, expected 0 or more")
        if self.transformer.window is None:
            raise ConfigError("transformer.window is missing; a stream without an end needs one (250 for Mimi)")
        if self.transformer.dim != self.dim:
            raise ConfigError(f"transformer.dim {self.transformer.dim} must equal the latents' dim {self.dim}")
        if not 0 < self.n_semantic_codebooks < self.n_codebooks:
            raise ConfigError(
                f"n_semantic_codebooks is {self.n_semantic_codebooks}, "
                f"expected 1 or more and fewer than n_codebooks {self.n_codebooks}"
            )

    @property
    def hop(self) -> int:
        """Samples per latent (960 for Mimi)."""
        return math.prod(self.ratios)

    @property
    def frame_size(self) -> int:
        """Samples per frame (1920 for Mimi)."""
        return self.hop * self.downsample_stride

    @property
    def frame_rate_hz(self) -> float:
        return self.sample_rate_hz / self.frame_size


def padded_rows(vocab_size: int) -> int:
    """Rows of a head: a multiple of 8, so that MLX's fast quantized kernel takes it."""
    return -(-vocab_size // 8) * 8


@dataclass(frozen=True, kw_only=True)
class CsmConfig(Strict):
    """Sesame's CSM: a backbone over frames and a depth decoder over the codebooks of one frame."""

    backbone: TransformerConfig
    depth: TransformerConfig
    text_vocab_size: int
    audio_vocab_size: int
    """Rows per codebook in embeddings and heads: Mimi's codes and a few specials (2051 for csm-1b)."""
    codebook_size: int
    """Codes that the codec knows; ids from here on are never sampled (2048 for csm-1b)."""
    n_codebooks: int
    max_positions: int
    speaker_format: str = "[{speaker}]"
    """What precedes a turn's text, with no space added (MisoTTS wants `"[{speaker}] "`)."""

    def __post_init__(self) -> None:
        _positive(self, "text_vocab_size", "audio_vocab_size", "max_positions")
        for name, stack in (("backbone", self.backbone), ("depth", self.depth)):
            if stack.window is not None:
                raise ConfigError(f"{name}.window is {stack.window}, expected none: CSM's transformers see all")
        if self.n_codebooks < 2:
            raise ConfigError(f"n_codebooks is {self.n_codebooks}, expected 2 or more")
        if not 1 < self.codebook_size <= self.audio_vocab_size:
            raise ConfigError(
                f"codebook_size is {self.codebook_size}, expected at most audio_vocab_size {self.audio_vocab_size}"
            )
        try:
            self.speaker_format.format(speaker=0)
        except (LookupError, ValueError, AttributeError):
            other = " and no other brace"
        else:
            other = ""
        if other or "{speaker}" not in self.speaker_format:
            raise ConfigError(f"speaker_format is {self.speaker_format!r}, expected it to hold '{{speaker}}'{other}")

    @property
    def head_rows(self) -> int:
        """`audio_vocab_size` as the heads have it."""
        return padded_rows(self.audio_vocab_size)


@dataclass(frozen=True, kw_only=True)
class MoshiConfig(Strict):
    """Kyutai's language models over one text stream and Mimi's codebooks: Moshi, Hibiki, and, as the one that says
    nothing, speech-to-text.

    Streams come in this order: text, the `n_generated` codebooks that the model says, the others, which it hears.
    """

    temporal: TransformerConfig
    """Over frames."""
    depth: TransformerConfig | None = None
    """Over the codebooks of one frame; None generates text alone."""
    text_vocab_size: int
    """Of the text heard by the model; one more id, the last, begins a session."""
    text_head_size: int
    """Of the text said."""
    codebook_size: int
    """Mimi's; one more id, the last, begins a session and stands for a delayed code before its time."""
    n_codebooks: int
    """Heard by the model, its own included."""
    n_generated: int = 0
    delays: tuple[int, ...]
    """In frames, of the text stream and each codebook."""
    depth_schedule: tuple[int, ...] = ()
    """Which set of depth weights each generated codebook takes."""
    depth_shares_input: bool = False
    """One projection of the temporal state, not one per set of depth weights."""
    depth_embedding_rank: int | None = None
    """Width that the depth decoder's embeddings are stored in; None stores them whole."""
    n_extra_heads: int = 0
    """On the temporal state, beside the text's: the pause horizons of speech-to-text."""
    extra_head_size: int = 6
    conditions: dict[str, Any] = field(default_factory=dict)
    """The values that a session can be asked for, by name: how good Hibiki's `description` of the voice is."""
    text_pad_id: int = 3
    """Said where no word is."""
    text_word_id: int = 0
    """Said in the last frame before a word."""

    def __post_init__(self) -> None:
        _positive(self, "text_vocab_size", "text_head_size", "codebook_size", "n_codebooks", "extra_head_size")
        if self.temporal.window is None:
            raise ConfigError("temporal.window is missing; a session without an end needs one (3000 for Moshi)")
        if self.depth is not None and self.depth.window is not None:
            raise ConfigError(f"depth.window is {self.depth.window}, expected none: it sees all codebooks of a frame")
        if not 0 <= self.n_generated <= self.n_codebooks:
            raise ConfigError(f"n_generated is {self.n_generated}, expected 0 to n_codebooks {self.n_codebooks}")
        if (self.depth is None) != (self.n_generated == 0):
            raise ConfigError(
                f"n_generated is {self.n_generated}, which needs {'a' if self.n_generated else 'no'} depth"
            )
        if len(self.delays) != self.n_codebooks + 1 or min(self.delays) < 0:
            n = self.n_codebooks + 1
            raise ConfigError(f"delays is {list(self.delays)}, expected {n} from 0 on: of the text and each codebook")
        if self.delays[0] != 0:
            raise ConfigError(f"delays[0] is {self.delays[0]}, expected 0: the text is never delayed")
        if len(self.depth_schedule) != self.n_generated:
            raise ConfigError(f"depth_schedule is {list(self.depth_schedule)}, expected {self.n_generated} numbers")
        if set(self.depth_schedule) != set(range(self.n_depth_sets)):
            raise ConfigError(f"depth_schedule is {list(self.depth_schedule)}, expected every set from 0 on to be used")
        for name in ("text_pad_id", "text_word_id"):
            if not 0 <= getattr(self, name) < self.text_head_size:
                raise ConfigError(f"{name} is {getattr(self, name)}, expected 0 to {self.text_head_size - 1}")

    @property
    def n_depth_sets(self) -> int:
        """Sets of depth weights."""
        return 1 + max(self.depth_schedule, default=-1)

    @property
    def n_heard(self) -> int:
        """Codebooks of the other side, given and never generated."""
        return self.n_codebooks - self.n_generated

    @property
    def initial_tokens(self) -> tuple[int, ...]:
        """What each stream begins with."""
        return (self.text_vocab_size, *(self.codebook_size for _ in range(self.n_codebooks)))


@dataclass(frozen=True, kw_only=True)
class SamplingConfig(Strict):
    """How a code is drawn from its logits. `temperature` 0 is greedy; `top_k` 0, `top_p` 1 and `min_p` 0 are off."""

    temperature: float = 0.9
    top_k: int = 50
    top_p: float = 1.0
    min_p: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature <= 10:
            raise ConfigError(f"temperature is {self.temperature}, expected 0 (greedy) to 10")
        if self.top_k < 0:
            raise ConfigError(f"top_k is {self.top_k}, expected 0 (off) or more")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p is {self.top_p}, expected above 0 and at most 1 (off)")
        if not 0 <= self.min_p < 1:
            raise ConfigError(f"min_p is {self.min_p}, expected 0 (off) or more and below 1")


def _require_version(version: Any, where: str) -> None:
    if version != FORMAT_VERSION:
        raise ConfigError(
            f"{where}format_version is {version!r}, this csm-mlx reads {FORMAT_VERSION}; "
            "update csm-mlx or convert the source again"
        )


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig(Strict):
    """`config.json` of a checkpoint folder in our own format."""

    format_version: int = FORMAT_VERSION
    model_type: Literal["csm"] = "csm"
    csm: CsmConfig
    codec: MimiConfig
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    quantization: dict[str, Any] | None = None
    """`{"group_size", "bits", "mode"}` and, per module path, the same or false: as mlx-lm writes it."""
    source: dict[str, Any] | None = None
    """Where it came from: repository or folder name, layout, tool version. Read by nobody but people."""
    notice: str | None = None
    """One line that is said wherever this checkpoint speaks."""

    def __post_init__(self) -> None:
        _require_version(self.format_version, "")
        if self.csm.n_codebooks > self.codec.n_codebooks:
            raise ConfigError(
                f"csm.n_codebooks is {self.csm.n_codebooks}, but the codec has {self.codec.n_codebooks} codebooks"
            )
        if self.csm.codebook_size != self.codec.codebook_size:
            raise ConfigError(
                f"csm.codebook_size is {self.csm.codebook_size}, but codec.codebook_size {self.codec.codebook_size}"
            )

    @classmethod
    def from_dict(cls, data: Any, where: str = "config") -> "Self":
        if isinstance(data, dict):  # first: another version's fields would only seem unknown
            _require_version(data.get("format_version", FORMAT_VERSION), f"{where}.")
        return super().from_dict(data, where)

    @classmethod
    def read(cls, path: Path) -> "CheckpointConfig":
        """`ConfigError` when the file is missing, is no JSON, or does not fit."""
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(f"cannot read {path}: {error.strerror}") from None
        except ValueError as error:
            raise ConfigError(f"{path} is not JSON ({error}); fetch or convert it again") from None
        return cls.from_dict(data, str(path))


def preset_names() -> list[str]:
    """Names of the JSON presets shipped in `csm_mlx/presets/`."""
    files = resources.files("csm_mlx") / "presets"
    return sorted(f.name.removesuffix(".json") for f in files.iterdir() if f.name.endswith(".json"))


def preset(name: str) -> CheckpointConfig:
    """The dimensions of a published or announced model, such as `csm-1b`; `ConfigError` lists the known names."""
    if name not in preset_names():
        raise ConfigError(f"no preset {name!r}; known are {', '.join(preset_names())}")
    data = json.loads((resources.files("csm_mlx") / "presets" / f"{name}.json").read_text(encoding="utf-8"))
    return CheckpointConfig.from_dict(data, f"preset {name}")
