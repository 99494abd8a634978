"""MovieLens 100K, fetched once through pip into `.cache/` of the checkout."""

from __future__ import annotations

from pathlib import Path

import pytest

from lepton_ai.demo.dataset import Dataset, dataset

CACHE = Path(__file__).resolve().parents[3] / ".cache"


@pytest.fixture(scope="session")
def movielens() -> Dataset:
    return dataset(CACHE)
