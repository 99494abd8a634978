"""Nodes over HTTP: ours under x/, and the public client's node groups and shapes.

GET x/nodes   POST x/nodes/NAME/drain, /undrain
GET /dedicated-node-groups   GET /dedicated-node-groups/ID, …/nodes, …/machines, …/reservations   GET /shapes
"""

from __future__ import annotations

from typing import Any

from lepton_ai.api import view
from lepton_ai.api.call import Call, Router, missing, retried
from lepton_ai.store import Record
from lepton_ai.wire import nodes as wire
from lepton_ai.wire import shapes

SYSTEM = "system"
"""The workspace that nodes are recorded in: they belong to the cell, not to a tenant."""


def add(router: Router) -> None:
    router.add("GET", "/x/nodes", "read", lambda call: _nodes(call))
    router.add("POST", "/x/nodes/{name}/drain", "cell", lambda call: _schedule(call, False), body=False)
    router.add("POST", "/x/nodes/{name}/undrain", "cell", lambda call: _schedule(call, True), body=False)

    router.add("GET", "/dedicated-node-groups", "read", lambda call: [_group(call)])
    router.add("GET", "/dedicated-node-groups/{id}", "read", _wire_group)
    router.add("GET", "/dedicated-node-groups/{id}/nodes", "read", _wire_nodes)
    router.add("GET", "/dedicated-node-groups/{id}/machines", "read", lambda call: _wire_group(call) and [])
    router.add("GET", "/dedicated-node-groups/{id}/reservations", "read", lambda call: _wire_group(call) and [])
    router.add("GET", "/shapes", "read", lambda call: shapes.shown(call.cell.name, call.text("purpose")))


def _nodes(call: Call) -> list[dict[str, Any]]:
    return view.nodes(call.cell.store.list("node"), call.cell.store.list("replica"))


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
    return view.nodes([record], call.cell.store.list("replica"))[0]


# -- the public client's


def _group(call: Call) -> dict[str, Any]:
    return wire.group(call.cell.name, _nodes(call))


def _wire_group(call: Call) -> dict[str, Any]:
    if call.path("id") not in (call.cell.name, wire.group_id(call.cell.name)):
        raise missing("node group", call.path("id"), [wire.group_id(call.cell.name)], "lepton node ls")
    return _group(call)


def _wire_nodes(call: Call) -> list[dict[str, Any]]:
    _wire_group(call)
    idle = call.flag("idle")
    replicas = call.cell.store.list("replica", workspace=call.ws)
    found = [wire.shown(item, call.cell.name, [view.replica(r) for r in replicas], call.ws) for item in _nodes(call)]
    return [item for item in found if not idle or not item["status"]["workloads"]]
