"""Endpoints, pods and jobs by the public client's routes, as its users change them; the same work seen by ours."""

from __future__ import annotations

import copy
import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

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
        "api_tokens": [{"value": "K"}],
        "envs": [{"name": "A", "value": "b"}],
        "log": {"enable_collection": False},
        "queue_config": {"priority_class": "mid-5000"},
    },
}
POD: dict[str, Any] = {
    "metadata": {"name": "p1"},
    "spec": {
        "container": {
            "image": "python:3.11",
            "command": ["/bin/bash", "-c", "sleep 100"],
            "ports": [{"container_port": 2222, "protocol": "TCP", "expose_strategies": ["HostPortMapping"]}],
        },
        "resource_requirement": {"resource_shape": "cpu.small"},
        "is_pod": True,
    },
}
JOB: dict[str, Any] = {
    "metadata": {"id": "train", "labels": {"team": "research"}},
    "spec": {
        "resource_shape": "cpu.small",
        "container": {"image": "python:3.11", "command": ["/bin/bash", "-c", "true"]},
        "completions": 2,
        "parallelism": 2,
        "ttl_seconds_after_finished": 259200,
        "queue_config": {"priority_class": "low-1000"},
    },
}


@pytest.fixture(autouse=True)
def empty(stand: Any) -> Iterator[None]:
    """Each test begins without work."""
    yield
    for kind in ("replica", "release", "deployment", "job", "archive", "tombstone"):
        for record in stand.store.list(kind):
            stand.store.delete(record)


def named(body: dict[str, Any], name: str, **spec: Any) -> dict[str, Any]:
    made = copy.deepcopy(body)
    made["metadata"] |= {"id": name, "name": name}
    made["spec"] |= spec
    return made


