"""How work is to wait and where it may stand: what is recorded, shown back, refused; marks of nodes; shares."""

from __future__ import annotations

from typing import Any

import pytest

RUN: dict[str, Any] = {"command": ["true"]}
JOB: dict[str, Any] = {
    "metadata": {"id": "train"},
    "spec": {"resource_shape": "cpu.small", "container": {"command": ["true"]}},
}


def lep_job(**spec: Any) -> dict[str, Any]:
    return {**JOB, "spec": {**JOB["spec"], **spec}}


def test_what_the_public_client_asks_for_is_recorded_and_shown_back(stand: Any) -> None:
    client = stand.client("developer")
    asked = {"priority_class": "high-7000", "can_preempt": True, "can_be_preempted": False}
    made = client.post("/jobs", json=lep_job(queue_config=asked)).json()
    assert made["spec"]["queue_config"] == asked
    record = stand.store.get("default", "job", made["metadata"]["id"])
    assert (record.spec["priority"], record.spec["can_preempt"], record.spec["preemptible"]) == (7000, True, False)
    assert record.spec["advisory"] == {}
    changed = client.patch(
        f"/jobs/{record.name}", json={"spec": {"queue_config": {"priority_class": "low-1000"}}}
    ).json()
    assert changed["spec"]["queue_config"] == {**asked, "priority_class": "low-1000"}
    wrong = client.post("/jobs", json=lep_job(queue_config={"priority_class": "urgent"}))
    assert wrong.status_code == 400
    assert "high-9000" in wrong.json()["hint"]


def test_ours_takes_numbers_and_words_and_says_what_is_wrong(stand: Any) -> None:
    client = stand.client("developer")
    form = {"name": "count", "priority": "mid", "preemptible": True, "checkpoint": True, "template": RUN}
    made = client.post("/x/jobs", json=form).json()
    assert (made["priority"], made["preemptible"], made["can_preempt"], made["checkpoint"]) == (4000, True, False, True)
    assert client.post("/x/jobs", json={"name": "plain", "template": RUN}).json()["priority"] == 4000
    for field, value, words in (
        ("priority", "soon", "which is no priority"),
        ("priority", 10_000, "9999"),
        ("can_preempt", "maybe", "can_preempt"),
    ):
        refused = client.post("/x/jobs", json={"name": "count", "template": RUN, field: value})
        assert refused.status_code == 400
        assert words in refused.text
        assert refused.json()["hint"]
    for field, value in (
        ("tolerations", ["maintenance"]), ("node_labels", {"zone": "a b"}), ("avoid", ["Not A Name"]), ("near", [1]),
    ):  # fmt: skip
        refused = client.post("/x/jobs", json={"name": "count", "template": {**RUN, field: value}})
        assert (refused.status_code, bool(refused.json()["hint"])) == (400, True), refused.text


def test_a_plan_says_what_changes_of_it(stand: Any) -> None:
    client = stand.client("developer")
    form = {"name": "web", "template": RUN}
    client.put("/x/deployments/web", json=form)
    marked = {**form, "priority": 8000, "preemptible": True, "template": {**RUN, "tolerations": ["a=b"]}}
    lines = client.post("/x/plan", json=marked).json()["changes"]
    assert "priority none -> 8000" in lines
    assert "preemptible none -> True" in lines
    assert any(line.startswith("tolerations none -> ") for line in lines)
    assert client.put("/x/deployments/web", json={**form, "priority": 8000}).json()["release"] == 1  # no new release


def test_a_priority_above_what_the_workspace_is_granted_is_refused(stand: Any) -> None:
    owner, developer = stand.client("owner"), stand.client("developer")
    granted = owner.patch("/x/workspaces/default", json={"priority_most": 6000, "weight": 2})
    assert (granted.json()["priority_most"], granted.json()["weight"]) == (6000, 2.0)
    assert granted.json()["first"] is True
    form = {"name": "count", "priority": 7000, "template": RUN}
    refused = developer.post("/x/jobs", json=form)
    assert (refused.status_code, refused.json()["code"]) == (403, "Forbidden")
    assert "ask for 6000 or less" in refused.json()["hint"]
    assert developer.put("/x/deployments/count", json=form).status_code == 403
    assert developer.post("/jobs", json=lep_job(queue_config={"priority_class": "high-9000"})).status_code == 403
    made = developer.post("/jobs", json=lep_job(queue_config={"priority_class": "mid-6000"})).json()
    raised = {"spec": {"queue_config": {"priority_class": "high-9000"}}}
    assert developer.patch(f"/jobs/{made['metadata']['id']}", json=raised).status_code == 403
    for body in ({}, {"weight": 0}, {"weight": 1e9}, {"priority_most": 10_000}, {"weight": "much"}):
        assert owner.patch("/x/workspaces/default", json=body).status_code == 400
    assert owner.patch("/x/workspaces/none", json={"weight": 1}).status_code == 404
    assert stand.client("admin").patch("/x/workspaces/default", json={"weight": 1}).status_code == 403
    assert [item["name"] for item in owner.get("/x/workspaces").json()] == ["default", "other"]


def test_who_asks_for_no_priority_has_no_more_than_the_workspace_is_granted(stand: Any) -> None:
    owner, developer = stand.client("owner"), stand.client("developer")
    before = developer.post("/jobs", json=lep_job()).json()["metadata"]["id"]
    owner.patch("/x/workspaces/default", json={"priority_most": 1000})
    job = developer.post("/x/jobs", json={"name": "count", "template": RUN, "can_preempt": True}).json()
    assert job["priority"] == 1000
    for _ in range(2):  # asked for again it is the same
        assert developer.put("/x/deployments/web", json={"name": "web", "template": RUN}).json()["priority"] == 1000
    queue = developer.post("/jobs", json=lep_job()).json()["spec"]["queue_config"]
    assert queue["priority_class"] == "low-1000"
    developer.patch(f"/jobs/{before}", json={"spec": {"max_failure_retry": 3}})
    assert developer.get(f"/x/jobs/{before}").json()["priority"] == 1000


