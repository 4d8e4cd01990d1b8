"""One reward that all tests here share."""

from pathlib import Path

import pytest
import tastes

import lore_jax


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    """A saved LoRe that knows ada's and bo's tastes."""
    place = tmp_path_factory.mktemp("tastes")
    return tastes.reward(place / "base").save(place / "mine")


@pytest.fixture(scope="session")
def model(folder) -> lore_jax.LoRe:
    return lore_jax.load(folder)
