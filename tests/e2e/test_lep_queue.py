"""Priorities, preemption and reservations through the real `lep`: asked for, obeyed, and shown back as they were."""

from __future__ import annotations

import re

from cell import eventually
from lep import Lep, document

HALF = ("-rs", "cpu.half", "-ng", "test")


def create(lep: Lep, name: str, command: str, *more: str) -> str:
    done = lep("job", "create", "-n", name, "--command", command, *HALF, *more)
    found = re.search(r"ID: (\S+)", done.out)
    assert found, done
    return found[1]


def reaches(lep: Lep, job: str, wanted: str) -> None:
    eventually(lambda: lep.ask(f"/jobs/{job}")["status"]["state"] == wanted, f"{job} is {wanted}")


def test_an_urgent_job_takes_the_place_of_one_that_agreed_and_that_one_runs_again(lep: Lep) -> None:
    agreed = create(lep, "agreed", "echo began; sleep 600", "-w", "2", "-qp", "low", "-cbp")
    firm = create(lep, "firm", "sleep 600", "-qp", "1")
    for job in (agreed, firm):
        reaches(lep, job, "Running")
    urgent = create(lep, "urgent", "echo ran; sleep 3", "-qp", "high-9", "-cp")
    reaches(lep, urgent, "Completed")
    reaches(lep, agreed, "Running")

    shown = {job: document(lep("job", "get", "-i", job).out) for job in (agreed, firm, urgent)}
    asked = {job: {k: v for k, v in it["spec"]["queue_config"].items() if v is not None} for job, it in shown.items()}
    assert asked[agreed] == {"priority_class": "low-1000", "can_be_preempted": True}
    assert asked[firm] == {"priority_class": "low-1000"}
    assert asked[urgent] == {"priority_class": "high-9000", "can_preempt": True}
    status = shown[agreed]["status"]
    assert (status["failed"], len(status["job_history"])) == (0, 1), status
    assert shown[firm]["status"]["job_history"] in (None, [])
    said = lep("job", "events", "-i", agreed).out
    assert "Preempted" in said
    assert urgent in said
    assert "Preempts" in [item["reason"] for item in lep.ask(f"/jobs/{urgent}/events")]
    for job in shown:
        assert "NotEnforced" not in [item["reason"] for item in lep.ask(f"/jobs/{job}/events")]
        lep.cell.cloud.delete(job)


def test_a_reserved_node_is_for_who_names_it_and_lent_to_who_may_be_sent_away(lep: Lep) -> None:
    cloud = lep.cell.cloud
    eventually(lambda: not cloud.jobs(all=True), "earlier jobs are gone")
    body = {"metadata": {"name": "weekly"}, "spec": {"desired_nodes": 1}}
    cloud._http.send("POST", "/x/reservations", body)
    shown = eventually(
        lambda: [
            item for item in lep.ask("/dedicated-node-groups/test/reservations") if item["status"]["reserved_nodes"]
        ],
        "a node is reserved",
    )
    (node,) = shown[0]["status"]["reserved_nodes"]
    assert "weekly" in lep("node", "list-reservations", "test").out
    others = create(lep, "others", "sleep 600", "-w", "2")
    waits = create(lep, "waits", "true")
    guest = create(lep, "guest", "sleep 600", "--allow-burst-to-other-reservation")
    reaches(lep, others, "Running")
    reaches(lep, guest, "Running")
    assert {item.node for item in cloud.replicas(cloud.job(guest))} == {node}
    reaches(lep, waits, "Queueing")
    named = create(lep, "named", "echo ran", "--with-reservation", "weekly", "-cp")
    reaches(lep, named, "Completed")
    assert {item.node for item in cloud.replicas(cloud.job(named))} == {node}
    spec = document(lep("job", "get", "-i", named).out)["spec"]
    assert spec["reservation_config"]["reservation_id"] == "weekly"
    refused = lep("job", "create", "-n", "x", "--command", "true", *HALF, "--with-reservation", "none", code=1)
    assert "none" in refused.out + refused.err
    cloud._http.send("DELETE", "/x/reservations/weekly")
    reaches(lep, waits, "Queueing")
    for job in (others, guest):
        cloud.stop(job)
    reaches(lep, waits, "Completed")
    for job in (others, guest, waits, named):
        cloud.delete(job)
