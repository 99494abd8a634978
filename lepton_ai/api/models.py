"""Registered models over HTTP, and how a model version becomes bytes that a node can fetch.

Owns the way between the workspace's registry (in its lake) and the cell's blobs.

    GET  x/models   x/models/NAME[@N]      POST x/models/NAME?lineage=JSON   body: a saved model
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from starlette.responses import Response

from lepton_ai.api.call import Call, Router, answer
from lepton_ai.api.cell import Cell
from lepton_ai.api.form import MODEL_FILE
from lepton_ai.api.holdings import hold
from lepton_ai.api.lanes import lanes
from lepton_ai.api.upload import Upload
from lepton_ai.errors import Invalid, NotFound
from lepton_ai.lake import open as open_lake
from lepton_ai.models.registry import ModelVersion, Registry
from lepton_ai.spec.workload import BlobRef

MODEL_BYTES_MAX = 2 << 30
LINEAGE_BYTES_MAX = 16 * 1024


def add(router: Router) -> None:
    router.add("GET", "/x/models", "read", _list)
    router.add("GET", "/x/models/{name}", "read", _get)
    router.add("POST", "/x/models/{name}", "write", _register, body=False)


def registry(cell: Cell, ws: str) -> Registry:
    return Registry(open_lake(cell.lake_url(ws)).objects, now_ms=cell.store.now_ms)


def version(cell: Cell, ws: str, ref: str, *, planning: bool = False) -> ModelVersion:
    """The version that `ref` names: movies (the newest), movies@3, or movies@sha256:… (by its bytes).

    A plan may name bytes that are not registered yet: they get the next number. Raises NotFound, Invalid.
    """
    name, _, wanted = ref.partition("@")
    models = registry(cell, ws)
    if not wanted.startswith("sha256:"):
        return models.get(ref)
    versions = models.list(name)
    for item in reversed(versions):
        if item.digest == wanted:
            return item
    if not planning:
        raise NotFound(f"no version of {name} has digest {wanted}", hint=f"register it: POST x/models/{name}")
    number = versions[-1].version + 1 if versions else 1
    return ModelVersion(name, number, "model", wanted, 0, "", cell.store.now_ms())


def provide(cell: Cell, ws: str, item: ModelVersion) -> None:
    """Puts the bytes of a version where nodes fetch from, unless they are there. Raises Corrupt, DiskFull."""
    if not cell.blobs.has(item.digest):
        path = open_lake(cell.lake_url(ws)).objects.path(item.key)
        cell.blobs.put(path, digest=item.digest, size_bytes=item.size_bytes)
    hold(cell, ws, item.digest)


def blob(item: ModelVersion) -> BlobRef:
    return BlobRef(digest=item.digest, size_bytes=item.size_bytes, path=MODEL_FILE)


def view(item: ModelVersion) -> dict[str, Any]:
    """A version as JSON."""
    return {
        "model": item.name,
        "number": item.version,
        "ref": str(item),
        "name": item.name,
        "version": item.version,
        "kind": item.kind,
        "metrics": item.metrics,
        "protocol": item.protocol,
        "lineage": item.lineage,
        "signature": item.signature,
        "digest": item.digest,
        "size_bytes": item.size_bytes,
        "created_ms": item.created_ms,
    }


def _list(call: Call) -> list[dict[str, Any]]:
    found = registry(call.cell, call.ws).list()
    return [view(item) for item in sorted(found, key=lambda item: (item.name, -item.version))]


def _get(call: Call) -> dict[str, Any]:
    return view(version(call.cell, call.ws, call.path("name")))


async def _register(call: Call) -> Response:
    name, lineage = call.path("name"), _lineage(call.text("lineage", limit=LINEAGE_BYTES_MAX))
    upload = Upload(call.request, MODEL_BYTES_MAX)

    def receive() -> ModelVersion:
        # In a file throughout: uploads, slow or large, cost disk, not memory.
        with tempfile.NamedTemporaryFile(dir=call.cell.blobs.root / "new") as file:
            upload.copy(file)
            with lanes(call.request).registering:
                item = registry(call.cell, call.ws).register(name, Path(file.name), lineage=lineage)
        call.note("register", "model", name, version=item.version, digest=item.digest)
        return item

    return answer(view(await lanes(call.request).uploads(call.ws).run(receive)), 201)


def _lineage(text: str | None) -> dict[str, Any]:
    if text is None:
        return {}
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise Invalid("lineage is not a JSON object", hint='for example ?lineage={"table":"ratings@1"}')
    return value
