"""The API describes itself, and truly: every route is in the document, and nothing else is."""

from __future__ import annotations

import json
import re
from typing import Any

from lepton_ai.api.call import BASE
from lepton_ai.api.described import SAID
from lepton_ai.tenancy.access import MAY


def routes(stand: Any) -> set[tuple[str, str]]:
    """(method, path) of every route of the application, in the form of the document."""
    return {
        (method, re.sub(r":path\}", "}", route.path))
        for route in stand.app.routes
        for method in route.methods - {"HEAD"}
    }


def document(stand: Any) -> dict[str, Any]:
    response = stand.client(token="none").get("http://cell/api/openapi.json", headers={"authorization": ""})
    assert response.status_code == 200
    return dict(response.json())


def test_every_route_is_in_the_document_and_nothing_else(stand: Any) -> None:
    described = {(method.upper(), path) for path, item in document(stand)["paths"].items() for method in item}
    assert described == routes(stand)


def test_every_route_is_told_of_in_words(stand: Any) -> None:
    said = {tuple(key.split(" ", 1)) for key in SAID}
    known = {(method, path.removeprefix(BASE)) for method, path in routes(stand)}
    assert sorted(known - said) == [], "describe these in api/described.py"
    assert sorted(said - known) == []


def test_what_an_operation_holds(stand: Any) -> None:
    whole = document(stand)
    names = []
    for path, item in whole["paths"].items():
        for method, operation in item.items():
            names.append(operation["operationId"])
            where = {one["name"] for one in operation["parameters"] if one["in"] == "path"}
            assert where == set(re.findall(r"\{(\w+)\}", path))
            assert "4XX" in operation["responses"]
            body = operation.get("requestBody")
            if method in ("put", "patch"):
                changes = path.endswith(("/restart",)) or body is not None
                assert changes, (method, path)
            if path.startswith(BASE) and "blobs" not in path:
                assert set(operation["x-roles"]) == {role for role in MAY if operation["x-action"] in MAY[role]}
    assert len(names) == len(set(names))
    text = json.dumps(whole)
    for reference in set(re.findall(r'"\$ref": "#/components/schemas/(\w+)"', text)):
        assert reference in whole["components"]["schemas"], reference
    secret = whole["paths"][BASE + "/x/secrets/{name}"]["put"]
    assert secret["requestBody"]["required"] is True
    tokens = whole["paths"][BASE + "/x/tokens"]["post"]
    assert "201" in tokens["responses"]
    assert "idempotency-key" in {one["name"] for one in tokens["parameters"]}
    assert "501" in whole["paths"][BASE + "/rayclusters"]["post"]["responses"]
