"""The configuration of every model: frozen, keyword-only, strict about unknown and missing fields.

`csm_mlx/stored.py` puts them together as a checkpoint's `config.json`. Foreign configs are translated in
`csm_mlx/checkpoint/names/`; nothing here knows another project's spelling.
"""

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from csm_mlx.errors import ConfigError
from csm_mlx.strict import Strict

if TYPE_CHECKING:
    pass


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
    def translates(self) -> bool:
        """Whether it says what it hears in another language, and is to be told when that is over: a Hibiki. Both have
        48,000 text ids, of which Moshi has 32,000, and the larger one is asked how good its voice is to be."""
        return self.n_generated > 0 and (bool(self.conditions) or self.text_vocab_size == 48_000)

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
