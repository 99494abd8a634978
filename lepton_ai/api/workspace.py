"""The cell and the workspace over HTTP: health, what the client asks at login, events.

GET /api/health (no token)   GET x/cell   GET x/events   GET {base}   GET /workspace
"""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from lepton_ai import __version__
from lepton_ai.api import view
from lepton_ai.api.call import Call, Router, answer, guarded
from lepton_ai.api.cell import Cell
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
    }


def _events(call: Call) -> list[dict[str, Any]]:
    limit = call.number("limit", 100, low=1, high=1000) or 100
    found = call.cell.events.list(call.ws, call.text("kind", limit=64), call.text("name", limit=255), limit)
    return [view.event(item) for item in found]


def _workspace(call: Call) -> dict[str, Any]:
    store = call.cell.store
    counts = {kind: len(store.list(kind, workspace=call.ws)) for kind in ("deployment", "job", "secret")}
    replicas = store.list("replica")
    nodes = view.nodes(store.list("node"), replicas)
    own = [view.replica(item) for item in replicas if item.workspace == call.ws]
    return wire.shown(call.ws, __version__, counts, nodes, own)
