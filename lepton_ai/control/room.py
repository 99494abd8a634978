"""What the scheduler sees, read from the store: for plans and verdicts of the API, which has no fleet.

Owns nothing; the loops themselves use `Context.snapshot`, which knows what the agents said a moment ago.
"""

from __future__ import annotations

from collections import defaultdict

from lepton_ai.control.folder import NODES
from lepton_ai.control.reservations import held_by
from lepton_ai.scheduler.mix import DEVICE_MILLI, Mix
from lepton_ai.scheduler.snapshot import Node, Snapshot, amounts, devices_of, ports_of, taking
from lepton_ai.spec.container import Port
from lepton_ai.spec.workload import Resources
from lepton_ai.store import Record, Store


def room(store: Store) -> Snapshot:
    """The nodes as recorded, and what is reserved on them by everything that has not ended."""
    held: dict[str, dict[int, str]] = defaultdict(dict)
    used: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0])
    groups: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    shared: dict[str, dict[int, int]] = defaultdict(lambda: defaultdict(int))
    mix = Mix()
    for record in store.list("replica", but="exited"):
        node = str(record.spec["node"])
        own = Resources.model_validate(record.spec["replica"]["resources"])
        for index, amount in enumerate(amounts(own)):
            used[node][index] += amount
        mix.add(own)
        for device in record.spec["replica"].get("devices") or ():
            shared[node][int(device)] += min(own.accelerator_milli, DEVICE_MILLI)
        held[node] |= _ports(record)
        if not record.status.get("ending"):
            groups[f"{record.owner_uid}#{record.spec.get('release', 0)}"][node] += 1
    lent = {node: item.name for item in store.list("reservation", workspace=NODES) for node in held_by(item.status)}
    nodes = []
    taken: dict[str, dict[int, str]] = defaultdict(dict)
    for record in store.list("node", workspace=NODES):
        capacity = Resources.model_validate(record.status.get("capacity") or record.spec.get("capacity") or {})
        total, status = used[record.name], record.status
        address = "" if status.get("forwards", True) else str(status.get("address") or "")
        if address:
            taken[address] |= held[record.name]
        load = status.get("load") or {}
        nodes.append(
            Node(
                record.name,
                capacity,
                (total[0], total[1], total[2]),
                str(status.get("reason") or ""),
                address,
                devices=_devices(capacity, shared[record.name], total[2]),
                labels=record.spec.get("labels") or {},
                taints=frozenset(record.spec.get("taints") or ()),
                reservation=lent.get(record.name, ""),
                planned=float(load.get("s") or 0.0),
                limit=float(load.get("limit") or 1.0),
            )
        )
    return Snapshot.of(nodes, {name: dict(counts) for name, counts in groups.items()}, taken, mix)


def _devices(capacity: Resources, known: dict[int, int], total_milli: int) -> tuple[int, ...]:
    """The used thousandths of each accelerator; what is used of unknown ones as tightly as can be."""
    found = tuple(used + known.get(number, 0) for number, used in enumerate(devices_of(capacity)))
    return taking(found, max(0, total_milli - sum(known.values())))


def _ports(record: Record) -> dict[int, str]:
    """The ports that a replica has at its node's address, with its workspace and name."""
    order, served = record.spec["replica"], record.status.get("port")
    fixed = ports_of(order.get("port"), [Port.model_validate(item) for item in order.get("ports", ())])
    who = f"{record.workspace}/{record.name}"
    return dict.fromkeys([*fixed, *([served] if isinstance(served, int) else [])], who)
