"""Conversational speech on MLX: Sesame's CSM, streamed and quantized, with nothing leaving the machine.

csm = csm_mlx.load("weights/csm-1b-q4")
session = csm.session(seed=0)
session.add(csm_mlx.Turn(speaker=1, text="How was your day?", pcm=question))
for pcm in session.speak("Long, but good.", speaker=0):
    player.write(pcm)
"""

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from csm_mlx import errors as errors
from csm_mlx.errors import CsmError as CsmError

if TYPE_CHECKING:
    from csm_mlx.config import SamplingConfig as SamplingConfig
    from csm_mlx.frames import Turn as Turn
    from csm_mlx.generate.batch import Utterance as Utterance
    from csm_mlx.generate.moshi import Moshi as Moshi
    from csm_mlx.generate.moshi import MoshiSession as MoshiSession
    from csm_mlx.generate.session import Csm as Csm
    from csm_mlx.generate.session import CsmSession as CsmSession
    from csm_mlx.generate.session import Snapshot as Snapshot
    from csm_mlx.generate.speech import Speech as Speech
    from csm_mlx.generate.speech import SpeechStats as SpeechStats
    from csm_mlx.generate.transcribe import Stt as Stt
    from csm_mlx.generate.transcribe import SttSession as SttSession
    from csm_mlx.stored import CheckpointConfig as CheckpointConfig

__version__ = "0.1.0"

# Imported on first use, so that `import csm_mlx`, and with it `csm --help`, waits for neither MLX nor numpy.
_HOMES = {
    "CheckpointConfig": "csm_mlx.stored",
    "SamplingConfig": "csm_mlx.config",
    "Turn": "csm_mlx.frames",
    "Csm": "csm_mlx.generate.session",
    "CsmSession": "csm_mlx.generate.session",
    "Snapshot": "csm_mlx.generate.session",
    "Speech": "csm_mlx.generate.speech",
    "SpeechStats": "csm_mlx.generate.speech",
    "Utterance": "csm_mlx.generate.batch",
    "Moshi": "csm_mlx.generate.moshi",
    "MoshiSession": "csm_mlx.generate.moshi",
    "Stt": "csm_mlx.generate.transcribe",
    "SttSession": "csm_mlx.generate.transcribe",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'csm_mlx' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def default_checkpoint() -> Path:
    """The folder of the embedded voice: inside the wheel, or `weights/csm-tiny` of a checkout."""
    package = Path(__file__).parent
    inside = package / "csm-tiny"
    return inside if inside.is_dir() else package.parent / "weights" / "csm-tiny"


def load(path_or_id: str | Path | None = None, **options: Any) -> "Csm":
    """Loads a checkpoint: a folder in any known layout or a hub id; the embedded voice by default.

    options: those of `csm_mlx.checkpoint.load.load_checkpoint`. Raises CheckpointError, ConfigError or HubError.
    """
    from csm_mlx.checkpoint.load import load_checkpoint
    from csm_mlx.generate.session import Csm

    checkpoint = load_checkpoint(path_or_id or default_checkpoint(), **options)
    return Csm(**vars(checkpoint))


def load_stt(path_or_id: str | Path, **options: Any) -> "Stt":
    """Loads a speech-to-text model of Kyutai's: a folder in any known layout or a hub id.

    options and errors: those of `csm_mlx.checkpoint.load.load_moshi_checkpoint`.
    """
    from csm_mlx.checkpoint.load import load_moshi_checkpoint
    from csm_mlx.generate.transcribe import Stt

    checkpoint = load_moshi_checkpoint(path_or_id, "stt", **options)
    return Stt(**vars(checkpoint))


def load_moshi(path_or_id: str | Path, **options: Any) -> "Moshi":
    """As `load_stt`, for a model that listens and speaks at once: Moshi or Hibiki."""
    from csm_mlx.checkpoint.load import load_moshi_checkpoint
    from csm_mlx.generate.moshi import Moshi

    checkpoint = load_moshi_checkpoint(path_or_id, "moshi", **options)
    return Moshi(**vars(checkpoint))
