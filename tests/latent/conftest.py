"""The tiny random models that the tests of this room share, loaded once."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny import load, tiny

from msd_teach import DiffusionPrior


@pytest.fixture(scope="session")
def folder1(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny(tmp_path_factory.mktemp("model"), "1")


@pytest.fixture(scope="session")
def prior1(folder1: Path) -> DiffusionPrior:
    """A Stable Diffusion 1, which predicts ε."""
    return load(folder1)


@pytest.fixture(scope="session")
def prior2(tmp_path_factory: pytest.TempPathFactory) -> DiffusionPrior:
    """A Stable Diffusion 2, which predicts v."""
    return load(tiny(tmp_path_factory.mktemp("model"), "2"))


@pytest.fixture(scope="session", params=["1", "2"])
def prior(request: pytest.FixtureRequest) -> DiffusionPrior:
    return request.getfixturevalue(f"prior{request.param}")
