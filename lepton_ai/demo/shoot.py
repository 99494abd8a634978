"""Shooting at a cell: SIGKILL for one replica, a whole node, the control plane or one Envoy.

Owns which processes those are, from the cell's folder alone (no API is asked, since it may be what is shot), and the
killing, by identity so that a recycled number is never hit. It starts nothing again: that is the cell's own affair, or
`cloud.up`'s (which also lifts the `hold` on a node that was shot).
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from lepton_ai.errors import NotFound
from lepton_ai.node.identity import Identity


@dataclass(frozen=True)
class Shot:
    """What was killed: `pids` that lived until then, and when (monotonic seconds)."""

    what: str
    pids: tuple[int, ...]
    at_s: float


def shoot(what: str, targets: Iterable[Identity], groups: Iterable[Identity] = ()) -> Shot:
    """SIGKILL to each target in order, then to the whole process group of each of `groups`.

    Raises NotFound when none of them lives.
    """
    at_s = time.monotonic()
    hit = [target.pid for target in targets if target.kill(signal.SIGKILL)]
    for leader in groups:
        if leader.alive():  # while it does, its number is its group's and nobody else's
            with contextlib.suppress(ProcessLookupError):
                os.killpg(leader.pid, signal.SIGKILL)
                hit.append(leader.pid)
    if not hit:
        raise NotFound(f"no process of {what} is alive", hint="see what runs: lepton ps")
    return Shot(what, tuple(hit), at_s)


def replica(cell: Path, uid: str) -> Shot:
    """One replica's process; its shim lives on and records the end."""
    return shoot(f"replica {uid}", (), _living(cell.glob(f"nodes/*/replicas/{uid}/child.json")))


def node(cell: Path, name: str) -> Shot:
    """A node with everything on it, shims first; `hold` keeps it down, as a machine that lost its power stays down."""
    (cell / "system" / name / "hold").touch()
    on_it = cell / "nodes" / name / "replicas"
    children = _living(on_it.glob("*/child.json"))
    return shoot(f"node {name}", [*_system(cell, name), *_living(on_it.glob("*/shim.json"))], children)


def control(cell: Path) -> Shot:
    """The control plane: shim and process, so that it stays down until it is started again."""
    return shoot("the control plane", _system(cell, "control"))


def envoy(cell: Path, number: int) -> Shot:
    """One Envoy; its shim lives on and starts it again."""
    return shoot(f"envoy-{number}", _living([cell / "system" / f"envoy-{number}" / "child.json"]))


def alive(cell: Path) -> dict[str, int]:
    """The living processes of replicas by uid: what must be unchanged where nothing was shot."""
    found = {}
    for path in cell.glob("nodes/*/replicas/*/child.json"):
        identity = Identity.read(path)
        if identity is not None and identity.alive():
            found[path.parent.name] = identity.pid
    return found


def _system(cell: Path, workload: str) -> list[Identity]:
    """Shim, then child, of a system workload."""
    return _living(cell / "system" / workload / file for file in ("shim.json", "child.json"))


def _living(paths: Iterable[Path]) -> list[Identity]:
    found = (Identity.read(path) for path in sorted(paths, key=lambda path: path.name != "shim.json"))
    return [identity for identity in found if identity is not None and identity.alive()]
