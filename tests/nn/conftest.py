"""Layers compute the same however the BLAS wants their weights to lie."""

import pytest


@pytest.fixture(params=["by inputs", "by outputs"])
def order(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both orders of weights in memory, whatever BLAS is here."""
    monkeypatch.setattr("csm_mlx.nn.layout._multiplies_unpacked", lambda: request.param == "by outputs")
    return request.param
