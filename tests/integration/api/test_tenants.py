"""Every route, one by one: a stranger finds nothing, a weaker role changes nothing, each change is audited.

A route that is not in ROUTES fails the first test: whoever adds one says here what a stranger gets from it.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import delete

from lepton_ai.api.call import BASE
from lepton_ai.store.tables import events
from lepton_ai.tenancy.access import MAY

DATA = b"planted bytes"
DIGEST = f"sha256:{hashlib.sha256(DATA).hexdigest()}"
SECRET = "hunter2-hunter2-hunter2"
TOKEN = "planted-endpoint-key"
SPEC = {"container": {"command": ["true"]}}
TEMPLATE = {"workload_type": "job", "content": {"spec": {"a": "{{run}}"}}}
BUCKET = {"bucket": "abc", "provider": {"type": "aws", "aws": {"region": "x"}}}
# What a stranger gets on its own base, asking for what is planted in the other workspace:
EMPTY = "empty"  # a list without it
NONE = "none"  # 404
CELL = "cell"  # 403: it is for who owns the cell
OPEN = "open"  # the same for everyone, nothing of the other in it
MAKES = "makes"  # one of its own, whatever is there in the other
ABSENT = "absent"  # 501
ROUTES: dict[str, tuple[str, Any]] = {
    "GET ": (OPEN, None),
    "GET /workspace": (OPEN, None),
    "GET /x/cell": (OPEN, None),
    "GET /x/events": (EMPTY, None),
    "POST /x/plan": (OPEN, {"name": "planted-web", "template": {"command": ["true"]}}),
    "GET /x/deployments": (EMPTY, None),
    "GET /x/deployments/{name}": (NONE, None),
    "PUT /x/deployments/{name}": (MAKES, {"name": "planted-web", "template": {"command": ["true"]}}),
    "DELETE /x/deployments/{name}": (NONE, None),
    "POST /x/deployments/{name}/rollback": (NONE, {"to": 1}),
    "POST /x/deployments/{name}/restart": (NONE, None),
    "POST /x/deployments/{name}/stop": (NONE, None),
    "GET /x/deployments/{name}/releases": (NONE, None),
    "GET /x/deployments/{name}/replicas": (NONE, None),
    "GET /deployments": (EMPTY, None),
    "POST /deployments": (MAKES, {"metadata": {"id": "planted-two"}, "spec": SPEC}),
    "GET /deployments/{name}": (NONE, None),
    "PATCH /deployments/{name}": (NONE, {"spec": {"resource_requirement": {"min_replicas": 0}}}),
    "DELETE /deployments/{name}": (NONE, None),
    "PUT /deployments/{name}/restart": (NONE, None),
    "GET /deployments/{name}/replicas": (NONE, None),
    "GET /deployments/{name}/readiness": (NONE, None),
    "GET /deployments/{name}/termination": (NONE, None),
    "GET /deployments/{name}/events": (NONE, None),
    "GET /x/jobs": (EMPTY, None),
    "POST /x/jobs": (MAKES, {"name": "own", "template": {"command": ["true"]}}),
    "GET /x/jobs/{name}": (NONE, None),
    "PATCH /x/jobs/{name}": (NONE, {"stopped": True}),
    "DELETE /x/jobs/{name}": (NONE, None),
    "GET /x/jobs/{name}/replicas": (NONE, None),
    "GET /jobs": (EMPTY, None),
    "POST /jobs": (MAKES, {"metadata": {"id": "own"}, "spec": SPEC}),
    "GET /jobs/{name}": (NONE, None),
    "PATCH /jobs/{name}": (NONE, {"spec": {"stopped": True}}),
    "DELETE /jobs/{name}": (NONE, None),
    "GET /jobs/{name}/replicas": (NONE, None),
    "GET /jobs/{name}/events": (NONE, None),
    "GET /x/logs/{name}": (NONE, None),
    "GET /logs": (EMPTY, None),
    "GET /logs/timeseries": (EMPTY, None),
    "GET /jobs/{owner}/replicas/{name}/log": (NONE, None),
    "GET /deployments/{owner}/replicas/{name}/log": (NONE, None),
    "GET /x/nodes": (OPEN, None),
    "GET /x/top": (EMPTY, None),
    "GET /x/metrics": (OPEN, None),
    "PATCH /x/nodes/{name}": (CELL, {"taint": ["a=b"]}),
    "POST /x/nodes/{name}/drain": (CELL, None),
    "POST /x/nodes/{name}/undrain": (CELL, None),
    "GET /dedicated-node-groups": (OPEN, None),
    "GET /dedicated-node-groups/{id}": (OPEN, None),
    "GET /dedicated-node-groups/{id}/nodes": (OPEN, None),
    "GET /dedicated-node-groups/{id}/machines": (OPEN, None),
    "GET /dedicated-node-groups/{id}/reservations": (EMPTY, None),
    "GET /shapes": (OPEN, None),
    "GET /x/reservations": (EMPTY, None),
    "POST /x/reservations": (CELL, {"metadata": {"name": "planted-two"}, "spec": {}}),
    "DELETE /x/reservations/{name}": (CELL, None),
    "POST /dedicated-node-groups/{id}/volumes": (CELL, {"name": "planted-two", "from": "local", "from_path": "/none"}),
    "DELETE /dedicated-node-groups/{id}/volumes/{name}": (CELL, None),
    "GET /dedicated-node-groups/{id}/datasources": (EMPTY, None),
    "POST /dedicated-node-groups/{id}/datasources": (MAKES, {"name": "own", "object": BUCKET}),
    "GET /dedicated-node-groups/{id}/datasources/{name}": (NONE, None),
    "PATCH /dedicated-node-groups/{id}/datasources/{name}": (NONE, {"description": "x"}),
    "DELETE /dedicated-node-groups/{id}/datasources/{name}": (NONE, None),
    "GET /storage-permission/{volume}": (NONE, None),
    "POST /storage-permission/{volume}": (NONE, {"path_prefix": "/x", "allowed_users": ["*"]}),
    "DELETE /storage-permission/{volume}/{prefix}": (NONE, None),
    "POST /x/query": (OPEN, {"sql": "select 1"}),
    "GET /x/tables": (EMPTY, None),
    "GET /x/tables/{name}": (NONE, None),
    "GET /x/tables/{name}/history": (NONE, None),
    "GET /x/models": (EMPTY, None),
    "GET /x/models/{name}": (NONE, None),
    "POST /x/models/{name}": (OPEN, b"not a model"),
    "GET /x/blobs/{digest}": (NONE, None),
    "PUT /x/blobs/{digest}": (MAKES, DATA),
    "GET /x/tokens": (EMPTY, None),
    "POST /x/tokens": (MAKES, {"name": "planted-token"}),
    "DELETE /x/tokens/{name}": (NONE, None),
    "GET /x/secrets": (EMPTY, None),
    "GET /x/secrets/{name}": (NONE, None),
    "PUT /x/secrets/{name}": (MAKES, {"value": "own"}),
    "DELETE /x/secrets/{name}": (NONE, None),
    "GET /tokens": (OPEN, None),
    "GET /usersecrets": (EMPTY, None),
    "POST /usersecrets": (MAKES, [{"name": "PLANTED_TWO", "value": "own"}]),
    "DELETE /usersecrets/{name}": (NONE, None),
    "GET /x/registries": (EMPTY, None),
    "PUT /x/registries/{name}": (MAKES, {"registry": "r.example.com", "username": "u", "password": "own"}),
    "DELETE /x/registries/{name}": (NONE, None),
    "GET /x/workspaces": (CELL, None),
    "POST /x/workspaces": (CELL, {"name": "third", "force": True}),
    "PATCH /x/workspaces/{name}": (CELL, {"weight": 2}),
    "DELETE /x/workspaces/{name}": (CELL, None),
    "GET /templates/public": (OPEN, None),
    "GET /templates/private": (EMPTY, None),
    "GET /templates/public/{id}": (NONE, None),
    "GET /templates/private/{id}": (NONE, None),
    "POST /templates/public/{id}/render": (NONE, {"run": "true"}),
    "POST /templates/private/{id}/render": (NONE, {"run": "true"}),
    "PUT /x/templates/{id}": (MAKES, {"spec": TEMPLATE}),
    "DELETE /x/templates/{id}": (NONE, None),
    "GET /ingress": (EMPTY, None),
    "POST /ingress": (MAKES, {"metadata": {}, "spec": {"domain_name": "own.example.com"}}),
    "GET /ingress/{name}": (NONE, None),
    "PATCH /ingress/{name}": (NONE, {"spec": {"domain_name": "planted.example.com", "endpoints": []}}),
    "DELETE /ingress/{name}": (NONE, None),
    "POST /ingress/{name}/endpoint/deployment": (NONE, {"deployment": "planted-web", "weight": 1}),
    "DELETE /ingress/{name}/endpoint/deployment/{deployment}": (NONE, None),
    "GET /finetune/jobs": (OPEN, None),
    "POST /finetune/jobs": (ABSENT, {"metadata": {"id": "j"}, "spec": {}}),
    "GET /finetune/jobs/{name}": (NONE, None),
    "PATCH /finetune/jobs/{name}": (NONE, {"spec": {"stopped": True}}),
    "DELETE /finetune/jobs/{name}": (NONE, None),
    "GET /finetune/trainers": (OPEN, None),
    "GET /finetune/supported-models": (OPEN, None),
    "GET /rayclusters": (OPEN, None),
    "POST /rayclusters": (ABSENT, {"metadata": {"name": "r"}, "spec": {}}),
    "GET /rayclusters/{name}": (NONE, None),
    "PATCH /rayclusters/{name}": (NONE, {"spec": {"suspend": True}}),
    "DELETE /rayclusters/{name}": (NONE, None),
}
READS = ("/x/plan", "/x/query", "/render")
"""POST routes that change nothing."""


class Planted:
    """Workspace "default" with one of everything, each with the word "planted" in it; "other" has nothing."""

    def __init__(self, stand: Any, folder: Path) -> None:
        self.stand = stand
        self.client = stand.client()
        self.stranger = stand.client(token=stand.foreign, ws="other")
        stand.node("node-1", state="ready")
        put, post = self.client.put, self.client.post
        group = "/dedicated-node-groups/local-0001"
        volume = {"name": "planted-data", "from": "local", "from_path": str(folder), "creation_mode": "mkdir"}
        login = {"registry": "planted.example.com", "username": "planted", "password": SECRET}
        form = {"name": "planted-web", "tokens": [TOKEN], "template": {"command": ["true", "planted"]}}
        made = [
            put("/x/secrets/PLANTED_KEY", json={"value": SECRET}),
            put("/x/registries/PLANTED_HUB", json=login),
            put("/x/deployments/planted-web", json=form),
            post("/x/jobs", json={"name": "planted-job", "template": {"command": ["true"]}}),
            post("/x/tokens", json={"name": "planted-token"}),
            put("/x/templates/planted-template", json={"spec": TEMPLATE}),
            post(group + "/volumes", json=volume),
            post("/storage-permission/planted-data", json={"path_prefix": "/planted", "allowed_users": ["planted"]}),
            post(group + "/datasources", json={"name": "planted-bucket", "object": BUCKET}),
            post("/x/reservations", json={"metadata": {"name": "planted-reservation"}, "spec": {}}),
            post("/ingress", json={"metadata": {}, "spec": {"domain_name": "planted.example.com"}}),
            put(f"/x/blobs/{DIGEST}", content=DATA),
        ]
        for response in made:
            assert response.status_code < 300, response.text
        self.job = made[3].json()["name"]
        self.ingress = self.client.get("/ingress").json()[0]["metadata"]["name"]
        web = stand.store.get("default", "deployment", "planted-web")
        replica = stand.replica(web, phase="exited")  # so that its live log comes to an end
        self.replica = replica.name
        stand.cell.events.add("default", "deployment", "planted-web", "Normal", "Planted", "planted words")
        stand.cell.logs.archive(
            "default", "deployment", "planted-web", replica.uid, replica.name, [(1, "o", "planted line")]
        )

    def path(self, key: str) -> str:
        """The path of a route with the names of what is planted."""
        path = key.partition(" ")[2]
        names = {
            "deployments": "planted-web", "jobs": self.job, "logs": "planted-web", "nodes": "node-1",
            "reservations": "planted-reservation", "volumes": "planted-data", "datasources": "planted-bucket",
            "tables": "planted", "models": "planted", "tokens": "planted-token", "secrets": "PLANTED_KEY",
            "usersecrets": "PLANTED_KEY", "registries": "PLANTED_HUB", "workspaces": "default",
            "ingress": self.ingress, "rayclusters": "planted", "replicas": self.replica,
        }  # fmt: skip
        for owner in ("jobs", "deployments"):
            path = path.replace(f"/{owner}/{{owner}}", f"/{owner}/{names[owner]}")
        path = re.sub(r"/([a-z]+)/\{name\}", lambda found: f"/{found[1]}/{names[found[1]]}", path)
        given = {"digest": DIGEST, "volume": "planted-data", "prefix": "planted", "deployment": "planted-web"}
        for name, value in given.items():
            path = path.replace("{%s}" % name, value)  # noqa: UP031
        return path.replace("{id}", "planted-template" if "template" in path else "local-0001")

    def send(self, client: Any, key: str, **options: Any) -> Any:
        body = ROUTES[key][1]
        if isinstance(body, bytes):
            options["content"] = body
        elif body is not None:
            options["json"] = body
        return client.request(key.partition(" ")[0], self.path(key), **options)

    def records(self) -> dict[tuple[str, str], tuple[int, bool]]:
        """What the workspace has, with its generations."""
        found = {}
        for kind in (
            "deployment", "job", "replica", "release", "secret", "registry", "token", "template", "datasource",
            "permission", "ingress", "blob", "answer",
        ):  # fmt: skip
            for item in self.stand.store.list(kind, workspace="default"):
                found[kind, item.name] = (item.generation, item.deleting)
        for kind in ("volume", "reservation", "node", "workspace"):
            for item in self.stand.store.list(kind, workspace="system"):
                found[kind, item.name] = (item.generation, item.deleting)
        return found


@pytest.fixture
def planted(tmp_path: Path) -> Iterator[Planted]:
    path = Path(__file__).parents[2] / "unit" / "stand.py"
    spec = importlib.util.spec_from_file_location("tenants_stand", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    (tmp_path / "cell").mkdir()
    made = module.Stand(tmp_path / "cell")
    yield Planted(made, tmp_path / "volume")
    made.close()


def _routes(planted: Planted) -> set[str]:
    found = set()
    for path, item in planted.client.get("http://cell/api/openapi.json").json()["paths"].items():
        if path.startswith(BASE):
            found |= {f"{method.upper()} {path.removeprefix(BASE)}" for method in item}
    return found


def test_every_route_is_in_the_table(planted: Planted) -> None:
    assert _routes(planted) - set(ROUTES) == set(), "say in ROUTES what a stranger gets from these"
    assert set(ROUTES) - _routes(planted) == set()


def test_a_strangers_token_on_the_others_base(planted: Planted) -> None:
    """All there is looks like what is not there at all."""
    client = planted.stand.client(token=planted.stand.foreign, ws="default")
    nowhere = planted.stand.client(token=planted.stand.foreign, ws="nowhere")
    before = planted.records()
    for key in ROUTES:
        response, none = planted.send(client, key), planted.send(nowhere, key)
        assert (response.status_code, none.status_code) == (404, 404), key
        assert response.text.replace("default", "nowhere") == none.text, key
    assert planted.records() == before


def test_a_stranger_on_its_own_base(planted: Planted) -> None:
    before = planted.records()
    for key, (kind, body) in ROUTES.items():
        options = {"params": {"start": 0, "end": 10**12, "deployment": "planted-web"}} if "/logs" in key else {}
        response = planted.send(planted.stranger, key, **options)
        where = f"{key} -> {response.status_code} {response.text[:300]}"
        expected = {EMPTY: (200,), NONE: (404,), CELL: (403,), OPEN: (200, 201, 400), MAKES: (200, 201), ABSENT: (501,)}
        assert response.status_code in expected[kind], where
        told = response.text.lower()
        if kind in (EMPTY, OPEN) and response.status_code < 400 and "planted" not in json.dumps(body, default=str):
            # The name that was asked for comes back in Loki's answers; nothing else may.
            assert "planted" not in told.replace('"planted-web"', ""), where
        assert "did you mean planted" not in told, where
        assert "planted line" not in told, where
        assert "planted words" not in told, where
        if kind == EMPTY:
            assert not _items(response.json()), where
        if kind == MAKES:
            _undo(planted)
    assert planted.records() == before


def _items(value: Any) -> list[Any]:
    """What a list holds, whatever it is wrapped in (the stranger's own token aside)."""
    if isinstance(value, dict):
        for field in ("jobs", "items", "data"):
            if field in value:
                return _items(value[field])
        return list(value.get("result", []))
    return [item for item in value if item.get("role") != "owner"]


def _undo(planted: Planted) -> None:
    """The stranger's own things go again: its lists must be empty."""
    store = planted.stand.store
    kinds = ("deployment", "release", "job", "secret", "registry", "template", "datasource", "ingress", "blob")
    for kind in kinds:
        for item in store.list(kind, workspace="other"):
            store.delete(item)
    for item in store.list("token", workspace="other"):
        if item.name != "owner":
            store.delete(item)
    with store.writing() as connection:
        connection.execute(delete(events).where(events.c.workspace == "other"))


def test_roles_that_may_not(planted: Planted) -> None:
    """For every route and every role that the description does not name: 403, and nothing is changed."""
    document = planted.client.get("http://cell/api/openapi.json").json()
    before = planted.records()
    refused = 0
    for role in MAY:
        client = planted.stand.client(role)
        for key in ROUTES:
            method, _, path = key.partition(" ")
            roles = document["paths"][BASE + path][method.lower()].get("x-roles", ["viewer"])
            if role in roles:
                continue
            response = planted.send(client, key)
            if key == "GET /x/blobs/{digest}" and role != "caller":
                continue
            refused += 1
            assert response.status_code == 403, f"{role} {key} -> {response.status_code} {response.text[:200]}"
            assert response.json()["hint"], key
    assert refused > 150
    assert planted.records() == before


def test_viewers_and_callers_change_nothing(planted: Planted) -> None:
    before = planted.records()
    for role in ("viewer", "caller"):
        client = planted.stand.client(role)
        for key in ROUTES:
            if not key.startswith("GET ") and not key.endswith(READS):
                status = planted.send(client, key).status_code
                assert status in (403, 501, 404), (role, key, status)
                assert status == 403 or "finetune" in key or "raycl" in key, (role, key, status)
    assert planted.records() == before


def test_no_answer_holds_a_planted_value(planted: Planted) -> None:
    """Neither a secret, nor a password, nor the key of an endpoint, nor anything sealed."""
    sealed = [item.spec["sealed"] for kind in ("secret", "registry") for item in planted.stand.store.list(kind)] + list(
        planted.stand.store.get("default", "deployment", "planted-web").spec["tokens"]
    )
    for key in ROUTES:
        if key.startswith("DELETE ") or "workspaces" in key:
            continue
        text = planted.send(planted.client, key).text
        for value in (SECRET, TOKEN, *sealed, *(item for item in planted.stand.tokens.values())):
            assert value not in text, key


def test_every_change_is_in_the_audit(planted: Planted) -> None:
    """Each changing route that succeeds leaves at least one entry, by the token that asked, without a value."""
    audit, silent = planted.stand.cell.audit, []
    order = sorted(ROUTES, key=lambda key: key.startswith("DELETE "))
    tried = 0
    for key in order:
        if key.startswith("GET ") or key.endswith(READS) or key == "DELETE /x/workspaces/{name}":
            continue
        before = {item.uid for item in audit.list("default", limit=1000)}
        response = planted.send(planted.client, key)
        if response.status_code >= 300:
            continue
        tried += 1
        new = [item for item in audit.list("default", limit=1000) if item.uid not in before]
        # The same content again, or bytes that are there, is no change.
        if not new and key not in ("PUT /x/deployments/{name}", "PUT /x/blobs/{digest}"):
            silent.append(f"{key} -> {response.status_code}")
        for item in new:
            assert item.actor == "owner", key
            assert SECRET not in str(item), key
    assert silent == []
    assert tried > 30, tried


def test_a_workspace_that_is_removed_and_made_again_has_nothing_of_the_old(planted: Planted) -> None:
    made = planted.client.post("/x/workspaces", json={"name": "third", "force": True})
    assert made.status_code == 201, made.text
    token = made.json()["token"]
    tenant = planted.stand.client(token=token, ws="third")
    for key in ("PUT /x/secrets/{name}", "PUT /x/registries/{name}", "PUT /x/templates/{id}", "PUT /x/blobs/{digest}",
                "POST /x/tokens", "POST /ingress", "POST /dedicated-node-groups/{id}/datasources"):  # fmt: skip
        assert planted.send(tenant, key).status_code < 300, key
    assert planted.send(tenant, "PUT /x/deployments/{name}").status_code == 200
    planted.stand.cell.logs.archive("third", "deployment", "planted-web", "u3", "planted-web-1", [(1, "o", "words")])
    assert planted.stand.cell.logs.query("third", owner_kind="deployment", owner="planted-web")
    busy = planted.client.delete("/x/workspaces/third")
    assert (busy.status_code, "planted-web" in busy.text) == (409, True)
    planted.stand.store.delete(planted.stand.store.get("third", "deployment", "planted-web"))
    assert planted.client.delete("/x/workspaces/third?purge=true").status_code == 200
    assert tenant.get("/x/cell").status_code == 401
    assert "third" not in planted.client.get("/x/workspaces").text
    again = planted.client.post("/x/workspaces", json={"name": "third", "force": True}).json()["token"]
    assert again != token
    tenant = planted.stand.client(token=again, ws="third")
    for key, (kind, _) in ROUTES.items():
        if kind == EMPTY:
            options = {"params": {"start": 0, "end": 10**12, "deployment": "planted-web"}} if "/logs" in key else {}
            assert not _items(planted.send(tenant, key, **options).json()), key
    assert tenant.get(f"/x/blobs/{DIGEST}").status_code == 404
