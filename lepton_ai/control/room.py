"""What the scheduler sees, read from the store: for plans and verdicts of the API, which has no fleet.

Owns nothing; the loops themselves use `Context.snapshot`, which knows what the agents said a moment ago.
"""

from __future__ import annotations

from collections import defaultdict

from lepton_ai.control.folder import NODES
from lepton_ai.control.reservations import held_by
from lepton_ai.scheduler.snapshot import Node, Snapshot, amounts, ports_of
from lepton_ai.spec.container import Port
from lepton_ai.spec.workload import Resources
from lepton_ai.store import Record, Store


def room(store: Store) -> Snapshot:
    """The nodes as recorded, and what is reserved on them by everything that has not ended."""
    held: dict[str, dict[int, str]] = defaultdict(dict)
    used: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0])
    groups: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for record in store.list("replica", but="exited"):
        node = str(record.spec["node"])
        for index, amount in enumerate(amounts(Resources.model_validate(record.spec["replica"]["resources"]))):
            used[node][index] += amount
        held[node] |= _ports(record)
        if not record.status.get("ending"):
            groups[f"{record.owner_uid}#{record.spec.get('release', 0)}"][node] += 1
    lent = {node: item.name for item in store.list("reservation", workspace=NODES) for node in held_by(item.status)}
    nodes = []
    taken: dict[str, dict[int, str]] = defaultdict(dict)
    for record in store.list("node", workspace=NODES):
        capacity = Resources.model_validate(record.status.get("capacity") or record.spec.get("capacity") or {})
        own, status = used[record.name], record.status
        address = "" if status.get("forwards", True) else str(status.get("address") or "")
        if address:
            taken[address] |= held[record.name]
        load = status.get("load") or {}
        nodes.append(
            Node(
                record.name,
                capacity,
                (own[0], own[1], own[2]),
                str(status.get("reason") or ""),
                address,
                labels=record.spec.get("labels") or {},
                taints=frozenset(record.spec.get("taints") or ()),
                reservation=lent.get(record.name, ""),
                planned=float(load.get("s") or 0.0),
                limit=float(load.get("limit") or 1.0),
            )
        )
    return Snapshot.of(nodes, {name: dict(counts) for name, counts in groups.items()}, taken)


def _ports(record: Record) -> dict[int, str]:
    """The ports that a replica has at its node's address, with its name."""
    order, served = record.spec["replica"], record.status.get("port")
    fixed = ports_of(order.get("port"), [Port.model_validate(item) for item in order.get("ports", ())])
    return dict.fromkeys([*fixed, *([served] if isinstance(served, int) else [])], record.name)
