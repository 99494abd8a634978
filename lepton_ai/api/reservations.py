"""Reservations over HTTP: who runs the cell makes and removes them, their workspace reads them.

GET POST x/reservations   DELETE x/reservations/NAME   GET /dedicated-node-groups/ID/reservations (in nodes.py)
"""

from __future__ import annotations

from typing import Any

from lepton_ai.api.call import Call, Router, missing
from lepton_ai.api.cell import Cell
from lepton_ai.control.reservations import held_by
from lepton_ai.errors import Forbidden, Invalid
from lepton_ai.store import Record
from lepton_ai.tenancy.volumes import CELL
from lepton_ai.wire import reservations as wire
from lepton_ai.wire.record import name_of, table

KIND = "reservation"


def add(router: Router) -> None:
    router.add("GET", "/x/reservations", "read", shown)
    router.add("POST", "/x/reservations", "cell", _create, status=201)
    router.add("DELETE", "/x/reservations/{name}", "cell", _delete)


def shown(call: Call) -> list[dict[str, Any]]:
    """The reservations of the caller's workspace, in the public client's form."""
    now_ms = call.cell.store.now_ms()
    return [wire.shown(record, now_ms) for record in _records(call) if _is_for(record, call.ws)]


def nodes(call: Call) -> dict[str, str]:
    """Which node is reserved under which name now, as far as that is the caller's to know."""
    first = call.ws == call.cell.workspaces.first
    return {
        node: record.name if first or _is_for(record, call.ws) else "of another workspace"
        for record in _records(call)
        for node in held_by(record.status)
    }


def whose(cell: Cell) -> dict[str, str]:
    """The workspace of each reservation."""
    return {item.name: str(item.spec.get("workspace")) for item in cell.store.list(KIND, workspace=CELL)}


def check(call: Call, name: str) -> None:
    """Raises NotFound when the caller's workspace has no such reservation, Forbidden when it is for some users only."""
    own = {record.name: record for record in _records(call) if _is_for(record, call.ws)}
    if name not in own:
        raise missing(KIND, name, list(own), "lep node list-reservations")
    users = own[name].spec.get("users") or []
    if users and call.actor not in users:
        hint = f"it is for {', '.join(map(str, users[:5]))}: ask whoever runs the cell"
        raise Forbidden(f"reservation {name} is not for {call.actor}", hint=hint)


def _create(call: Call) -> dict[str, Any]:
    name = name_of(call.body)
    spec = wire.given(call.body, call.cell.store.now_ms())
    workspace = table(call.body, "the body").get("workspace") or call.ws
    if not isinstance(workspace, str):
        raise Invalid("workspace is not a text", hint="leave it out for your own")
    call.cell.workspaces.get(workspace)
    spec |= {"workspace": workspace, "created_by": call.actor}
    record = call.cell.store.create(CELL, KIND, name, spec)
    call.note("create", KIND, name, workspace=workspace, nodes=spec["nodes"])
    return wire.shown(record, call.cell.store.now_ms())


def _delete(call: Call) -> dict[str, Any]:
    name = call.path("name")
    record = next((item for item in _records(call) if item.name == name), None)
    if record is None:
        raise missing(KIND, name, [item.name for item in _records(call)], "GET x/reservations")
    call.cell.store.delete(record)
    call.note("delete", KIND, name)
    return {"name": name}


def _records(call: Call) -> list[Record]:
    return call.cell.store.list(KIND, workspace=CELL)


def _is_for(record: Record, workspace: str) -> bool:
    return bool(record.spec.get("workspace") == workspace)
