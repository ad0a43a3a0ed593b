"""What a training is asked to do; part of its saved state, so that a resumed one goes on with the same."""

import math
from dataclasses import dataclass

from csm_mlx.errors import ConfigError
from csm_mlx.lora import AdapterConfig, Method
from csm_mlx.strict import Strict

LEARNING_RATES: dict[Method, float] = {"lora": 2e-4, "dora": 2e-4, "full": 2e-5}
DEFAULT_EPOCHS = 10

NEUTRAL = frozenset({"save_every", "checkpoint_blocks"})
"""Fields that may differ when a training is resumed: they change no weight."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Strict):
    """How to train. A global batch, one step, is `batch * accumulate` examples on each rank."""

    method: Method = "lora"
    """What is trained: adapters beside the linear layers, or all weights."""
    adapter: AdapterConfig | None = None
    """Of the same method; None is that method's default, and all that `full` allows."""
    steps: int | None = None
    epochs: int | None = None
    """Passes over all examples; with neither this nor `steps`, `DEFAULT_EPOCHS`."""
    batch: int = 4
    """Examples at once: memory grows with it."""
    accumulate: int = 1
    """Batches whose gradients are summed before one update: the same training as a larger batch, in less memory."""
    learning_rate: float | None = None
    """The highest; None is `LEARNING_RATES[method]`."""
    warmup: int = 10
    """Steps of linear rise before the cosine."""
    final_share: float = 0.1
    """Of the learning rate, at the last step."""
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.95)
    clip_norm: float = 1.0
    depth_share: float = 1 / 16
    """Of the frames, on whose codebooks after the first the loss is taken: CSM's compute amortization."""
    depth_weight: float = 1.0
    """Of those codebooks' mean loss beside the first one's."""
    seed: int = 0
    validate_every: int | None = None
    """Steps; None is once an epoch."""
    patience: int | None = None
    """Validations in a row without a better one that end the training early; None never does."""
    save_every: int = 50
    """Steps between saves of the state that `resume` goes on from."""
    checkpoint_blocks: bool = False
    """Compute each block's activations a second time going backwards instead of keeping them (less memory, slower)."""
    max_rows: int | None = None
    """Positions of an example; older context is left out beyond it. None is the model's `max_positions`."""

    def __post_init__(self) -> None:
        if self.method == "full" and self.adapter is not None:
            raise ConfigError("method is full, and an adapter was given; a full fine-tuning has none")
        if self.adapter is not None and self.adapter.method != self.method:
            raise ConfigError(f"method is {self.method}, the adapter's is {self.adapter.method}; give both the same")
        if self.steps is not None and self.epochs is not None:
            raise ConfigError(f"{self.steps} steps and {self.epochs} epochs were both given; choose one")
        for name in ("steps", "epochs", "batch", "accumulate", "validate_every", "patience", "save_every", "max_rows"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} is {value}, expected 1 or more")
        if not 0 < self.peak_learning_rate < math.inf:
            raise ConfigError(f"learning_rate is {self.learning_rate}, expected a number above 0, such as 2e-4")
        for name in ("warmup", "weight_decay", "depth_weight"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"{name} is {getattr(self, name)}, expected 0 or more")
        for name in ("final_share", "depth_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} is {getattr(self, name)}, expected 0 to 1")
        if not self.clip_norm > 0:
            raise ConfigError(f"clip_norm is {self.clip_norm}, expected a number above 0")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ConfigError(f"betas is {list(self.betas)}, expected two numbers from 0 to below 1")
        if not 0 <= self.seed < 1 << 64:
            raise ConfigError(f"seed is {self.seed}, expected a whole number from 0 to 2^64 - 1")

    @property
    def adapter_config(self) -> AdapterConfig | None:
        """The adapter to train; None trains all weights."""
        if self.method == "full":
            return None
        return self.adapter or AdapterConfig(method=self.method)

    @property
    def peak_learning_rate(self) -> float:
        return LEARNING_RATES[self.method] if self.learning_rate is None else self.learning_rate

    def global_batch(self, n_ranks: int) -> int:
        """Examples of one step."""
        return self.batch * self.accumulate * n_ranks

    def steps_per_epoch(self, n_examples: int, n_ranks: int) -> int:
        """The last step of an epoch takes its missing examples from the next one."""
        return -(-n_examples // self.global_batch(n_ranks))

    def total_steps(self, n_examples: int, n_ranks: int = 1) -> int:
        if self.steps is not None:
            return self.steps
        return -(-(self.epochs or DEFAULT_EPOCHS) * n_examples // self.global_batch(n_ranks))

    def learning_rate_at(self, step: int, total_steps: int) -> float:
        """Of update `step`, counted from 0: a linear rise, then a cosine down to `final_share` at the last one."""
        peak = self.peak_learning_rate
        if step < self.warmup:
            return peak * (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, total_steps - 1 - self.warmup)
        share = self.final_share + (1 - self.final_share) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
        return peak * share
