"""Where things lie on this machine: the user's voices and the checkpoints below ./weights. Imports nothing heavy."""

import os
from pathlib import Path


def data_folder() -> Path:
    """The user's data folder; `CSM_DATA_DIR` moves it."""
    if moved := os.environ.get("CSM_DATA_DIR"):
        return Path(moved).expanduser()
    from platformdirs import user_data_path

    return user_data_path("csm-mlx", appauthor=False)


def cache_folder() -> Path:
    """What can be made again; `CSM_CACHE_DIR` moves it."""
    if moved := os.environ.get("CSM_CACHE_DIR"):
        return Path(moved).expanduser()
    from platformdirs import user_cache_path

    return user_cache_path("csm-mlx", appauthor=False)


def voices() -> Path:
    return data_folder() / "voices"


def voice_names() -> list[str]:
    """Folder names only, for shell completion; `VoiceStore` reads what is in them."""
    return sorted(path.parent.name for path in voices().glob("*/voice.json"))


def smart_turn() -> Path:
    """Where `csm talk` looks for Smart Turn's model unless it is told."""
    return data_folder() / "smart-turn-v3.onnx"


def weights() -> Path:
    """The folder of checkpoints beside the user: ./weights."""
    return Path("weights")


def checkpoint_names() -> list[str]:
    return sorted(path.parent.name for path in weights().glob("*/config.json"))


def stt_names() -> list[str]:
    """Those below ./weights that write what they hear, Kyutai's 1B first."""
    names = [name for name in checkpoint_names() if _is_stt(weights() / name / "config.json")]
    return sorted(names, key=lambda name: (not name.startswith("stt-1b"), name))


def _is_stt(config: Path) -> bool:
    import json

    try:
        said = json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(said, dict) and bool(said.get("stt") or said.get("stt_config"))
