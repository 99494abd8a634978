"""What plans of the API see: nodes, what is reserved on them, and the ports that are taken."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lepton_ai.control.folder import NODES
from lepton_ai.control.reservations import masked
from lepton_ai.control.room import room
from lepton_ai.scheduler.place import place
from lepton_ai.scheduler.snapshot import Request, Snapshot
from lepton_ai.spec.replica import ReplicaSpec
from lepton_ai.spec.workload import Resources
from lepton_ai.store import Store

SMALL = Resources(cpu_milli=100, memory_mib=100)


def cell(folder: Path, **node: Any) -> Snapshot:
    """Two nodes at one address. On the first run a replica with a fixed port and one with a chosen one; one ended."""
    with Store.open(f"sqlite:///{folder}/store.db") as store:
        for name in ("node-1", "node-2"):
            capacity = Resources(cpu_milli=1000, memory_mib=1000).model_dump(mode="json")
            store.create(NODES, "node", name, {}, status={"capacity": capacity, "address": "10.0.0.1", **node})
        for name, port, phase in (("web-1", 8080, "ready"), ("web-2", None, "ready"), ("old-1", 9090, "exited")):
            spec = ReplicaSpec(
                uid=name, workspace="w", name=name, owner_kind="deployment", owner="web", command=("x",),
                resources=SMALL, port=port,
            )  # fmt: skip
            stored = {"replica": spec.model_dump(mode="json"), "node": "node-1", "release": 1}
            store.create("w", "replica", name, stored, status={"phase": phase, "port": port or 20_001})
        return room(store)


@pytest.mark.parametrize(("port", "holder"), [(8080, "w/web-1"), (20_001, "w/web-2"), (9090, "")])
def test_ports_are_taken_at_the_address_by_what_runs(tmp_path: Path, port: int, holder: str) -> None:
    snapshot = cell(tmp_path, forwards=False)
    assert snapshot.used.tolist() == [[200, 200, 0], [0, 0, 0]]
    (found,) = place(snapshot, [Request("r", SMALL, ports=frozenset({port}))])
    assert (found.node is None) == bool(holder)
    if holder:
        assert f"port {port} of 10.0.0.1 is taken by {holder}" in found.reason


@pytest.mark.parametrize("node", [{"forwards": True}, {}])
def test_where_nodes_forward_or_have_not_said_none_is(tmp_path: Path, node: dict[str, Any]) -> None:
    assert place(cell(tmp_path, **node), [Request("r", SMALL, ports=frozenset({8080}))])[0].node is not None


def test_plans_know_the_load_that_was_written_down(tmp_path: Path) -> None:
    snapshot = cell(tmp_path, load={"u": 0.4, "s": 0.6, "limit": 0.85})
    assert (snapshot.planned.tolist(), snapshot.limits.tolist()) == ([0.6, 0.6], [0.85, 0.85])


@pytest.mark.parametrize(
    ("said", "read"),
    [
        ("reserved: for ab, 1 full", "reserved: for others, 1 full"),
        ("reserved: for abc", "reserved: for abc"),  # its own, although another's name is how it begins
        ("reserved: for o", "reserved: for others"),
        ("reserved: for others", "reserved: for others"),
        ("port 80 of 10.0.0.1 is taken by w/web-1; 2 full", "port 80 of 10.0.0.1 is taken by web-1; 2 full"),
        ("port 80 of 10.0.0.1 is taken by v/web-1", "port 80 of 10.0.0.1 is taken by work of another workspace"),
    ],
)
def test_nobody_reads_what_other_workspaces_call_theirs(said: str, read: str) -> None:
    assert masked(said, {"ab": "v", "abc": "w", "o": "v", "a": "v"}, "w") == read
