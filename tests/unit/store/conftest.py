"""The engine of the suite here: SQLite in a fresh folder. tests/integration/store runs the same on PostgreSQL."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/store.db"
