"""Nodes over HTTP: ours under x/, and the public client's node groups, machines and shapes.

GET x/nodes   POST x/nodes/NAME/drain, /undrain
GET /dedicated-node-groups   GET /dedicated-node-groups/ID, …/nodes, …/machines, …/reservations   GET /shapes
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from lepton_ai.api import reservations, sight, view
from lepton_ai.api.call import Call, Router, missing, retried
from lepton_ai.spec.workload import Resources
from lepton_ai.store import Record
from lepton_ai.wire import nodes as wire
from lepton_ai.wire import shapes, storage

SYSTEM = "system"
"""The workspace that nodes are recorded in: they belong to the cell, not to a tenant."""
GROUP = "/dedicated-node-groups/{id}"


def add(router: Router) -> None:
    router.add("GET", "/x/nodes", "read", lambda call: all_nodes(call))
    router.add("POST", "/x/nodes/{name}/drain", "cell", lambda call: _schedule(call, False), body=False)
    router.add("POST", "/x/nodes/{name}/undrain", "cell", lambda call: _schedule(call, True), body=False)

    router.add("GET", "/dedicated-node-groups", "read", lambda call: [group(call)])
    router.add("GET", GROUP, "read", _wire_group)
    router.add("GET", GROUP + "/nodes", "read", _wire_nodes)
    router.add("GET", GROUP + "/machines", "read", _wire_machines)
    router.add("GET", GROUP + "/reservations", "read", _wire_reservations)
    router.add("GET", "/shapes", "read", _wire_shapes)


def all_nodes(call: Call) -> list[dict[str, Any]]:
    store, loads = call.cell.store, call.cell.measures().loads
    return view.nodes(store.list("node"), store.list("replica", but="exited"), loads)


def _schedule(call: Call, takes_work: bool) -> dict[str, Any]:
    name = call.path("name")

    def change() -> Record:
        record = call.cell.store.find(SYSTEM, "node", name)
        if record is None:
            names = [item.name for item in call.cell.store.list("node")]
            raise missing("node", name, names, "lepton node ls")
        return call.cell.store.update(record, spec={**record.spec, "unschedulable": not takes_work})

    record = retried(change)
    call.note("undrain" if takes_work else "drain", "node", name)
    return view.nodes([record], call.cell.store.list("replica", but="exited"), call.cell.measures().loads)[0]


# -- the public client's


def group(call: Call) -> dict[str, Any]:
    """The cell as the one node group that there is."""
    volumes = [
        storage.volume(
            item.name,
            item.source,
            item.path,
            item.size_gib,
            item.default_target,
            item.creation,
            # Whose it is besides is the business of who runs the cell.
            item.workspaces if call.ws == call.cell.workspaces.first else (),
        )
        for item in call.cell.volumes.list(call.ws)
    ]
    return wire.group(call.cell.name, all_nodes(call), volumes, call.ws)


def of_the_cell(call: Call) -> None:
    """Raises NotFound unless the path names this cell's group, by id or name."""
    if call.path("id") not in (call.cell.name, wire.group_id(call.cell.name)):
        raise missing("node group", call.path("id"), [wire.group_id(call.cell.name)], "lepton node ls")


def _wire_group(call: Call) -> dict[str, Any]:
    of_the_cell(call)
    return group(call)


def _wire_nodes(call: Call) -> list[dict[str, Any]]:
    of_the_cell(call)
    idle = call.flag("idle")
    hidden = sight.hidden_names(call.cell, call.principal)
    known = [view.replica(item) for item in call.cell.store.list("replica", workspace=call.ws, but="exited")]
    own = [item for item in known if (item["owner_kind"], item["owner"]) not in hidden]
    items = all_nodes(call)
    # Idle means that nobody's work is there, not only none of the caller's.
    beside = Counter(wire.machine_id(item) for item in items)
    return [
        wire.shown(item, call.cell.name, own, call.ws, beside[wire.machine_id(item)])
        for item in items
        if not idle or not item["replicas"]
    ]


def _wire_machines(call: Call) -> list[dict[str, Any]]:
    of_the_cell(call)
    return wire.machines(all_nodes(call))


def _wire_reservations(call: Call) -> list[dict[str, Any]]:
    of_the_cell(call)
    return reservations.shown(call)


def priced(call: Call, items: list[dict[str, Any]]) -> list[shapes.Priced]:
    """The shapes that a node of this cell could hold, priced as this cell is."""
    prices = call.cell.prices

    def price(size: Resources) -> float:
        return prices.per_hour(size)

    return shapes.priced(price, prices.currency, items)


def _wire_shapes(call: Call) -> list[dict[str, Any]]:
    wanted = call.request.query_params.getlist("node_groups")
    own = wire.group_id(call.cell.name)
    if wanted and not {own, call.cell.name}.intersection(wanted):
        return []
    return shapes.shown(priced(call, all_nodes(call)), own, call.text("purpose"))
