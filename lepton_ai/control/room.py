"""What the scheduler sees, read from the store: for plans and verdicts of the API, which has no fleet.

Owns nothing; the loops themselves use `Context.snapshot`, which knows what the agents said a moment ago.
"""

from __future__ import annotations

from collections import defaultdict

from lepton_ai.control.folder import NODES
from lepton_ai.scheduler.snapshot import Node, Snapshot, amounts
from lepton_ai.spec.workload import Resources
from lepton_ai.store import Store


def room(store: Store) -> Snapshot:
    """The nodes as recorded, and what is reserved on them by everything that has not ended."""
    used: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0])
    groups: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for record in store.list("replica", but="exited"):
        node = str(record.spec["node"])
        for index, amount in enumerate(amounts(Resources.model_validate(record.spec["replica"]["resources"]))):
            used[node][index] += amount
        if not record.status.get("ending"):
            groups[f"{record.owner_uid}#{record.spec.get('release', 0)}"][node] += 1
    nodes = []
    for record in store.list("node", workspace=NODES):
        capacity = Resources.model_validate(record.status.get("capacity") or record.spec.get("capacity") or {})
        own = used[record.name]
        nodes.append(Node(record.name, capacity, (own[0], own[1], own[2]), str(record.status.get("reason") or "")))
    return Snapshot.of(nodes, {name: dict(counts) for name, counts in groups.items()})
