"""Private work: for its maker, admins and owners it is there; for everyone else in the workspace it does not exist."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from lepton_ai.spec.base import uuid7

JOB: dict[str, Any] = {
    "metadata": {"id": "secretive", "visibility": "private"},
    "spec": {"resource_shape": "cpu.small", "container": {"command": ["true"]}},
}
ENDPOINT: dict[str, Any] = {
    "metadata": {"id": "hidden", "name": "hidden", "visibility": "private"},
    "spec": {
        "container": {"command": ["serve"]},
        "resource_requirement": {"resource_shape": "cpu.small"},
        "image_pull_secrets": [],
    },
}


@pytest.fixture
def clients(stand: Any) -> dict[str, Any]:
    """alice made it; bob is a developer like her."""
    tokens = {name: stand.cell.access.issue("default", "developer", name)[0] for name in ("alice", "bob")}
    made = {name: stand.client(token=token) for name, token in tokens.items()}
    return {**made, "viewer": stand.client("viewer"), "admin": stand.client("admin"), "owner": stand.client("owner")}


def test_a_private_endpoint_is_not_there_for_others(stand: Any, clients: dict[str, Any]) -> None:
    assert clients["alice"].post("/deployments", json=ENDPOINT).status_code == 201
    record = stand.store.get("default", "deployment", "hidden")
    replica = stand.replica(record)
    stand.live.lines[replica.uid] = [(5, "o", "confidential")]
    stand.cell.events.add("default", "deployment", "hidden", "Normal", "State", "new -> ready", record.uid)
    stand.node("node-1", state="ready", capacity={"cpu_milli": 1000, "memory_mib": 1024})
    group = "/dedicated-node-groups/local-0001/nodes"
    rid = replica.name
    paths = (
        "/deployments/hidden", "/deployments/hidden/replicas", "/deployments/hidden/readiness",
        "/deployments/hidden/termination", "/deployments/hidden/events", f"/deployments/hidden/replicas/{rid}/log",
        "/x/deployments/hidden", "/x/deployments/hidden/replicas", "/x/deployments/hidden/releases",
        "/x/logs/hidden", f"/x/logs/{rid}", "/logs?start=1&end=9&deployment=hidden",
        f"/logs?start=1&end=9&replica={rid}",
    )  # fmt: skip
    stand.live.closed.add(replica.uid)
    stand.store.update(replica, status={**replica.status, "phase": "exited"})
    for name in ("alice", "admin", "owner"):
        client = clients[name]
        assert [item["metadata"]["id"] for item in client.get("/deployments").json()] == ["hidden"], name
        assert [item["name"] for item in client.get("/x/deployments").json()] == ["hidden"]
        assert "hidden" in client.get("/x/events").text
        for path in paths:
            assert client.get(path).status_code == 200, (name, path)
    for name in ("bob", "viewer"):
        client = clients[name]
        assert client.get("/deployments").json() == []
        assert client.get("/x/deployments").json() == []
        assert "hidden" not in client.get("/x/events").text
        assert "hidden" not in client.get(group).text
        for path in paths:
            answer = client.get(path)
            assert answer.status_code == 404, (name, path, answer.text)
            assert "confidential" not in answer.text
        near = client.get("/deployments/hiden").json()
        assert "hidden" not in near["hint"], "nor is its name given away"


def test_what_is_private_cannot_be_changed_by_others(stand: Any, clients: dict[str, Any]) -> None:
    assert clients["alice"].post("/deployments", json=ENDPOINT).status_code == 201
    before = stand.store.get("default", "deployment", "hidden")
    bob = clients["bob"]
    opened = {"metadata": {"visibility": "public"}}
    form = {"name": "hidden", "template": {"command": ["evil"]}}
    for answer, status in (
        (bob.patch("/deployments/hidden", json=opened), 404),
        (bob.delete("/deployments/hidden"), 404),
        (bob.put("/deployments/hidden/restart"), 404),
        (bob.post("/x/deployments/hidden/stop"), 404),
        (bob.post("/x/deployments/hidden/rollback", json={}), 404),
        (bob.delete("/x/deployments/hidden"), 404),
        # Names are shared: that one is taken cannot be kept from them, what it is can.
        (bob.post("/deployments", json=ENDPOINT), 409),
        (bob.put("/x/deployments/hidden", json=form), 409),
        (bob.post("/x/plan", json=form), 409),
    ):
        assert answer.status_code == status, answer.text
    assert stand.store.get("default", "deployment", "hidden") == before
    assert clients["alice"].patch("/deployments/hidden", json=opened).status_code == 200
    assert bob.get("/deployments/hidden").status_code == 200
    # It stays hers when somebody else changes it.
    assert bob.patch("/deployments/hidden", json={"metadata": {"labels": {"a": "b"}}}).status_code == 200
    assert bob.get("/deployments/hidden").json()["metadata"]["owner"] == "alice"


def test_a_private_job_is_not_there_for_others_even_when_it_is_gone(stand: Any, clients: dict[str, Any]) -> None:
    job = clients["alice"].post("/jobs", json=JOB).json()["metadata"]["id"]
    record = stand.store.get("default", "job", job)
    replica = stand.replica(record, phase="exited")
    lines = [(7_000_000, "o", "confidential")]
    stand.cell.logs.archive("default", "job", job, replica.uid, replica.name, lines)
    paths = [
        f"/jobs/{job}",
        f"/jobs/{job}/replicas",
        f"/jobs/{job}/events",
        f"/x/jobs/{job}",
        f"/x/jobs/{job}/replicas",
    ]
    left = [
        f"/x/logs/{job}",
        f"/logs?start=1&end=9999999&job={job}",
        f"/logs?start=1&end=9999999&replica={replica.name}",
    ]
    for name, status in (("alice", 200), ("admin", 200), ("bob", 404), ("viewer", 404)):
        for path in (*paths, *left):
            assert clients[name].get(path).status_code == status, (name, path)
        assert clients[name].get("/jobs").json()["total"] == (1 if status == 200 else 0)
        assert len(clients[name].get("/x/jobs").json()) == (1 if status == 200 else 0)
        assert len(clients[name].get("/x/jobs?all=true").json()) == (1 if status == 200 else 0)
    assert clients["bob"].patch(f"/jobs/{job}", json={"spec": {"stopped": True}}).status_code == 404
    assert clients["bob"].patch(f"/x/jobs/{job}", json={"stopped": True}).status_code == 404
    assert clients["bob"].delete(f"/jobs/{job}").status_code == 404

    archive(stand, record)
    mode = "?job_query_mode=alive_and_archive"
    for name, status in (("alice", 200), ("admin", 200), ("bob", 404), ("viewer", 404)):
        for path in (f"/jobs/{job}{mode}", f"/jobs/{job}/replicas{mode}", *left):
            answer = clients[name].get(path)
            assert answer.status_code == status, (name, path)
            assert status == 200 or "confidential" not in answer.text
        assert clients[name].get(f"/jobs{mode}").json()["total"] == (1 if status == 200 else 0)
    assert clients["bob"].delete(f"/jobs/{job}{mode}").status_code == 404
    assert clients["alice"].delete(f"/jobs/{job}{mode}").status_code == 200


def archive(stand: Any, record: Any) -> None:
    """What the loops write when a job goes."""
    replicas = stand.store.list("replica", owner_uid=record.uid)
    kept = [{"name": item.name, "uid": item.uid, "spec": item.spec, "status": item.status} for item in replicas]
    spec = {"kind": "job", "spec": record.spec, "uid": record.uid, "created_ms": record.created_ms, "updated_ms": 0}
    stand.store.create("default", "archive", record.name, {**spec, "replicas": kept}, status=record.status)
    for item in (*replicas, stand.store.get("default", "job", record.name)):
        stand.store.delete(item)


def test_what_a_private_endpoint_left_stays_its_makers(stand: Any, clients: dict[str, Any]) -> None:
    now_ms = stand.store.now_ms()
    clients["alice"].post("/deployments", json=ENDPOINT)
    stand.cell.logs.archive("default", "deployment", "hidden", "u1", "hidden-1-aaaa", [(1_000, "o", "confidential")])
    assert clients["alice"].delete("/deployments/hidden").status_code == 200
    gone(stand, "hidden")
    query = f"/logs?start=1&end={(now_ms + 10_000_000) * 1_000_000}&deployment=hidden"
    left = ("/x/logs/hidden", "/x/logs/hidden-1-aaaa", query)
    for name, status in (("alice", 200), ("admin", 200), ("bob", 404)):
        for path in left:
            assert clients[name].get(path).status_code == status, (name, path)

    # Another takes the name: what is new is bob's to read, what is old is not.
    body = copy.deepcopy(ENDPOINT)
    body["metadata"]["visibility"] = "public"
    assert clients["bob"].post("/deployments", json=body).status_code == 201
    later = (stand.store.get("default", "deployment", "hidden").created_ms + 5) * 1_000_000
    stand.cell.logs.archive("default", "deployment", "hidden", uuid7(), "hidden-1-bbbb", [(later, "o", "public line")])
    for path in ("/x/logs/hidden", query):
        assert "public line" in clients["bob"].get(path).text
        assert "confidential" not in clients["bob"].get(path).text
        assert "confidential" in clients["admin"].get(path).text


def gone(stand: Any, name: str) -> None:
    record = stand.store.get("default", "deployment", name)
    for item in stand.store.list("release", owner_uid=record.uid):
        stand.store.delete(item)
    stand.store.delete(record)


def test_secrets_that_are_private_are_handed_only_to_their_makers_work(stand: Any, clients: dict[str, Any]) -> None:
    body = [{"name": "KEY", "value": "long-enough-value", "visibility": "private"}]
    assert clients["alice"].post("/usersecrets", json=body).status_code < 300
    wants = copy.deepcopy(ENDPOINT)
    wants["spec"]["envs"] = [{"name": "K", "value_from": {"secret_name_ref": "KEY"}}]
    assert clients["bob"].post("/deployments", json=wants).status_code == 404
    taken = copy.deepcopy(ENDPOINT)
    taken["spec"]["api_tokens"] = [{"value_from": {"token_name_ref": "KEY"}}]
    assert clients["bob"].post("/deployments", json=taken).status_code == 404
    assert clients["alice"].post("/deployments", json=taken).status_code == 201
    record = stand.store.get("default", "deployment", "hidden")
    assert stand.cell.secrets.unseal(record.spec["tokens"][0], "default/endpoint/hidden") == "long-enough-value"
    shown = clients["alice"].get("/deployments/hidden").json()["spec"]["api_tokens"]
    assert shown == [{"value_from": {"token_name_ref": "KEY"}}]
