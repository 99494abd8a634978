"""Gives tests of the API and of its client a cell without processes: a real store, and nodes that only have logs."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def stand(tmp_path: Path) -> Iterator[Any]:
    """A `Stand` (the module beside this file, which pytest does not import)."""
    spec = importlib.util.spec_from_file_location("unit_stand", Path(__file__).with_name("stand.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    made = module.Stand(tmp_path)
    yield made
    made.close()