def test_labels_and_taints_of_a_node_come_and_go(stand: Any) -> None:
    stand.node("node-1", state="ready")
    admin = stand.client("admin")
    shown = admin.patch("/x/nodes/node-1", json={"labels": {"zone": "a", "disk": "ssd"}, "taint": ["gpu=yes", "x="]})
    assert (shown.json()["labels"], shown.json()["taints"]) == ({"zone": "a", "disk": "ssd"}, ["gpu=yes", "x="])
    shown = admin.patch("/x/nodes/node-1", json={"labels": {"disk": None, "zone": "b"}, "untaint": ["x=", "y=z"]})
    assert (shown.json()["labels"], shown.json()["taints"]) == ({"zone": "b"}, ["gpu=yes"])
    assert admin.post("/x/nodes/node-1/drain").json()["taints"] == ["gpu=yes"]
    for body in (
        {},
        {"taint": ["gpu"]},
        {"labels": {"a b": "c"}},
        {"taint": "a=b"},
        {"taint": [f"k{n}=" for n in range(99)]},
    ):
        refused = admin.patch("/x/nodes/node-1", json=body)
        assert (refused.status_code, bool(refused.json()["hint"])) == (400, True)
    assert admin.patch("/x/nodes/node-2", json={"taint": ["a=b"]}).status_code == 404
    assert stand.client("developer").patch("/x/nodes/node-1", json={"taint": ["a=b"]}).status_code == 403
    assert stand.cell.audit.list("default")[0].action == "drain"
    assert "mark" in [entry.action for entry in stand.cell.audit.list("default")]


@pytest.mark.parametrize("users", [[], ["developer"]])
def test_only_who_a_reservation_is_for_may_name_it(stand: Any, users: list[str]) -> None:
    owner, developer = stand.client("owner"), stand.client("developer")
    owner.post("/x/reservations", json={"metadata": {"name": "weekly"}, "spec": {"users": users}})
    owner.post("/x/reservations", json={"metadata": {"name": "theirs"}, "workspace": "other", "spec": {}})
    stand.node("node-1", state="ready")
    for name, node in (("weekly", "node-1"), ("theirs", "node-2")):
        record = stand.store.get("system", "reservation", name)
        stand.store.update(record, status={"nodes": [node], "reason": ""})
    asked = {"reservation_id": "weekly", "allow_burst_to_other_reservations": True}
    made = developer.post("/jobs", json=lep_job(reservation_config=asked)).json()
    assert made["spec"]["reservation_config"] == asked
    template = stand.store.get("default", "job", made["metadata"]["id"]).spec["template"]
    assert (template["reservation"], template["burst"]) == ("weekly", True)
    for name in ("theirs", "none"):
        form = {"name": "count", "template": {**RUN, "reservation": name}}
        refused = developer.post("/x/jobs", json=form)
        assert (refused.status_code, refused.json()["code"]) == (404, "NotFound")
    other = owner.post("/x/jobs", json={"name": "count", "template": {**RUN, "reservation": "weekly"}})
    assert other.status_code == (403 if users else 201)
    (shown,) = [item for item in owner.get("/x/reservations").json() if item["metadata"]["name"] == "weekly"]
    assert shown["status"] == {"phase": "Reserving", "reserved_count": 1, "reserved_nodes": ["node-1"]}
    assert owner.get("/x/nodes").json()[0]["reservation"] == "weekly"
    foreign = stand.client(token=stand.foreign, ws="other").get("/x/nodes").json()
    assert foreign[0]["reservation"] == "of another workspace"


def test_marks_make_work_wait_and_are_no_reason_to_refuse_it_but_labels_that_no_node_has_are(stand: Any) -> None:
    from dataclasses import replace

    stand.nodes = [replace(node, taints=frozenset({"down=yes"}), reservation="weekly") for node in stand.nodes]
    client = stand.client("developer")
    assert client.post("/x/jobs", json={"name": "count", "template": RUN}).status_code == 201
    plan = client.post("/x/plan", json={"name": "web", "template": RUN}).json()
    assert plan["placements"][0]["node"] is None
    assert "tainted: down=yes" in plan["placements"][0]["reason"]
    refused = client.post("/x/jobs", json={"name": "count", "template": {**RUN, "node_labels": {"zone": "z"}}})
    assert refused.json()["code"] == "Unplaceable"
    assert "lacks a label: zone=z wanted" in str(refused.json()["details"])


def test_a_toml_file_and_options_carry_it(tmp_path: Any) -> None:
    from lepton_ai.client import source

    file = tmp_path / "job.toml"
    file.write_text(
        'priority = "high"\npreemptible = true\ncheckpoint = true\n[template]\ncommand = ["true"]\n'
        'reservation = "weekly"\ntolerations = ["gpu=yes"]\nnode_labels = {zone = "a"}\n'
    )
    asked = source.job(str(file), {"can_preempt": True, "burst": True}).form
    assert (asked["priority"], asked["preemptible"], asked["can_preempt"], asked["checkpoint"]) == (
        "high",
        True,
        True,
        True,
    )
    assert asked["template"] == {
        "command": ["true"], "reservation": "weekly", "tolerations": ["gpu=yes"], "node_labels": {"zone": "a"},
        "burst": True,
    }  # fmt: skip
