"""Makes the parts of the simulation importable as `sim.NAME`, and gives each test a cell in memory."""

from __future__ import annotations

import logging
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).resolve().parents[1]))


class Bugs(logging.Handler):
    """What the library logged as an error: an exception that nobody meant to raise."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(logging.Formatter().format(record))


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

    bugs = Bugs()
    logging.getLogger("lepton_ai").addHandler(bugs)
    yield make
    logging.getLogger("lepton_ai").removeHandler(bugs)
    for world in made:
        world.store.close()
    shutil.rmtree(folder, ignore_errors=True)
    expected = any(world.expects_errors for world in made)
    assert expected or not bugs.texts, f"the loop met what it did not expect:\n{bugs.texts[0]}"
