"""What every loaded checkpoint holds, whatever its model."""

from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from csm_mlx.models.mimi import Mimi

Model = TypeVar("Model")
TheTokenizer = TypeVar("TheTokenizer")
Config = TypeVar("Config")


@dataclass(frozen=True, eq=False)
class Loaded(Generic[Model, TheTokenizer, Config]):
    """A model and all that it needs. One serves many sessions; it holds no state of theirs."""

    model: Model
    codec: Mimi
    tokenizer: TheTokenizer
    config: Config
    path: Path
    """The folder it was read from, in the Hub's cache for a repository."""

    @property
    def sample_rate_hz(self) -> int:
        return self.codec.config.sample_rate_hz

    @property
    def frame_size(self) -> int:
        """Samples per frame."""
        return self.codec.config.frame_size
