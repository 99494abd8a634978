"""Real cells: every process is one, on loopback, in a home of its own that is gone afterwards."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from cell import Cell

from lepton_ai import cloud


@pytest.fixture(scope="module")
def cell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cell]:
    """A cell of three nodes that the tests of one module share."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LEPTON_AI_HOME", str(home))
        connection = cloud.up("test")
        state = cloud.state("test")
        assert state is not None
        made = Cell(connection, state, home)
        try:
            yield made
        finally:
            connection.close()
            cloud.down("test", purge=True)
            left = made.processes()
    assert not left, left
    assert not state.dir.exists()
