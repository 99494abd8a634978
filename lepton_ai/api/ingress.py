"""Host names over HTTP, in the public client's words.

GET POST /ingress   GET PATCH DELETE /ingress/NAME
POST /ingress/NAME/endpoint/deployment   DELETE /ingress/NAME/endpoint/deployment/DEPLOYMENT
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from lepton_ai.api import sight
from lepton_ai.api.call import Call, Router, missing, retried
from lepton_ai.errors import Conflict
from lepton_ai.store import Record
from lepton_ai.wire import ingress as wire

KIND = "ingress"
MAX = 1000
_LIST = "lep ingress list"


def add(router: Router) -> None:
    router.add("GET", "/ingress", "read", _list)
    router.add("POST", "/ingress", "write", _create, status=201)
    router.add("GET", "/ingress/{name}", "read", lambda call: _shown(call, _find(call)))
    router.add("PATCH", "/ingress/{name}", "write", _patch)
    router.add("DELETE", "/ingress/{name}", "write", _delete)
    router.add("POST", "/ingress/{name}/endpoint/deployment", "write", _add_target)
    router.add("DELETE", "/ingress/{name}/endpoint/deployment/{deployment}", "write", _remove_target)


def _find(call: Call) -> Record:
    return call.find(KIND, call.path("name"), _LIST)


def _shown(call: Call, record: Record, states: dict[str, bool] | None = None) -> dict[str, Any]:
    return wire.shown(record, _states(call) if states is None else states, _cname(call))


def _list(call: Call) -> list[dict[str, Any]]:
    states = _states(call)
    return [_shown(call, record, states) for record in call.cell.store.list(KIND, workspace=call.ws)]


def _create(call: Call) -> dict[str, Any]:
    """A name that the cell invents from the domain. A domain is one workspace's of the whole cell."""
    given = wire.given(call.body)
    if given["domain"] == _cname(call):
        # Its requests, with their tokens, are for every workspace's endpoints.
        hint = "choose a domain of your own"
        raise Conflict(f"domain {given['domain']} is the gateway's own", hint=hint, details={"final": True})
    _refuse_unknown(call, given["targets"])

    def change() -> Record:
        others = call.cell.store.list(KIND)
        if any(item.spec.get("domain") == given["domain"] for item in others):
            hint = "choose another domain, or remove the ingress that has it"
            raise Conflict(f"domain {given['domain']} is taken", hint=hint, details={"final": True})
        if sum(item.workspace == call.ws for item in others) >= MAX:
            raise Conflict(f"workspace {call.ws} has {MAX} ingresses", hint="remove one", details={"final": True})
        digest = hashlib.sha256(given["domain"].encode()).hexdigest()
        name = f"{given['domain'].replace('.', '-')[:50].strip('-')}-{digest[:6]}"
        # The uid is the domain's, so that of two creations at once, in whichever workspaces, one loses.
        spec = {**given, "created_by": call.actor}
        return call.cell.store.create(call.ws, KIND, name, spec, uid=f"domain-{digest[:40]}")

    record = retried(change)
    call.note("create", KIND, record.name, domain=given["domain"])
    return _shown(call, record)


def _patch(call: Call) -> dict[str, Any]:
    return _changed(call, "change", lambda spec: wire.changed(spec, call.body))


def _add_target(call: Call) -> dict[str, Any]:
    (new,) = wire.targets([call.body])

    def change(spec: dict[str, Any]) -> dict[str, Any]:
        kept = [item for item in spec["targets"] if item["name"] != new["name"]]
        return {**spec, "targets": [*kept, new]}

    return _changed(call, "add-endpoint", change)


def _remove_target(call: Call) -> dict[str, Any]:
    name = call.path("deployment")

    def change(spec: dict[str, Any]) -> dict[str, Any]:
        kept = [item for item in spec["targets"] if item["name"] != name]
        if len(kept) == len(spec["targets"]):
            raise missing("endpoint", name, [item["name"] for item in kept], "lep ingress get")
        return {**spec, "targets": kept}

    return _changed(call, "remove-endpoint", change)


def _changed(call: Call, action: str, change: Callable[[dict[str, Any]], dict[str, Any]]) -> dict[str, Any]:
    def once() -> Record:
        record = _find(call)
        spec = change(record.spec)
        known = {item["name"] for item in record.spec["targets"]}
        _refuse_unknown(call, [item for item in spec["targets"] if item["name"] not in known])
        return call.cell.store.update(record, spec=spec)

    record = retried(once)
    call.note(action, KIND, record.name, targets=record.spec["targets"])
    return _shown(call, record)


def _delete(call: Call) -> dict[str, Any]:
    record = _find(call)
    call.cell.store.delete(record)
    call.note("delete", KIND, record.name, domain=record.spec["domain"])
    return {"name": record.name}


def _refuse_unknown(call: Call, targets: list[dict[str, Any]]) -> None:
    for item in targets:
        record = call.cell.store.find(call.ws, "deployment", item["name"])
        if record is None or record.spec.get("pod") or not sight.sees(call.cell, call.principal, record):
            raise missing("deployment", item["name"], sight.names(call.cell, call.principal, "deployment"), "lepton ps")


def _states(call: Call) -> dict[str, bool]:
    """Of the workspace's deployments, whether each takes requests now (or would hold them until it does)."""
    return {
        record.name: record.status.get("state") in ("ready", "degraded", "updating", "idle")
        for record in call.cell.store.list("deployment", workspace=call.ws)
        if not record.spec.get("pod")
    }


def _cname(call: Call) -> str:
    return urlsplit(call.cell.gateway_url).hostname or "localhost"
