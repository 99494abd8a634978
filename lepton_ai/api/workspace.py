"""The cell and the workspace over HTTP: health, what the client asks at login, events.

GET /api/health (no token)   GET x/cell   GET x/events   GET {base}   GET /workspace
"""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from lepton_ai import __version__
from lepton_ai.api import nodes, sight, view
from lepton_ai.api.call import Call, Router, answer, guarded
from lepton_ai.api.cell import Cell
from lepton_ai.tenancy.workspaces import isolation
from lepton_ai.wire import workspace as wire


def add(router: Router, cell: Cell) -> None:
    async def health(_: Request) -> Response:
        return answer({"name": cell.name, "leading": cell.leading(), "uid": cell.uid})

    router.routes.append(Route("/api/health", guarded(health), methods=["GET"]))
    router.add("GET", "/x/cell", "call", _cell)
    router.add("GET", "/x/events", "read", _events)
    router.add("GET", "", "call", lambda call: wire.named(call.ws))
    router.add("GET", "/workspace", "call", _workspace)


def _cell(call: Call) -> dict[str, Any]:
    cell = call.cell
    return {
        "name": cell.name,
        "uid": cell.uid,
        "version": __version__,
        "workspace": call.ws,
        "role": call.principal.role,
        "api_url": cell.api_url,
        "gateway_url": cell.gateway_url,
        "lake_url": cell.lake_url(call.ws),
        "nodes": sorted(record.name for record in cell.store.list("node")),
        "leading": cell.leading(),
        "loop": dict(cell.pace()),
        "isolation": isolation(cell.settings),
        "warning": cell.workspaces.warning() if call.ws == cell.workspaces.first else "",
    }


def _events(call: Call) -> list[dict[str, Any]]:
    limit = call.number("limit", 100, low=1, high=1000) or 100
    found = call.cell.events.list(call.ws, call.text("kind", limit=64), call.text("name", limit=255), limit)
    hidden = sight.hidden_names(call.cell, call.principal)
    return [view.event(item) for item in found if (item.kind, item.name) not in hidden]


def _workspace(call: Call) -> dict[str, Any]:
    cell, store = call.cell, call.cell.store
    pods = sum(bool(item.spec.get("pod")) for item in store.list("deployment", workspace=call.ws))
    counts = {
        "deployments": store.count("deployment", workspace=call.ws) - pods,
        "jobs": store.count("job", workspace=call.ws),
        "pods": pods,
        "secrets": store.count("secret", workspace=call.ws),
        "image_pull_secrets": store.count("registry", workspace=call.ws),
    }
    items = nodes.all_nodes(call)
    own = [view.replica(item) for item in store.list("replica", workspace=call.ws, but="exited")]
    return wire.shown(
        call.ws,
        __version__,
        counts=counts,
        nodes=items,
        replicas=own,
        shapes=nodes.priced(call, items),
        disk_bytes=cell.usage.disk_bytes(store, cell.lake_root / call.ws, call.ws),
    )
