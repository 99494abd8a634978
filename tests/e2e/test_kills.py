"""SIGKILL of any single process at a random moment ends in the wanted state, and nothing that ended is unknown."""

from __future__ import annotations

import os
import random
import signal
import time

import pytest
from cell import Cell, eventually, service

from lepton_ai.errors import LeptonError

SEED = 20261125
KILLS = 200 if os.environ.get("LEPTON_AI_SOAK") else 12
"""a sample in `make test`, the full count in `make soak`"""


@pytest.mark.soak
def test_any_process_may_be_killed(cell: Cell) -> None:
    rng = random.Random(SEED)
    spec = {"name": "web", "template": service("one"), "replicas": {"min": 2, "max": 2}, "survive": {"node": 1}}
    cell.cloud.deploy(spec)
    kinds: dict[str, int] = {}
    for number in range(KILLS):
        job = start_job(cell)
        time.sleep(rng.uniform(0, 1.2))
        alive = cell.processes()
        # Each kind of process as often as any other, however many there are of it.
        groups: dict[str, list[str]] = {}
        for name in alive:
            groups.setdefault(kind_of(name), []).append(name)
        kind = rng.choice(sorted(groups))
        victim = rng.choice(groups[kind])
        kinds[kind] = kinds.get(kind, 0) + 1
        own = job is not None and any(copy.uid in victim for copy in look_at(cell, job))
        alive[victim].kill(signal.SIGKILL)
        settle(cell, f"kill {number} of {victim}")
        if job is not None:
            check_job(cell, job, own)
    assert len(kinds) > 5, kinds


def kind_of(name: str) -> str:
    folder, part = name.split(" ")
    first, second, *_ = folder.split("/")
    return f"{second.rstrip('0123456789')} {part}" if first == "system" else f"replica {part}"


def start_job(cell: Cell) -> str | None:
    try:
        command = ["sh", "-c", "echo working; sleep 0.5; exit 7"]
        return str(cell.cloud.run(command, name="seven", cpu_milli=10, memory_mib=16).name)
    except LeptonError:
        return None


def look_at(cell: Cell, job: str) -> list:  # type: ignore[type-arg]
    try:
        return list(cell.cloud.replicas(job))
    except LeptonError:
        return []


def settle(cell: Cell, what: str) -> None:
    """Wanted again: two ready replicas of web on two nodes, nothing beside them, three nodes, and an answer."""

    def so() -> bool:
        found = cell.cloud.deployment("web")
        copies = [copy for copy in cell.cloud.replicas("web") if copy.phase != "exited"]
        nodes = {copy.node for copy in copies if copy.phase == "ready"}
        return (
            found.state == "ready"
            and len(copies) == 2
            and len(nodes) == 2
            and all(node.state == "ready" for node in cell.cloud.nodes())
            and cell.cloud.call("web", {"value": 5})["echo"] == 5
        )

    eventually(so, what)
    # Also the shims: each kill is of a single process, so the last one's keeper must stand again.
    names = ("control", "envoy-1", "envoy-2", "activator", "node-1", "node-2", "node-3")
    wanted = {f"system/{name} {part}" for name in names for part in ("shim", "child")}
    eventually(lambda: wanted <= cell.processes().keys(), f"{what}: every process of the cell runs")


def check_job(cell: Cell, job: str, own: bool) -> None:
    """Its exit code is known; where the process or shim of the job itself was shot, that is."""
    ended = eventually(
        lambda: found if (found := cell.cloud.job(job)).state in ("failed", "succeeded", "stopped") else None,
        f"job {job} ends",
    )
    assert ended.state == "failed", ended
    if not own:
        assert "exit code 7" in ended.reason, ended.reason
