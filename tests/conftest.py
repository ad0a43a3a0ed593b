"""What holds for every test: no user's files, no network, and `from support import …`."""

import os
import signal
import sys
import tempfile
from pathlib import Path
from zlib import crc32

import mlx.core as mx
import pytest

sys.path.insert(0, str(Path(__file__).parent))

_HERE = Path(__file__).parent
_LONG = tuple(
    _HERE / "app" / name
    for name in (
        "assistant/test_talk_live.py",
        "assistant/test_talk_faults.py",
        "assistant/test_conversation.py",
        "assistant/test_ears.py",
        "assistant/test_scribe.py",
        "assistant/test_worker.py",
        "assistant/test_smollm2.py",
        "sound/test_live.py",
        "test_batch.py",
        "test_convert.py",
        "test_duplex.py",
        "test_duplex_live.py",
        "test_fuse.py",
        "test_train.py",
        "test_transcribe.py",
        "test_transcribe_live.py",
    )
)
"""Whole conversations, real devices, and commands that are stopped and go on: half of all the tests' time. To run one
of them by its name, give `-m ""` too."""
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
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell leaves it for what it runs in the background
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)  # before what is not asked for is left out
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files of few tests that take their time come first: at the end, one processor would wait for them."""
    for item in items:
        if item.path in _LONG:
            item.add_marker(pytest.mark.long)
    items.sort(key=lambda item: item.path not in (*_LONG, _HERE / "test_benchmark.py"))


@pytest.fixture(autouse=True, scope="module")
def _drawn_alike_in_a_module(request: pytest.FixtureRequest) -> None:
    """What its fixtures draw is the same in every run; the seeds differ, so that nothing is drawn twice."""
    mx.random.seed(crc32(request.node.nodeid.encode()))


@pytest.fixture(autouse=True)
def _drawn_alike(request: pytest.FixtureRequest, _drawn_alike_in_a_module: None) -> None:
    mx.random.seed(crc32(request.node.nodeid.encode()))


def pytest_unconfigure() -> None:
    _patch.undo()
    _home.cleanup()