def test_of_many_creations_of_one_name_one_wins(stand: Any) -> None:
    server = stand.serve()
    base = f"{server.url}/api/v2/workspaces/default"
    headers = {"authorization": f"Bearer {stand.tokens['developer']}"}
    bodies = [named(ENDPOINT, "one", envs=[{"name": "N", "value": str(number)}]) for number in range(200)]
    bodies[::2] = [named(POD, "one", envs=body["spec"]["envs"]) for body in bodies[::2]]
    answers: list[httpx.Response] = []

    def create(mine: list[dict[str, Any]]) -> None:
        with httpx.Client(headers=headers, timeout=120, trust_env=False) as http:
            answers.extend(http.post(f"{base}/deployments", json=body) for body in mine)

    threads = [threading.Thread(target=create, args=(bodies[start::25],)) for start in range(25)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Counter(answer.status_code for answer in answers) == {201: 1, 409: 199}
    refused = [answer.json() for answer in answers if answer.status_code == 409]
    assert {item["message"] for item in refused} == {"deployment one exists already"}
    (winner,) = [answer.json() for answer in answers if answer.status_code == 201]
    record = stand.store.get("default", "deployment", "one")
    assert record.generation == 1
    assert record.spec["template"]["env"] == {winner["spec"]["envs"][0]["name"]: winner["spec"]["envs"][0]["value"]}
    assert len(stand.store.list("release")) == 1
    server.stop()


def test_a_change_that_changes_nothing_says_so(stand: Any) -> None:
    client = stand.client("developer")
    assert client.post("/deployments", json=ENDPOINT).status_code == 201
    for patch in (
        {"spec": {"resource_requirement": {"min_replicas": 1}}},
        {"metadata": {"id": "e1", "visibility": "public"}, "spec": {}},
        {"spec": {"container": {"image": "python:3.11"}, "envs": [{"name": "A", "value": "b"}]}},
        {"metadata": {"id": "e1"}, "spec": {}},
    ):
        answer = client.patch("/deployments/e1", json=patch)
        assert (answer.status_code, "no valid field to update" in answer.text) == (400, True), patch
    stop = {"spec": {"resource_requirement": {"min_replicas": 0}}}
    assert [client.patch("/deployments/e1", json=stop).status_code for _ in range(2)] == [200, 200]
    answer = client.patch("/deployments/e1", json={"metadata": {"name": "e2"}, "spec": {"envs": []}})
    assert (answer.status_code, "names do not change" in answer.text) == (400, True)
    for wrong in ({"min_replicas": 3, "max_replicas": 2}, {"min_replicas": 2000}, {"max_replicas": -1}):
        answer = client.patch("/deployments/e1", json={"spec": {"resource_requirement": wrong}})
        assert answer.status_code == 400, answer.text
        assert "_replicas" in answer.json()["message"]


def test_stopped_and_brought_back(stand: Any) -> None:
    client = stand.client("developer")
    client.post("/deployments", json=named(ENDPOINT, "e1", resource_requirement={"min_replicas": 2, "max_replicas": 4}))
    client.patch("/deployments/e1", json={"spec": {"resource_requirement": {"min_replicas": 0}}})
    stand.act("deployment", "e1", state="stopped", wanted=0)
    shown = client.get("/deployments/e1").json()
    assert (shown["status"]["state"], shown["status"]["phase"]) == ("Not Ready", "Stopped")
    size = shown["spec"]["resource_requirement"]
    assert (size["min_replicas"], size["max_replicas"]) == (0, 4)
    assert shown["spec"]["auto_scaler"]["scale_down"]["no_traffic_timeout"] == 3600
    back = client.put("/deployments/e1/restart").json()
    assert back["spec"]["resource_requirement"]["min_replicas"] == 1
    record = stand.store.get("default", "deployment", "e1")
    assert record.spec["replicas"] == {"min": 1, "max": 4}
    # Ours does the same thing.
    assert stand.client().post("/x/deployments/e1/stop").json()["spec"]["replicas"] == {"min": 0, "max": 4}
    assert stand.client().post("/x/deployments/e1/restart").json()["spec"]["replicas"] == {"min": 1, "max": 4}


def test_what_is_only_kept_is_said_once(stand: Any) -> None:
    client = stand.client("developer")
    client.post("/deployments", json=ENDPOINT)
    client.patch("/deployments/e1", json={"spec": {"envs": []}})
    job = client.post("/jobs", json=named(JOB, "train", segment_config={"count_per_segment": 2})).json()["metadata"][
        "id"
    ]
    for path, words in (
        ("/deployments/e1", "log.enable_collection"),
        (f"/jobs/{job}", "segment_config.count_per_segment"),
    ):
        (event,) = [item for item in client.get(f"{path}/events").json() if item["reason"] == "NotEnforced"]
        assert (event["type"], event["count"]) == ("Normal", 1)
        assert event["message"].endswith(": " + words)
    client.patch("/deployments/e1", json={"spec": {"log": None, "metrics": {"disable_pulling_from_replica": True}}})
    events = [item for item in client.get("/deployments/e1/events").json() if item["reason"] == "NotEnforced"]
    assert events[-1]["message"].endswith(": metrics.disable_pulling_from_replica")
    shown = client.get("/deployments/e1").json()["spec"]
    assert "log" not in shown
    assert shown["metrics"] == {"disable_pulling_from_replica": True}


def test_a_dry_run_records_nothing(stand: Any) -> None:
    client = stand.client("developer")
    would = client.post("/deployments?dryrun=true", json=ENDPOINT)
    assert would.status_code == 201
    assert would.json()["spec"]["resource_requirement"]["min_replicas"] == 1
    assert client.post("/deployments?dryrun=true", json=named(ENDPOINT, "Bad_Name")).status_code == 400
    assert stand.store.list("deployment") == []
    client.post("/deployments", json=ENDPOINT)
    before = stand.store.list("deployment")
    patch = {"metadata": {"labels": {"a": "b"}}, "spec": {"resource_requirement": {"resource_shape": "cpu.tiny"}}}
    would = client.patch("/deployments/e1?dryrun=true", json=patch)
    assert would.json()["spec"]["resource_requirement"]["resource_shape"] == "cpu.tiny"
    assert would.json()["metadata"]["labels"] == {"a": "b"}
    missing = {"spec": {"envs": [{"name": "A", "value_from": {"secret_name_ref": "none"}}]}}
    assert client.patch("/deployments/e1?dryrun=true", json=missing).status_code == 404
    assert client.post("/deployments?dryrun=true", json=ENDPOINT).status_code == 409
    assert stand.store.list("deployment") == before
    assert len(stand.store.list("release")) == 1


def test_a_pod_from_creation_to_end(stand: Any) -> None:
    client = stand.client("developer")
    made = client.post("/deployments", json=POD)
    assert made.status_code == 201, made.text
    assert made.json()["metadata"]["id"] == "p1"
    assert client.post("/deployments", json=POD).status_code == 409
    assert client.post("/deployments", json=named(ENDPOINT, "p1")).status_code == 409
    record = stand.store.get("default", "deployment", "p1")
    assert (record.spec["pod"], record.spec["replicas"]) == (True, {"min": 1, "max": 1})
    assert client.get("/deployments/p1/replicas").json() == []

    maps = [{"number": 2222, "host_port": 40_123, "protocol": "TCP", "name": ""}]
    stand.replica(record, "node-2", "exited")
    live = stand.replica(record, "node-2", address="10.0.0.7", ports=maps, isolation="uid", image="advisory")
    stand.act("deployment", "p1", state="ready", ready=1, wanted=1)
    client.post("/deployments", json=ENDPOINT)
    by_name = {item["metadata"]["id"]: item for item in client.get("/deployments").json()}
    pod = by_name["p1"]
    assert pod == client.get("/deployments/p1").json()
    assert (pod["spec"]["is_pod"], by_name["e1"]["spec"].get("is_pod")) == (True, None)
    assert pod["status"]["container_port_status"] == [{"container_port": 2222, "protocol": "TCP", "host_port": 40_123}]
    assert pod["status"]["public_ip"] == "10.0.0.7"
    # What `lep pod list` and `lep pod ssh` go by: exactly one replica, with an address.
    (replica,) = client.get("/deployments/p1/replicas").json()
    assert (replica["id"], replica["status"]["public_ip"]) == (live.name, "10.0.0.7")
    assert (replica["status"]["node"]["name"], replica["status"]["isolation"]) == ("node-2", "uid")

    for patch in ({"is_pod": False}, {"resource_requirement": {"min_replicas": 2}}, {"api_tokens": [{"value": "K"}]}):
        assert client.patch("/deployments/p1", json={"spec": patch}).status_code == 400, patch
    assert client.patch("/deployments/e1", json={"spec": {"is_pod": True}}).status_code == 400
    form = {"name": "p1", "template": {"command": ["x"]}}
    assert client.put("/x/deployments/p1", json=form).status_code == 409
    stopped = client.patch("/deployments/p1", json={"spec": {"resource_requirement": {"min_replicas": 0}}})
    assert stopped.status_code == 200, stopped.text
    assert stand.store.get("default", "deployment", "p1").spec["replicas"] == {"min": 0, "max": 1}
    view = stand.client().get("/x/deployments/p1").json()
    assert (view["kind"], view["url"], view["image"]) == ("pod", "", "advisory")
    assert client.delete("/deployments/p1").json()["status"]["state"] == "Deleting"


def test_a_name_that_is_being_given_up_is_waited_for(stand: Any) -> None:
    client = stand.client("developer")
    client.post("/deployments", json=ENDPOINT)
    assert client.delete("/deployments/e1").status_code == 200

    def ends() -> None:
        for kind in ("release", "deployment"):
            for record in stand.store.list(kind):
                stand.store.delete(record)

    # `lep endpoint create --rerun` creates at once; the loops take a moment.
    later = threading.Timer(0.5, ends)
    later.start()
    again = client.post("/deployments", json=ENDPOINT)
    later.join()
    assert again.status_code == 201, again.text
    assert stand.store.get("default", "deployment", "e1").generation == 1


def test_events_of_a_predecessor_are_not_its_successors(stand: Any) -> None:
    client = stand.client("developer")
    for _ in range(2):
        client.post("/deployments", json=ENDPOINT)
        record = stand.store.get("default", "deployment", "e1")
        stand.cell.events.add("default", "deployment", "e1", "Normal", "Mine", record.uid, record.uid)
        mine = [item["message"] for item in client.get("/deployments/e1/events").json() if item["reason"] == "Mine"]
        assert mine == [record.uid]
        for kind in ("release", "deployment"):
            for item in stand.store.list(kind):
                stand.store.delete(item)


def archive(stand: Any, name: str, **status: Any) -> None:
    """What the loops write in the transaction that ends a removed job."""
    record = stand.store.get("default", "job", name)
    kept = [{"name": f"{name}-0-aaaa", "uid": "r", "spec": {"node": "node-1"}, "status": {"started_ms": 7}}]
    spec = {"kind": "job", "spec": record.spec, "uid": record.uid, "created_ms": record.created_ms, "updated_ms": 5}
    stand.store.create("default", "archive", name, {**spec, "replicas": kept}, status={"state": "succeeded", **status})
    stand.store.delete(record)


def test_removed_jobs_are_found_in_the_archive_modes(stand: Any) -> None:
    client = stand.client("developer")
    ids = [client.post("/jobs", json=JOB).json()["metadata"]["id"] for _ in range(5)]
    for name in (ids[3], ids[1]):  # not in the order of their making
        archive(stand, name, ended_ms=9)

    def found(**query: Any) -> list[str]:
        return [item["metadata"]["id"] for item in client.get("/jobs", params=query).json()["jobs"]]

    assert found() == [ids[4], ids[2], ids[0]]
    assert found(job_query_mode="archive_only") == [ids[3], ids[1]]
    assert found(job_query_mode="alive_and_archive") == ids[::-1]
    pages = [found(job_query_mode="alive_and_archive", page=page, page_size=2) for page in (1, 2, 3, 4)]
    assert pages == [ids[:2:-1], ids[2:0:-1], [ids[0]], []]
    assert found(job_query_mode="alive_and_archive", q=ids[1]) == [ids[1]]
    assert found(job_query_mode="alive_and_archive", status="arch") == [ids[3], ids[1]]
    assert found(job_query_mode="archive_only", query="team=research") == [ids[3], ids[1]]
    assert found(job_query_mode="archive_only", created_by="DEV") == [ids[3], ids[1]]
    assert client.get("/jobs?job_query_mode=none").status_code == 400

    gone = ids[3]
    assert client.get(f"/jobs/{gone}").status_code == 404
    assert client.get(f"/jobs/{gone}?job_query_mode=alive_only").status_code == 404
    shown = client.get(f"/jobs/{gone}?job_query_mode=alive_and_archive").json()
    assert (shown["status"]["state"], shown["status"]["job_history"][-1]["state"]) == ("Archived", "Completed")
    assert shown["metadata"]["labels"] == {"team": "research"}
    assert [item["id"] for item in client.get(f"/jobs/{gone}/replicas").json()] == [f"{gone}-0-aaaa"]
    assert client.get(f"/jobs/{gone}/events").status_code == 200
    assert client.patch(f"/jobs/{gone}", json={"spec": {"stopped": True}}).status_code == 404
    assert client.get(f"/jobs/{ids[0]}?job_query_mode=archive_only").status_code == 404

    assert client.delete(f"/jobs/{gone}").status_code == 404
    assert client.delete(f"/jobs/{gone}?job_query_mode=archive_only").status_code == 200
    assert found(job_query_mode="archive_only") == [ids[1]]
    assert client.delete(f"/jobs/{ids[0]}?job_query_mode=alive_and_archive").status_code == 200
    assert client.get(f"/jobs/{ids[0]}").json()["status"]["state"] == "Deleting"


def test_pages_hold_exactly_what_was_asked_for(stand: Any) -> None:
    client = stand.client("developer")
    ids = [stand.run(f"job-{number}").name for number in range(7)]
    for number in (0, 3):
        stand.act("job", ids[number], state="failed")
    seen = []
    for page in range(1, 10):
        body = client.get("/jobs", params={"page": page, "page_size": 3}).json()
        assert body["total"] == 7
        assert len(body["jobs"]) == (3 if page <= 2 else 1 if page == 3 else 0)
        seen += [item["metadata"]["id"] for item in body["jobs"]]
    assert seen == ids[::-1]
    body = client.get("/jobs", params={"status": ["fail"], "page": 2, "page_size": 1}).json()
    assert ([item["metadata"]["id"] for item in body["jobs"]], body["total"]) == ([ids[0]], 2)
    for query in ("page=0", "page=-1", "page=x", "page_size=0", "page_size=100000", "query=a>b", "query=" + "a" * 5000):
        answer = client.get(f"/jobs?{query}")
        assert answer.status_code == 400, query
        assert answer.json()["hint"]
    assert client.get("/jobs?page=999999999").json()["jobs"] == []
    assert client.get("/jobs?node_groups=h100").json() == {"jobs": [], "total": 0}
    assert client.get("/jobs?node_groups=LOCAL&created_by=own").json()["total"] == 7


def test_a_job_is_changed_where_that_makes_sense(stand: Any) -> None:
    client = stand.client("developer")
    late = {"time_schedule": {"start_at": 4_000_000_000}}
    job = client.post("/jobs", json=named(JOB, "late", **late)).json()["metadata"]["id"]
    path = f"/jobs/{job}"
    stand.act("job", job, state="scheduled")
    assert client.get(path).json()["status"]["state"] == "Awaiting"
    patch = {
        "metadata": {"id": job, "name": "late", "labels": {"stage": "test"}},
        "spec": {"max_failure_retry": 3, "time_schedule": {"start_at": 4_000_000_060}, "queue_config": None},
    }
    changed = client.patch(path, json=patch).json()
    assert changed["spec"]["max_failure_retry"] == 3
    assert changed["metadata"]["labels"] == {"team": "research", "stage": "test"}
    assert "queue_config" not in changed["spec"]
    record = stand.store.get("default", "job", job)
    assert record.spec["start_at_ms"] == 4_000_000_060_000
    same = client.patch(path, json={"spec": {"max_failure_retry": 3}})
    assert (same.status_code, "no valid field to update" in same.text) == (400, True)
    for fixed in (
        {"container": {"command": ["other"]}},
        {"envs": [{"name": "A", "value": "b"}]},
        {"completions": 3, "parallelism": 3},
        {"resource_shape": "cpu.medium"},
    ):
        answer = client.patch(path, json={"spec": fixed})
        assert (answer.status_code, "does not change" in answer.text) == (400, True), fixed
    stand.act("job", job, state="running")
    moved = client.patch(path, json={"spec": {"time_schedule": None}})
    assert moved.status_code == 409
    for _ in range(2):
        assert client.patch(path, json={"spec": {"stopped": True}}).status_code == 200
    assert client.patch(path, json={"spec": {"stopped": False}}).json()["spec"]["stopped"] is False
    stand.act("job", job, state="succeeded")
    assert client.patch(path, json={"spec": {"stopped": False}}).status_code == 409
    assert client.patch(path, json={"metadata": {"name": "other"}, "spec": {}}).status_code == 400


def test_a_clone_is_the_same_job_again(stand: Any) -> None:
    client = stand.client("developer")
    shown = client.post("/jobs", json=JOB).json()
    name = f"{shown['metadata']['name'][:26]}-clone"
    spec = {key: value for key, value in shown["spec"].items() if value is not None}
    again = client.post("/jobs", json={"metadata": {"id": name}, "spec": spec})
    assert again.status_code == 201, again.text
    assert again.json()["spec"] == shown["spec"]
    assert again.json()["metadata"]["id"].startswith("train-clone-")


@pytest.mark.parametrize("name", ["a%2f..%2fb", "%00", "x" * 300, "%2e%2e", "a b", "A", "ü"])
def test_tricks_in_paths_find_nothing(stand: Any, name: str) -> None:
    client = stand.client("developer")
    for path in (f"/deployments/{name}", f"/jobs/{name}", f"/x/jobs/{name}", f"/x/deployments/{name}"):
        answer = client.get(path)
        assert answer.status_code in (400, 404, 405), (path, answer.text)
        assert client.delete(path).status_code in (400, 404, 405)


def test_bodies_over_every_bound_are_refused(stand: Any) -> None:
    client = stand.client("developer")
    many = [{"name": f"A{number}", "value": "x" * 200} for number in range(1000)]
    for spec in (
        {"envs": many},
        {"mounts": [{"from": "node-local", "mount_path": f"/mnt/{number}"} for number in range(1000)]},
        {"container": {"command": ["x"] * 2000}},
        {"container": {"command": ["x"], "ports": [{"container_port": port} for port in range(1, 1000)]}},
        {"container": {"image": "x" * 1000, "command": ["x"]}},
        {"image_pull_secrets": ["a"] * 100},
    ):
        for path, start in (("/deployments", ENDPOINT), ("/jobs", JOB)):
            answer = client.post(path, json=named(start, "big", **spec))
            assert answer.status_code == 400, (path, spec.keys(), answer.text)
            assert answer.json()["hint"]
    labels = {f"k{number}": "v" for number in range(100)}
    assert client.post("/jobs", json={**JOB, "metadata": {"id": "big", "labels": labels}}).status_code == 400
    assert (
        client.post("/deployments", json=named(ENDPOINT, "big", api_tokens=[{"value": "K"}] * 100)).status_code == 400
    )
    too_many = named(ENDPOINT, "big", auth_config={"ip_allowlist": ["10.0.0.0/8"] * 300})
    assert client.post("/deployments", json=too_many).status_code == 400
    wrong = named(ENDPOINT, "big", auth_config={"ip_allowlist": ["10.0.0.0/99"]})
    answer = client.post("/deployments", json=wrong)
    assert (answer.status_code, "10.0.0.0/99" in answer.text) == (400, True)
    assert stand.store.list("deployment") == []
    assert stand.store.list("job") == []


def test_the_nodes_that_are_asked_for_must_be_there(stand: Any) -> None:
    client = stand.client("developer")
    stand.node("node-1", state="ready", capacity={"cpu_milli": 1000, "memory_mib": 1024})
    place = {"allowed_dedicated_node_groups": ["local-0001"], "allowed_nodes_in_node_group": ["node-1"]}
    size = {"resource_shape": "cpu.small"}
    there = client.post("/deployments", json=named(ENDPOINT, "e1", resource_requirement={**size, "affinity": place}))
    assert there.status_code == 201, there.text
    assert there.json()["spec"]["resource_requirement"]["affinity"] == place
    assert stand.store.get("default", "deployment", "e1").spec["template"]["nodes"] == ["node-1"]
    for wrong, word in (
        ({**place, "allowed_nodes_in_node_group": ["node-9"]}, "node-9"),
        ({"allowed_dedicated_node_groups": ["h100-0001"]}, "h100-0001"),
    ):
        answer = client.post("/jobs", json=named(JOB, "j1", affinity=wrong))
        assert (answer.status_code, word in answer.json()["message"]) == (404, True)
    stand.store.delete(stand.store.get("system", "node", "node-1"))
