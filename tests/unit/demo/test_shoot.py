"""Who is hit, found on a fabricated cell folder; no process is started or killed here."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from lepton_ai.demo import shoot
from lepton_ai.errors import NotFound
from lepton_ai.node.identity import Identity


@pytest.fixture
def hits(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Signals instead of being sent; pids over 900 are dead."""
    found: list[tuple[str, int]] = []

    def kill(self: Identity, number: int) -> bool:
        assert number == 9
        if not self.alive():
            return False
        found.append(("process", self.pid))
        return True

    monkeypatch.setattr(Identity, "alive", lambda self: self.pid < 900)
    monkeypatch.setattr(Identity, "kill", kill)
    monkeypatch.setattr(os, "killpg", lambda pid, number: found.append(("group", pid)))
    return found


@pytest.fixture
def cell(tmp_path: Path) -> Path:
    """Two nodes, two replicas on the first (one of them ended), one on the second, control and two Envoys."""

    def put(folder: str, shim: int, child: int) -> None:
        (tmp_path / folder).mkdir(parents=True)
        for name, pid in (("shim", shim), ("child", child)):
            record = {"pid": pid, "start_ticks": 1, "boot_id": "b"}
            (tmp_path / folder / f"{name}.json").write_text(json.dumps(record))

    put("system/control", 10, 11)
    put("system/envoy-1", 20, 21)
    put("system/envoy-2", 22, 23)
    put("system/node-1", 30, 31)
    put("system/node-2", 32, 33)
    put("nodes/node-1/replicas/aa", 40, 41)
    put("nodes/node-1/replicas/bb", 942, 943)
    put("nodes/node-2/replicas/cc", 44, 45)
    return tmp_path


def test_a_replica_is_its_process_and_not_its_shim(cell: Path, hits: list[tuple[str, int]]) -> None:
    assert shoot.replica(cell, "cc").pids == (45,)
    assert hits == [("group", 45)]


def test_a_node_is_everything_on_it_and_nothing_else(cell: Path, hits: list[tuple[str, int]]) -> None:
    shot = shoot.node(cell, "node-1")
    assert set(shot.pids) == {30, 31, 40, 41}
    # Shims die before what they own: none may restart it or record its end.
    assert hits == [("process", 30), ("process", 31), ("process", 40), ("group", 41)]
    assert [path.parent.name for path in cell.glob("system/*/hold")] == ["node-1"]


def test_control_does_not_come_back_by_itself(cell: Path, hits: list[tuple[str, int]]) -> None:
    assert shoot.control(cell).pids == (10, 11)
    assert hits == [("process", 10), ("process", 11)]


def test_an_envoy_is_the_process_and_its_shim_lives(cell: Path, hits: list[tuple[str, int]]) -> None:
    assert shoot.envoy(cell, 2).pids == (23,)
    assert hits == [("process", 23)]


@pytest.mark.parametrize(
    "fire",
    [
        lambda cell: shoot.replica(cell, "bb"),
        lambda cell: shoot.replica(cell, "nobody"),
        lambda cell: shoot.envoy(cell, 3),
    ],
)
def test_hitting_nothing_is_said(cell: Path, hits: list[tuple[str, int]], fire: Callable[[Path], object]) -> None:
    with pytest.raises(NotFound):
        fire(cell)
    assert hits == []


def test_the_living_replicas(cell: Path, hits: list[tuple[str, int]]) -> None:
    assert shoot.alive(cell) == {"aa": 41, "cc": 45}
