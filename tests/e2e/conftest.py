"""Real cells: every process is one, on loopback, in a home of its own that is gone afterwards."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from cell import Cell
from lep import Lep, ready

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


@pytest.fixture(scope="session")
def lep_bin() -> Path:
    """The programs of the public client's own environment."""
    return ready()


@pytest.fixture
def lep(cell: Cell, lep_bin: Path, tmp_path: Path) -> Lep:
    """The public client against the module's cell, as the owner of its first workspace."""
    return Lep(cell, lep_bin, tmp_path, cell.state.token_path.read_text("utf-8").strip())
