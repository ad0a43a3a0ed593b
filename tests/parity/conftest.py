"""The originals run in their own environment, once per test run; what they compute comes back as safetensors."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.originals import RANDOM_CASES, RunTorch

ROOT = Path(__file__).parents[2]
TORCH_SIDE = Path(__file__).parent / "torch_side"
# Read here: tests/conftest.py clears the environment of anything that could change how the tests run.
PYTHON = Path(os.environ.get("PARITY_PYTHON", ROOT / ".parity" / "bin" / "python"))
CSM_TINY_HF = ROOT.parent / "shared" / "csm-tiny-hf"


@pytest.fixture(scope="session")
def run_torch() -> RunTorch:
    """`run_torch(script, *args)`: a script of torch_side in the originals' environment; its output."""
    if not PYTHON.exists():
        pytest.fail(f"{PYTHON} is missing: `make parity` makes it; or set PARITY_PYTHON to a Python with torch")

    def run(script: str, *args: object) -> str:
        env = {name: value for name, value in os.environ.items() if name not in ("LD_PRELOAD", "PYTHONPATH")}
        done = subprocess.run(
            [str(PYTHON), str(TORCH_SIDE / script), *map(str, args)], env=env, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{script} {args} failed:\n{done.stdout[-2000:]}\n{done.stderr[-6000:]}"
        return done.stdout

    return run


@pytest.fixture(scope="session")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder for gigabytes, deleted at the end, which pytest's own are not."""
    folder = tmp_path_factory.mktemp("parity")
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def csm_references(run_torch: RunTorch, scratch: Path) -> Path:
    """A folder per random case: `checkpoint/` by `save_pretrained`, and the reference."""
    run_torch("csm_reference.py", scratch / "csm", *RANDOM_CASES)
    return scratch / "csm"


@pytest.fixture(scope="session")
def csm_tiny_hf() -> Path:
    """The trained csm-tiny as `save_pretrained` wrote it."""
    if not CSM_TINY_HF.is_dir():
        pytest.skip(f"the trained csm-tiny in the transformers layout is not at {CSM_TINY_HF}")
    return CSM_TINY_HF
