"""Gives tests of the API and of its client a cell without processes: a real store, and nodes that only have logs."""

from __future__ import annotations

import importlib.util
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def stand() -> Iterator[Any]:
    """A `Stand` (the module beside this file, which pytest does not import), in memory where there is such a folder."""
    spec = importlib.util.spec_from_file_location("unit_stand", Path(__file__).with_name("stand.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    memory = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(prefix="lepton-unit-", dir=memory if memory.is_dir() else None))
    made = module.Stand(folder)
    yield made
    made.close()
    shutil.rmtree(folder, ignore_errors=True)
