"""The public client's paths: an endpoint and a job from their creation to their end, as `lep` asks for them."""

from __future__ import annotations

import copy
from typing import Any

ENDPOINT: dict[str, Any] = {
    "metadata": {"id": "e1", "name": "e1"},
    "spec": {
        "container": {
            "image": "python:3.11",
            "ports": [{"container_port": 18560}],
            "command": ["/bin/bash", "-c", "sleep 100"],
        },
        "resource_requirement": {"resource_shape": "cpu.small", "min_replicas": 1},
        "auto_scaler": {"scale_down": {"no_traffic_timeout": 3600}},
        "api_tokens": [{"value": "literal-key-1"}],
        "envs": [{"name": "A", "value": "b"}],
    },
}
JOB: dict[str, Any] = {
    "metadata": {"id": "j1"},
    "spec": {
        "resource_shape": "cpu.small",
        "container": {"image": "python:3.11", "command": ["/bin/bash", "-c", "true"]},
        "completions": 2,
        "parallelism": 2,
        "ttl_seconds_after_finished": 259200,
    },
}


def test_an_endpoint_from_creation_to_end(stand: Any) -> None:
    client = stand.client("developer")
    made = client.post("/deployments", json=ENDPOINT)
    assert made.status_code == 201, made.text
    assert client.post("/deployments", json=ENDPOINT).status_code == 409
    (listed,) = client.get("/deployments").json()
    assert listed == client.get("/deployments/e1").json()
    assert listed["spec"]["api_tokens"] == [{"value": "***"}]
    assert listed["spec"]["resource_requirement"]["resource_shape"] == "cpu.small"
    assert "literal-key-1" not in client.get("/deployments").text
    assert listed["spec"]["container"]["image"] == "python:3.11"
    assert listed["status"]["image"] == "advisory"
    assert (listed["metadata"]["owner"], listed["metadata"]["visibility"]) == ("developer", "public")

    scale = {"metadata": {"id": "e1"}, "spec": {"resource_requirement": {"min_replicas": 2, "max_replicas": 2}}}
    dry = client.patch("/deployments/e1?dryrun=true", json=scale).json()
    assert dry["spec"]["resource_requirement"]["min_replicas"] == 2
    assert client.get("/deployments/e1").json()["spec"]["resource_requirement"]["min_replicas"] == 1
    scaled = client.patch("/deployments/e1", json=scale).json()
    assert scaled["status"]["autoscaler_status"]["desired_replicas"] == 2
    record = stand.store.get("default", "deployment", "e1")
    assert (record.spec["release"], record.spec["replicas"]) == (1, {"min": 2, "max": 2})
    assert stand.cell.secrets.unseal(record.spec["tokens"][0], "default/endpoint/e1") == "literal-key-1"
    nothing = client.patch("/deployments/e1", json={"spec": {}})
    assert (nothing.status_code, "no valid field to update" in nothing.text) == (400, True)
    assert client.patch("/deployments/e2", json=scale).status_code == 404

    client.patch("/deployments/e1", json={"spec": {"resource_requirement": {"min_replicas": 0}}})
    assert stand.store.get("default", "deployment", "e1").spec["replicas"] == {"min": 0, "max": 2}
    opened = {"spec": {"allow_unauthenticated_access": True, "api_tokens": []}}
    client.patch("/deployments/e1", json=opened)
    assert stand.store.get("default", "deployment", "e1").spec["tokens"] is None
    assert client.put("/deployments/e1/restart").status_code == 200
    assert stand.store.get("default", "deployment", "e1").spec["release"] == 2

    replica = stand.replica(stand.store.get("default", "deployment", "e1"), "node-1", reason="fine")
    assert [item["id"] for item in client.get("/deployments/e1/replicas").json()] == [replica.name]
    assert client.get("/deployments/e1/readiness").json()[replica.name][0]["reason"] == "Ready"
    assert client.get("/deployments/e1/termination").json() == {}
    assert client.delete("/deployments/e1").status_code == 200
    assert client.get("/deployments/e1").json()["status"]["state"] == "Deleting"


def test_a_job_from_creation_to_end(stand: Any) -> None:
    client = stand.client("developer")
    made = client.post("/jobs", json=JOB)
    assert made.status_code == 201, made.text
    identity = made.json()["metadata"]["id"]
    assert identity.startswith("j1-")
    assert made.json()["metadata"]["name"] == "j1"
    assert made.json()["status"]["state"] == "Queueing"
    assert client.get(f"/jobs/{identity}?job_query_mode=alive_only").json()["spec"]["parallelism"] == 2
    stand.act("job", identity, state="running", active=2, ready=1)
    shown = client.get(f"/jobs/{identity}").json()
    assert (shown["status"]["state"], shown["status"]["active"], shown["status"]["ready"]) == ("Running", 2, 1)
    assert client.patch(f"/jobs/{identity}", json={"spec": {"stopped": True}}).status_code == 200
    assert stand.store.get("default", "job", identity).spec["stopped"] is True
    assert client.patch(f"/jobs/{identity}", json={"spec": {"envs": []}}).status_code == 400
    replica = stand.replica(stand.store.get("default", "job", identity))
    assert [item["metadata"]["id"] for item in client.get(f"/jobs/{identity}/replicas").json()] == [replica.name]
    assert client.get(f"/jobs/{identity}/events").json() == []
    assert client.delete(f"/jobs/{identity}").status_code == 200
    assert client.get("/jobs/none").status_code == 404


def test_pages_of_jobs_end(stand: Any) -> None:
    client = stand.client()
    names = [client.post("/jobs", json=JOB).json()["metadata"]["id"] for _ in range(5)]
    seen: list[str] = []
    for page in range(1, 10):
        body = client.get("/jobs", params={"page": page, "page_size": 2}).json()
        assert body["total"] == 5
        if not body["jobs"]:
            break
        seen += [item["metadata"]["id"] for item in body["jobs"]]
    assert page == 4
    assert seen == list(reversed(names))
    assert len(client.get("/jobs", params={"q": names[2]}).json()["jobs"]) == 1
    assert client.get("/jobs?status=Completed").json()["jobs"] == []
    assert len(client.get("/jobs?status=que&status=run").json()["jobs"]) == 5


def test_what_no_workload_here_is_given_is_refused_by_name(stand: Any) -> None:
    client = stand.client()
    for field, value in (
        ("user_security_context", {"privileged": True}),
        ("storage_attachments", [{"data_source_name": "a", "attachments": [{"mode": "awsProfile"}]}]),
    ):
        for path, start in (("/deployments", ENDPOINT), ("/jobs", JOB)):
            body = copy.deepcopy(start)
            body["spec"][field] = value
            response = client.post(path, json=body)
            assert response.status_code == 400
            assert f"spec.{field}" in response.json()["message"]
            assert response.json()["hint"]
    for body in ({}, {"metadata": {"id": "Bad Name"}}, [], {"metadata": {"id": "e1"}, "spec": []}):
        assert client.post("/deployments", json=body).status_code == 400
        assert client.post("/jobs", json=body).status_code == 400
    assert stand.store.list("deployment") == []
    assert stand.store.list("job") == []
