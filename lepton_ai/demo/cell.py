"""Stage 1, and the end: the demo's own cell, and whether anything of it is left.

Owns the cell's name and settings (defaults only, so that a user's configuration and other cells are never touched)
and the look for leftovers. Starting and stopping are `cloud`'s.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lepton_ai import cloud
from lepton_ai.demo.tour import Tour
from lepton_ai.demo.trial import fields
from lepton_ai.errors import Conflict, NotFound
from lepton_ai.gateway.sockets import sockets
from lepton_ai.settings import Settings

NODES = 3
KEPT = "demo"
LEFT_WAIT_S = 3.0


def settings(home: Path, keep: bool) -> Settings:
    """Settings of the demo's cell. Raises Conflict when a kept cell is there already."""
    if not keep:
        return Settings(home=home, cell=f"{KEPT}-{secrets.token_hex(2)}")
    if cloud.state(KEPT, settings=Settings(home=home, cell=KEPT)) is not None:
        hint = f"remove it first: lepton down {KEPT} --purge"
        raise Conflict(f"a cell {KEPT} is there already, from an earlier lepton demo --keep", hint=hint)
    return Settings(home=home, cell=KEPT)


def cell(tour: Tour) -> None:
    """A cell of three nodes, each an agent process with a share of the machine."""
    with tour.stage("cell") as stage:
        started_s = time.monotonic()
        start(tour)
        seconds = time.monotonic() - started_s
        state = tour.state = cloud.state(tour.cell, settings=tour.settings)
        assert state is not None, "a cell that is up has a state"
        tour.say("cell.up", seconds=seconds, gateways=tour.settings.gateways, nodes=NODES)
        tour.say("cell.urls", api_url=state.api_url, gateway_url=state.gateway_url)
        nodes = [node_facts(tour.cell_dir, fields(node)) for node in tour.client.nodes()]
        for node in nodes:
            tour.say("cell.node", **node)
        stage.figures.update(up_s=seconds, nodes=nodes, api_url=state.api_url, gateway_url=state.gateway_url)


def start(tour: Tour) -> None:
    """Start the cell, or whatever of it is not running; what runs is adopted."""
    with tour.held():
        before = tour.client
        tour.client = cloud.up(tour.cell, settings=tour.settings, nodes=NODES, say=tour.whisper)
        if before is not None:
            before.close()


def node_facts(cell_dir: Path, node: dict[str, Any]) -> dict[str, Any]:
    """Its name, its agent's process, its share."""
    from lepton_ai.node.identity import Identity

    agent = Identity.read(cell_dir / "nodes" / node["name"] / "agent.json")
    share = node.get("capacity") or node
    return {
        "name": node["name"],
        "pid": agent.pid if agent is not None else 0,
        "cores": share["cpu_milli"] / 1000,
        "memory_gib": share["memory_mib"] / 1024,
    }


@dataclass(frozen=True)
class Left:
    """What is left of a cell after it was removed."""

    processes: tuple[int, ...] = ()
    ports: tuple[int, ...] = ()
    folders: tuple[str, ...] = ()

    @property
    def count(self) -> int:
        return len(self.processes) + len(self.ports) + len(self.folders)


def remove(tour: Tour) -> Left:
    """Stop the cell, delete it, and look at what is left. What should not be there is counted, then ended."""
    state = tour.state or cloud.state(tour.cell, settings=tour.settings)
    if tour.client is not None:
        tour.client.close()
    folders = [tour.cell_dir, tour.folder]
    if tour.cell_dir.is_dir():
        folders.append(sockets(tour.cell_dir / "gateway"))
    try:
        with contextlib.suppress(NotFound):  # it never came to a folder
            cloud.down(tour.cell, settings=tour.settings, purge=True, say=tour.whisper)
    finally:
        shutil.rmtree(tour.folder, ignore_errors=True)
        ports = () if state is None else (state.api_port, state.gateway_port)
        left = look(folders, ports)
        for pid in left.processes:
            _kill(pid)
        if left.processes:
            shutil.rmtree(tour.cell_dir, ignore_errors=True)
    return left


def look(folders: Sequence[Path], ports: Sequence[int]) -> Left:
    """Processes that name one of `folders`, ports that still answer, folders that still exist."""
    until_s = time.monotonic() + LEFT_WAIT_S
    while True:
        left = Left(
            tuple(processes(folders)),
            tuple(port for port in ports if _answers(port)),
            tuple(str(folder) for folder in folders if folder.exists()),
        )
        if not left.count or time.monotonic() > until_s:
            return left
        time.sleep(0.05)


def processes(folders: Sequence[Path]) -> Iterator[int]:
    """Every process, but this one and those it came from, whose words or working folder name one of `folders`."""
    import psutil

    names = [str(folder) for folder in folders]
    own = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    for process in psutil.process_iter():
        try:
            if process.pid in own or process.status() == psutil.STATUS_ZOMBIE:
                continue
            said = " ".join([*process.cmdline(), process.cwd()])
        except (psutil.Error, OSError):
            continue
        if any(name in said for name in names):
            yield process.pid


def _kill(pid: int) -> None:
    import psutil

    try:
        psutil.Process(pid).kill()
    except psutil.Error:
        return


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(0.5)
        return probe.connect_ex(("127.0.0.1", port)) == 0
