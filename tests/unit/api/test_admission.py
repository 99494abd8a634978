"""Who is let in: every route that the application has, with no token, wrong tokens, and each role."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from starlette.routing import Route
from starlette.testclient import TestClient

from lepton_ai.api.call import BASE

# What the least role may ask: nothing but what a client needs to say who it is.
CALLERS = {("GET", ""), ("GET", "/workspace"), ("GET", "/tokens"), ("GET", "/x/cell")}
# Requests that change nothing, although they are not GET.
READS = {
    ("POST", "/x/plan"), ("POST", "/x/query"),
    ("POST", "/templates/public/{id}/render"), ("POST", "/templates/private/{id}/render"),
}  # fmt: skip
GROUP = "/dedicated-node-groups/{id}"
ADMINS = {
    ("GET", "/x/tokens"), ("POST", "/x/tokens"), ("DELETE", "/x/tokens/{name}"),
    ("PATCH", "/x/nodes/{name}"), ("POST", "/x/nodes/{name}/drain"), ("POST", "/x/nodes/{name}/undrain"),
    ("POST", "/x/reservations"), ("DELETE", "/x/reservations/{name}"),
    ("POST", GROUP + "/volumes"), ("DELETE", GROUP + "/volumes/{name}"),
    ("POST", GROUP + "/datasources"),
    ("PATCH", GROUP + "/datasources/{name}"), ("DELETE", GROUP + "/datasources/{name}"),
    ("POST", "/storage-permission/{volume}"), ("DELETE", "/storage-permission/{volume}/{prefix:path}"),
}  # fmt: skip
OWNERS = {
    ("GET", "/x/workspaces"), ("POST", "/x/workspaces"), ("PATCH", "/x/workspaces/{name}"),
    ("DELETE", "/x/workspaces/{name}"),
}  # fmt: skip
PUBLIC = {"/api/health", "/api/openapi.json"}


def routes(stand: Any) -> Iterator[tuple[str, str, str]]:
    """(method, path below the workspace, the same with names filled in) of every route that wants a token."""
    for route in stand.app.routes:
        assert isinstance(route, Route)
        if not route.path.startswith(BASE):
            assert route.path in PUBLIC
            continue
        path = route.path.removeprefix(BASE)
        filled = path
        for name in route.param_convertors:
            filled = filled.replace(f"{{{name}}}", "nothing").replace(f"{{{name}:path}}", "nothing")
        for method in sorted((route.methods or set()) - {"HEAD"}):
            yield method, path, filled


def test_every_route_wants_a_token_of_its_workspace(stand: Any) -> None:
    nobody = TestClient(stand.app, base_url="http://cell/api/v2/workspaces/default")
    wrong = stand.client(token="lta_" + "A" * 43)
    foreign = stand.client(token=stand.foreign)
    known = list(routes(stand))
    assert len(known) > 60
    for method, path, filled in known:
        for client, status, code in (
            (nobody, 401, "Unauthorized"),
            (wrong, 401, "Unauthorized"),
            (foreign, 404, "NotFound"),
        ):
            response = client.request(method, filled, json={} if method in ("POST", "PUT", "PATCH") else None)
            assert response.status_code == status, (method, path, response.text)
            body = response.json()
            assert (body["code"], set(body)) == (code, {"code", "message", "hint", "details"}), (method, path)
            assert body["hint"]
    assert nobody.get("/x/cell").headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("header", ["", "Basic abc", "Bearer", "Bearer ", "bearer\tx", "Bearer lta_short"])
def test_odd_authorization_headers_are_refused(stand: Any, header: str) -> None:
    client = TestClient(stand.app, base_url="http://cell/api/v2/workspaces/default")
    assert client.get("/x/cell", headers={"authorization": header}).status_code == 401


def test_each_role_may_do_what_it_should_and_no_more(stand: Any) -> None:
    for method, path, filled in routes(stand):
        reads = method == "GET" or (method, path) in READS
        may = {
            "caller": (method, path) in CALLERS,
            "viewer": reads and (method, path) not in ADMINS | OWNERS,
            "developer": (method, path) not in ADMINS | OWNERS,
            "admin": (method, path) not in OWNERS,
            "owner": True,
        }
        for role, allowed in may.items():
            if path in ("/x/query", "/x/tables", "/x/tables/{name}", "/x/tables/{name}/history") and allowed:
                continue  # these would start a worker process
            response = stand.client(role).request(method, filled, json={} if method in ("POST", "PUT") else None)
            assert (response.status_code == 403) == (not allowed), (role, method, path, response.text)
            if not allowed:
                assert response.json()["hint"].startswith("use a token with role ")


def test_health_needs_no_token_and_says_nothing_more(stand: Any) -> None:
    response = TestClient(stand.app).get("/api/health")
    assert response.json() == {"name": "local", "leading": True, "uid": "cell-uid"}


def test_a_revoked_token_is_refused_at_the_next_request(stand: Any) -> None:
    developer = stand.client("developer")
    assert developer.get("/x/cell").status_code == 200
    assert stand.client().delete("/x/tokens/developer").status_code == 200
    assert developer.get("/x/cell").status_code == 401
