"""Jobs: unique names under a title, stopping, what has ended is listed only when asked for."""

from __future__ import annotations

from typing import Any

JOB = {"name": "count", "template": {"command": ["true"]}}


def test_a_job_gets_a_name_that_no_other_has(stand: Any) -> None:
    client = stand.client("developer")
    first, second = (client.post("/x/jobs", json={**JOB, "workers": 3, "retries": 2}) for _ in range(2))
    assert (first.status_code, second.status_code) == (201, 201)
    made = first.json()
    assert made["name"] != second.json()["name"]
    assert made["name"].startswith("count-")
    assert (made["title"], made["state"], made["workers"], made["retries"]) == ("count", "queued", 3, 2)
    assert client.get(f"/x/jobs/{made['name']}").json() == made
    record = stand.store.get("default", "job", made["name"])
    assert (record.spec["title"], record.spec["stopped"]) == ("count", False)


def test_long_titles_leave_room_for_the_ending(stand: Any) -> None:
    name = stand.run("a" * 63).name
    assert len(name) <= 63
    assert name.startswith("a" * 36 + "-")


def test_wrong_jobs_are_answered_with_the_field(stand: Any) -> None:
    client = stand.client()
    for form, word in (
        ({}, "template"),
        ({"template": {}}, "neither a template nor a model"),
        ({**JOB, "worker": 2}, "worker: unknown field"),
        ({**JOB, "workers": 0}, "workers"),
        ({**JOB, "template": {"command": ["x"], "secrets": {"A": "none"}}}, "there is no secret 'none'"),
        ({**JOB, "template": {"image": "busybox"}}, "run no images"),
        ({**JOB, "start_at_ms": 10**17}, "start_at_ms"),
        ({**JOB, "job_retries": -1}, "job_retries"),
        ({**JOB, "template": {"command": ["x"], "nodes": ["node-99"]}}, "no node 'node-99'"),
        ({**JOB, "template": "true"}, "template"),
    ):
        response = client.post("/x/jobs", json=form)
        assert response.status_code in (400, 404, 501), response.text
        assert word in response.json()["message"]
        assert response.json()["hint"]
    assert stand.store.list("job") == []


def test_what_has_ended_is_listed_when_asked_for(stand: Any) -> None:
    running, done = stand.run("running").name, stand.run("done").name
    stand.act("job", running, state="running")
    stand.act("job", done, state="succeeded", succeeded=1, ended_ms=5)
    client = stand.client()
    assert [item["name"] for item in client.get("/x/jobs").json()] == [running]
    assert {item["name"] for item in client.get("/x/jobs?all=true").json()} == {running, done}


def test_a_job_is_stopped_and_started_but_not_after_its_end(stand: Any) -> None:
    name = stand.run().name
    client = stand.client()
    assert client.patch(f"/x/jobs/{name}", json={"stopped": True}).json()["stopped"] is True
    assert client.patch(f"/x/jobs/{name}", json={"stopped": False}).json()["stopped"] is False
    assert client.patch(f"/x/jobs/{name}", json={"stop": True}).json()["hint"] == "did you mean 'stopped'?"
    stand.act("job", name, state="failed")
    again = client.patch(f"/x/jobs/{name}", json={"stopped": False})
    assert again.status_code == 409
    assert "has ended" in again.json()["message"]
    assert client.delete(f"/x/jobs/{name}").json()["state"] == "deleting"
    assert client.patch(f"/x/jobs/{name}", json={"stopped": True}).status_code == 409


def test_the_replicas_of_a_job_are_listed(stand: Any) -> None:
    job = stand.run()
    made = stand.replica(job, "node-2", phase="exited", reason="exit code 0")
    (shown,) = stand.client().get(f"/x/jobs/{job.name}/replicas").json()
    assert (shown["name"], shown["owner"], shown["node"], shown["phase"]) == (made.name, job.name, "node-2", "exited")
    assert stand.client().get("/x/jobs/none/replicas").status_code == 404
