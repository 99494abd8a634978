"""Nodes over HTTP: ours under x/, and the public client's node groups, machines and shapes.

GET x/nodes   PATCH x/nodes/NAME (labels, taints)   POST x/nodes/NAME/drain, /undrain
GET /dedicated-node-groups   GET /dedicated-node-groups/ID, …/nodes, …/machines, …/reservations   GET /shapes
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from pydantic import Field, field_validator

from lepton_ai.api import reservations, sight, view
from lepton_ai.api.call import Call, Router, missing, retried
from lepton_ai.errors import Invalid
from lepton_ai.spec.base import Model
from lepton_ai.spec.container import MAX_LABELS, labelled, tainted
from lepton_ai.spec.workload import Resources
from lepton_ai.store import Record
from lepton_ai.wire import nodes as wire
from lepton_ai.wire import shapes, storage

SYSTEM = "system"
"""The workspace that nodes are recorded in: they belong to the cell, not to a tenant."""
GROUP = "/dedicated-node-groups/{id}"


class MarkForm(Model):
    """What is to change of a node's marks: labels (null takes one away), taints (KEY=VALUE) that come and go."""

    labels: dict[str, str | None] = Field(default_factory=dict, max_length=MAX_LABELS)
    taint: tuple[str, ...] = Field(default=(), max_length=MAX_LABELS)
    untaint: tuple[str, ...] = Field(default=(), max_length=MAX_LABELS)

    @field_validator("labels")
    @classmethod
    def _labels(cls, value: dict[str, str | None]) -> dict[str, str | None]:
        labelled({key: text or "" for key, text in value.items()})
        return value

    @field_validator("taint", "untaint")
    @classmethod
    def _taints(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tainted(value)


def add(router: Router) -> None:
    router.add("GET", "/x/nodes", "read", lambda call: all_nodes(call))
    router.add("PATCH", "/x/nodes/{name}", "cell", _mark)
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
    return view.nodes(store.list("node"), store.list("replica", but="exited"), loads, reservations.nodes(call))


def _schedule(call: Call, takes_work: bool) -> dict[str, Any]:
    record = retried(lambda: _changed(call, {"unschedulable": not takes_work}))
    call.note("undrain" if takes_work else "drain", "node", record.name)
    return _one(call, record)


def _mark(call: Call) -> dict[str, Any]:
    """Labels draw work that asks for them, taints keep off work that does not tolerate them; what runs stays."""
    form = call.form(MarkForm, "node")
    if not (form.labels or form.taint or form.untaint):
        raise Invalid("nothing is to change", hint='send {"labels": {...}}, {"taint": [...]} or {"untaint": [...]}')

    def change() -> Record:
        known = _found(call).spec
        labels = {**(known.get("labels") or {}), **form.labels}
        taints = sorted({*(known.get("taints") or ()), *form.taint} - set(form.untaint))
        kept = {key: text for key, text in labels.items() if text is not None}
        if max(len(kept), len(taints)) > MAX_LABELS:
            raise Invalid(f"a node has at most {MAX_LABELS} labels and taints", hint="take some away first")
        return _changed(call, {"labels": kept, "taints": taints})

    record = retried(change)
    call.note("mark", "node", record.name, labels=record.spec["labels"], taints=record.spec["taints"])
    return _one(call, record)


def _found(call: Call) -> Record:
    name = call.path("name")
    record = call.cell.store.find(SYSTEM, "node", name)
    if record is None:
        names = [item.name for item in call.cell.store.list("node")]
        raise missing("node", name, names, "lepton node ls")
    return record


def _changed(call: Call, fields: dict[str, Any]) -> Record:
    record = _found(call)
    return call.cell.store.update(record, spec={**record.spec, **fields})


def _one(call: Call, record: Record) -> dict[str, Any]:
    here = call.cell.store.list("replica", but="exited")
    return view.nodes([record], here, call.cell.measures().loads, reservations.nodes(call))[0]


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
