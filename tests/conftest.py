"""What holds for every test: no user's files, no network, and `from support import …`."""

import os
import sys
import tempfile
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

_LONG = ("test_talk_live.py", "test_talk_faults.py", "test_conversation.py", "test_benchmark.py")
_patch = pytest.MonkeyPatch()
_home = tempfile.TemporaryDirectory(prefix="csm-tests-")


def pytest_configure() -> None:
    """A home of this run's own, for the processes that tests start too. Set before any test module is imported, because
    huggingface_hub reads it once; a test with a stand-in hub opts out of offline for itself with `monkeypatch`."""
    home = Path(_home.name)
    for name in [n for n in os.environ if n.startswith(("HF_", "HUGGING_FACE_", "CSM_", "XDG_"))]:
        _patch.delenv(name)
    for name, folder in {
        "HOME": "",
        "USERPROFILE": "",
        "XDG_CONFIG_HOME": ".config",
        "XDG_DATA_HOME": ".local/share",
        "XDG_CACHE_HOME": ".cache",
        "HF_HOME": ".cache/huggingface",
        "MPLCONFIGDIR": ".config/matplotlib",
    }.items():
        _patch.setenv(name, str(home / folder))
    _patch.setenv("HF_HUB_OFFLINE", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files of few long tests come first: at the end, one processor would wait for them."""
    items.sort(key=lambda item: item.path.name not in _LONG)


def pytest_unconfigure() -> None:
    _patch.undo()
    _home.cleanup()
