"""Bases and an adapter of one."""

from pathlib import Path

import pytest
from support import layouts
from support.adapters import trained

from csm_mlx.checkpoint.convert import convert
from csm_mlx.quantize import Quantization


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One base in three forms."""
    place = tmp_path_factory.mktemp("bases")
    layouts.write_own(place / "float", layouts.make_tiny())
    convert(place / "float", place / "bfloat16")
    convert(place / "float", place / "q4", quantization=Quantization())
    convert(place / "float", place / "mxfp4", quantization=Quantization(mode="mxfp4"))
    return {path.name: path for path in place.iterdir()}


@pytest.fixture
def anna(sources: dict[str, Path], tmp_path: Path) -> Path:
    trained(sources["float"], tmp_path / "anna")
    return tmp_path / "anna"
