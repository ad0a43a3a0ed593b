"""What a checkpoint in our own format says of itself, in its `config.json`, and the presets of released models.

`config.json` is `CheckpointConfig.to_dict()` or `MoshiCheckpointConfig.to_dict()`; `model_type` tells which.
"""

import json
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from csm_mlx.config import CsmConfig, MimiConfig, MoshiConfig, SamplingConfig
from csm_mlx.errors import ConfigError
from csm_mlx.strict import Strict

if TYPE_CHECKING:
    from typing_extensions import Self

FORMAT_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class SttConfig(Strict):
    """When the text of a speech-to-text model comes, as it was trained (Kyutai's `stt_config`)."""

    delay_s: float
    """By which text follows the sound."""
    prefix_s: float = 0.0
    """Silence that it is used to hearing before anything else."""

    def __post_init__(self) -> None:
        if self.delay_s < 0 or self.prefix_s < 0:
            raise ConfigError(f"delay_s is {self.delay_s} and prefix_s {self.prefix_s}, expected seconds from 0 on")


def _require_version(version: Any, where: str) -> None:
    if version != FORMAT_VERSION:
        raise ConfigError(
            f"{where}format_version is {version!r}, this csm-mlx reads {FORMAT_VERSION}; "
            "update csm-mlx or convert the source again"
        )


@dataclass(frozen=True, kw_only=True)
class StoredConfig(Strict):
    """What `config.json` of every checkpoint folder in our own format says, whatever its model."""

    format_version: int = FORMAT_VERSION
    codec: MimiConfig
    quantization: dict[str, Any] | None = None
    """`{"group_size", "bits", "mode"}` and, per module path, the same or false: as mlx-lm writes it."""
    source: dict[str, Any] | None = None
    """Where it came from: repository or folder name, layout, tool version. Read by nobody but people."""
    notice: str | None = None
    """One line that is said wherever this checkpoint speaks."""

    def __post_init__(self) -> None:
        _require_version(self.format_version, "")

    def _require_codec(self, name: str, model: "CsmConfig | MoshiConfig", n_codebooks: int) -> None:
        """`ConfigError` unless the codec has the first `n_codebooks` of the model's codes."""
        if n_codebooks > self.codec.n_codebooks:
            raise ConfigError(
                f"{name}.n_codebooks is {n_codebooks}, but the codec has {self.codec.n_codebooks} codebooks"
            )
        if model.codebook_size != self.codec.codebook_size:
            raise ConfigError(
                f"{name}.codebook_size is {model.codebook_size}, but codec.codebook_size {self.codec.codebook_size}"
            )

    @classmethod
    def from_dict(cls, data: Any, where: str = "config") -> "Self":
        if isinstance(data, dict):  # first: another version's fields would only seem unknown
            _require_version(data.get("format_version", FORMAT_VERSION), f"{where}.")
        return super().from_dict(data, where)

    @classmethod
    def read(cls, path: Path) -> "Self":
        """`ConfigError` when the file is missing, is no JSON, or does not fit."""
        return cls.from_dict(_read_json(path), str(path))


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        raise ConfigError(f"{path} is not JSON ({error}); fetch or convert it again") from None


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig(StoredConfig):
    """Of a CSM."""

    model_type: Literal["csm"] = "csm"
    csm: CsmConfig
    sampling: SamplingConfig = field(default_factory=SamplingConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_codec("csm", self.csm, self.csm.n_codebooks)


@dataclass(frozen=True, kw_only=True)
class MoshiCheckpointConfig(StoredConfig):
    """Of a language model of Kyutai's: Moshi, Hibiki, or speech-to-text, which is the one with `stt`."""

    model_type: Literal["moshi"] = "moshi"
    moshi: MoshiConfig
    text_sampling: SamplingConfig
    audio_sampling: SamplingConfig
    stt: SttConfig | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_codec("moshi", self.moshi, max(self.moshi.n_generated, self.moshi.n_heard))
        if (self.stt is None) != bool(self.moshi.n_generated):
            needs = "no" if self.moshi.n_generated else "an"
            raise ConfigError(f"moshi.n_generated is {self.moshi.n_generated}, which needs {needs} stt")


AnyConfig = CheckpointConfig | MoshiCheckpointConfig
"""Of a checkpoint of either kind."""
_KINDS: dict[str, type[AnyConfig]] = {"csm": CheckpointConfig, "moshi": MoshiCheckpointConfig}


def read_config(path: Path) -> AnyConfig:
    """`config.json` of a checkpoint folder in our own format; `ConfigError` when it is missing or does not fit."""
    return _any_config(_read_json(path), str(path))


def _any_config(data: Any, where: str) -> AnyConfig:
    kind = data.get("model_type", "csm") if isinstance(data, dict) else "csm"
    if kind not in _KINDS:
        raise ConfigError(f"{where}.model_type is {kind!r}, expected one of {', '.join(map(repr, _KINDS))}")
    return _KINDS[kind].from_dict(data, where)


def preset_names() -> list[str]:
    """Names of the JSON presets shipped in `csm_mlx/presets/`."""
    files = resources.files("csm_mlx") / "presets"
    return sorted(f.name.removesuffix(".json") for f in files.iterdir() if f.name.endswith(".json"))


def preset(name: str) -> CheckpointConfig:
    """The dimensions of a published or announced CSM, such as `csm-1b`; `ConfigError` lists the known names."""
    config = any_preset(name)
    if not isinstance(config, CheckpointConfig):
        raise ConfigError(f"preset {name!r} is of {config.model_type}, expected one of csm")
    return config


def any_preset(name: str) -> AnyConfig:
    """As `preset`, of any model: `stt-1b-en_fr` and `moshiko` too."""
    if name not in preset_names():
        raise ConfigError(f"no preset {name!r}; known are {', '.join(preset_names())}")
    data = json.loads((resources.files("csm_mlx") / "presets" / f"{name}.json").read_text(encoding="utf-8"))
    return _any_config(data, f"preset {name}")
