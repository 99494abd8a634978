"""A cell without nodes (the stand of the unit tests), whose lake is asked by real workers."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="module")
def stand(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    path = Path(__file__).parents[2] / "unit" / "stand.py"
    spec = importlib.util.spec_from_file_location("integration_stand", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    made = module.Stand(tmp_path_factory.mktemp("cell"))
    yield made
    made.close()
