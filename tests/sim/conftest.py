"""Makes the parts of the simulation importable as `sim.NAME`, and gives each test a cell in memory."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).resolve().parents[1]))


@pytest.fixture
def cell() -> Iterator[Callable[..., Any]]:
    """Makes worlds; their stores lie in memory where the system has such a folder, and are closed at the end."""
    from sim.world import World

    memory = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(prefix="lepton-sim-", dir=memory if memory.is_dir() else None))
    made: list[World] = []

    def make(nodes: int = 3, **options: Any) -> World:
        place = folder / str(len(made))
        place.mkdir()
        made.append(World(place, nodes, **options))
        return made[-1]

    yield make
    for world in made:
        world.store.close()
    shutil.rmtree(folder, ignore_errors=True)
