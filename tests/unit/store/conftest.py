"""The engine of the suite here: SQLite in a fresh folder. tests/integration/store runs the same on PostgreSQL."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/store.db"


@pytest.fixture(params=["0001", "0002"])
def first(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A store that the first commit which had this schema wrote (tests/data/README.md)."""
    shutil.copy(Path(__file__).parents[2] / "data" / f"store-{request.param}.db", tmp_path / "first.db")
    return f"sqlite:///{tmp_path}/first.db"
