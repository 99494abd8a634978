"""Templates over HTTP: those that ship with the cell, and a workspace's own.

GET /templates/public, /private   GET /templates/public/ID, /private/ID   POST …/ID/render
PUT DELETE x/templates/ID     make, replace and remove one of the workspace's own
"""

from __future__ import annotations

from typing import Any

from lepton_ai.api.call import Call, Router, missing, retried
from lepton_ai.errors import Invalid
from lepton_ai.spec.base import NAME_PATTERN, is_name
from lepton_ai.store import Record
from lepton_ai.wire import templates as wire

KIND = "template"


def add(router: Router) -> None:
    router.add("GET", "/templates/public", "read", _public)
    router.add("GET", "/templates/private", "read", lambda call: [_shown(item) for item in _own(call)])
    router.add("GET", "/templates/public/{id}", "read", lambda call: wire.shown(call.path("id"), _shipped(call)))
    router.add("GET", "/templates/private/{id}", "read", lambda call: _shown(call.find(KIND, call.path("id"), _LIST)))
    router.add("POST", "/templates/public/{id}/render", "read", _render_public)
    router.add("POST", "/templates/private/{id}/render", "read", _render_private)
    router.add("PUT", "/x/templates/{id}", "write", _put)
    router.add("DELETE", "/x/templates/{id}", "write", _delete)


_LIST = "lep template list"


def _public(_: Call) -> list[dict[str, Any]]:
    return [wire.shown(identity, item) for identity, item in wire.PUBLIC.items()]


def _own(call: Call) -> list[Record]:
    return call.cell.store.list(KIND, workspace=call.ws)


def _shown(record: Record) -> dict[str, Any]:
    return wire.shown(record.name, record.spec, record.created_ms, str(record.spec.get("created_by", "")))


def _shipped(call: Call) -> dict[str, Any]:
    identity = call.path("id")
    if identity not in wire.PUBLIC:
        raise missing("public template", identity, list(wire.PUBLIC), _LIST)
    return wire.PUBLIC[identity]


def _render_public(call: Call) -> dict[str, Any]:
    return wire.rendered(call.path("id"), _shipped(call), call.body)


def _render_private(call: Call) -> dict[str, Any]:
    record = call.find(KIND, call.path("id"), _LIST)
    return wire.rendered(record.name, record.spec, call.body)


def _put(call: Call) -> dict[str, Any]:
    identity = call.path("id")
    if not is_name(identity):
        raise Invalid(f"{identity[:80]!r} is not a template's id", hint=f"ids match {NAME_PATTERN}")
    given = wire.given(call.body)

    def change() -> Record:
        record = call.cell.store.find(call.ws, KIND, identity)
        if record is None:
            return call.cell.store.create(call.ws, KIND, identity, {**given, "created_by": call.actor})
        return call.cell.store.update(record, spec={**given, "created_by": record.spec.get("created_by", "")})

    record = retried(change)
    call.note("set", KIND, identity)
    return _shown(record)


def _delete(call: Call) -> dict[str, Any]:
    record = call.find(KIND, call.path("id"), _LIST)
    call.cell.store.delete(record)
    call.note("delete", KIND, record.name)
    return {"id": record.name}
