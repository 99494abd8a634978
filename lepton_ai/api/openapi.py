"""The API's description of itself: an OpenAPI 3.1 document made from the routes as they were added.

GET /api/openapi.json (no token). What a route is (method, path, action, status, body) comes from the router, so that
the document cannot name a route that is not there; what `Router.add` does not know comes from described.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel

from lepton_ai import __version__
from lepton_ai.api.call import BASE, BODY_BYTES_MAX, Entry
from lepton_ai.api.described import SAID, Said
from lepton_ai.api.idempotency import HEADER
from lepton_ai.tenancy.access import MAY

Json = dict[str, Any]
OPEN = ("GET /api/health", "GET /api/openapi.json")
"""Routes outside a workspace, for anyone."""
TICKET = "GET /x/blobs/{digest}"
"""Added to the application by itself, because agents come with a ticket instead of a token."""
PATH = "/api/openapi.json"


def document(entries: Iterable[Entry]) -> Json:
    """The OpenAPI document of an application with these routes."""
    paths: dict[str, Json] = {}
    components: Json = {"schemas": {"Error": _ERROR}, "securitySchemes": {"token": _TOKEN}}
    for entry in entries:
        path = re.sub(r"\{(\w+):path\}", r"{\1}", entry.path)
        said = SAID.get(f"{entry.method} {path}", Said(f"{entry.method} {path}"))
        made = _operation(entry.method, path, said, entry.status, components)
        made["x-action"] = entry.action
        made["x-roles"] = [role for role in MAY if entry.action in MAY[role]]
        paths.setdefault(BASE + path, {})[entry.method.lower()] = made
    for key in OPEN:
        method, path = key.split(" ")
        paths[path] = {"get": _operation(method, path, SAID[key], 200, components) | {"security": []}}
    path = TICKET.partition(" ")[2]
    paths.setdefault(BASE + path, {})["get"] = _operation("GET", path, SAID[TICKET], 200, components)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "lepton cell",
            "version": __version__,
            "description": "Paths below /x/ are the cell's own; the others are those of the public client.",
        },
        "security": [{"token": []}],
        "paths": dict(sorted(paths.items())),
        "components": components,
    }


_TOKEN: Json = {"type": "http", "scheme": "bearer", "description": "an API token of the workspace: lepton token add"}
_ERROR: Json = {
    "type": "object",
    "required": ["code", "message"],
    "properties": {
        "code": {"type": "string", "examples": ["NotFound"]},
        "message": {"type": "string", "description": "one true sentence"},
        "hint": {"type": ["string", "null"], "description": "what to do next"},
        "details": {"type": "object"},
    },
}
_REFUSED: Json = {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}}


def _operation(method: str, path: str, said: Said, status: int, components: Json) -> Json:
    made: Json = {
        "operationId": f"{method.lower()}{re.sub(r'[^A-Za-z0-9]+', '_', path).rstrip('_')}",
        "summary": said.summary,
        "tags": ["cell" if path.startswith(("/x/", "/api/")) else "public client"],
        "parameters": _parameters(method, path, said),
        "responses": _responses(said, status),
    }
    if said.body is not None:
        content = {said.takes: {"schema": _schema(said.body, components)}}
        needed = not (isinstance(said.body, type) and not _required(said.body)) and said.body != {}
        limit = f"at most {BODY_BYTES_MAX} bytes, nested at most 32 deep" if said.takes.endswith("json") else "bytes"
        made["requestBody"] = {"required": needed, "content": content, "description": limit}
    return made


def _parameters(method: str, path: str, said: Said) -> list[Json]:
    whole = path if path.startswith("/api/") else BASE + path
    found: list[Json] = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
        for name in re.findall(r"\{(\w+)\}", whole)
    ]
    found += [{"name": name, "in": "query", "schema": schema} for name, schema in said.query.items()]
    if method == "POST" and said.takes == "application/json":
        text = "the same key and body within a day: done once, answered the same"
        schema = {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[!-~]+$"}
        found.append({"name": HEADER, "in": "header", "description": text, "schema": schema})
    return found


def _responses(said: Said, status: int) -> Json:
    found: Json = {}
    if not said.never:
        schema = said.answer if said.media == "application/json" else {"type": "string"}
        found[str(status)] = {"description": said.summary, "content": {said.media: {"schema": schema}}}
    found["4XX"] = {"description": "it was refused, and why", **_REFUSED}
    if said.unsupported:
        found["501"] = {"description": "understood, but not part of this release or cell", **_REFUSED}
    found["5XX"] = {"description": "a part of the cell does not answer, or is full", **_REFUSED}
    return found


def _schema(body: Json | type[BaseModel], components: Json) -> Json:
    if isinstance(body, dict):
        return body
    made = body.model_json_schema(ref_template="#/components/schemas/{model}")
    components["schemas"].update(made.pop("$defs", {}))
    components["schemas"][body.__name__] = made
    return {"$ref": f"#/components/schemas/{body.__name__}"}


def _required(body: type[BaseModel]) -> bool:
    return any(field.is_required() for field in body.model_fields.values())
