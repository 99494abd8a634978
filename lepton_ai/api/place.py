"""Where work would go, and whether it can go anywhere at all: the scheduler's answers for the API.

Owns the questions only; the rules are the scheduler's, the nodes come from the cell's snapshot.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from lepton_ai.api.cell import Cell
from lepton_ai.errors import Unplaceable
from lepton_ai.scheduler.place import Placement, place
from lepton_ai.scheduler.scale import Demand, Scale, scale
from lepton_ai.scheduler.snapshot import Request, Snapshot
from lepton_ai.scheduler.verdict import verdict
from lepton_ai.spec.workload import DeploymentSpec, Template
from lepton_ai.store import Record


def possible(snapshot: Snapshot, template: Template) -> None:
    """Raises Unplaceable with every node's verdict when not even an empty, willing node could hold one replica.

    A cell whose nodes are not known yet, or are away, refuses nothing: the work waits and says for what.
    """
    if not snapshot.names:
        return
    willing = ("",) * len(snapshot.names)
    # What marks a node for a while (taints, reservations) makes work wait; it is no reason to refuse it.
    bare = (frozenset[str](),) * len(snapshot.names)
    blank = replace(snapshot.emptied(), blocked=willing, taints=bare, reservations=willing)
    verdicts = verdict(blank, replace(Request.of("one", template), reservation=""))
    if any(text == "fits" for text in verdicts.values()):
        return
    raise Unplaceable(
        f"no node of this cell could ever hold one replica ({len(verdicts)} nodes)",
        hint="ask for less: lepton node ls shows what the nodes have",
        details={"nodes": verdicts},
    )


def placements(
    cell: Cell, spec: DeploymentSpec, record: Record | None, fresh: bool
) -> tuple[Scale, tuple[Placement, ...]]:
    """How many replicas are wanted without load, and where those that are missing would go now."""
    snapshot = cell.snapshot()
    wanted = scale(spec, Demand(), snapshot.usable_of(spec.template.nodes))
    beside = Counter[str]()
    if record is not None and not fresh:
        for item in cell.store.list("replica", workspace=record.workspace, owner_uid=record.uid):
            ended = item.status.get("phase") == "exited" or item.status.get("ending")
            if not ended and int(item.spec.get("release", 0)) == spec.release:
                beside[str(item.spec["node"])] += 1
    group = "planned"
    missing = max(0, wanted.replicas - beside.total())
    requests = [Request.of(str(index), spec.template, group, wanted.per_node) for index in range(missing)]
    return wanted, place(replace(snapshot, groups={group: dict(beside)}), requests)
