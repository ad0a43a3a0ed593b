"""Layers compute the same whatever BLAS they think is here."""

import pytest

CORES = {"by inputs": "", "by inputs, rows filled": "Zen", "by outputs": "SkylakeX"}


@pytest.fixture(params=CORES)
def order(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both orders of weights in memory, and rows filled up or not."""
    monkeypatch.setattr("csm_mlx.nn.layout.openblas_core", lambda: CORES[request.param])
    return request.param
