"""Nodes and the cell: what they have and hold, draining, and what the public client reads of both."""

from __future__ import annotations

from typing import Any


def test_nodes_show_what_they_have_and_hold(stand: Any) -> None:
    stand.node("node-2")
    stand.node("node-1", state="ready", cpu_used_milli=50, capacity={"cpu_milli": 2000, "memory_mib": 4096})
    record = stand.deploy()
    stand.replica(record, "node-1")
    stand.replica(record, "node-1", phase="exited")
    first, second = stand.client("viewer").get("/x/nodes").json()
    assert (first["name"], first["state"], first["replicas"]) == ("node-1", "ready", 1)
    assert (first["cpu_milli"], first["cpu_placed_milli"], first["cpu_used_milli"]) == (2000, 200, 50)
    assert (first["memory_mib"], first["memory_placed_mib"]) == (4096, 256)
    assert (second["state"], second["cpu_milli"]) == ("unreachable", 1000)
    assert second["reason"]


def test_draining_is_wanted_state_and_only_for_those_who_run_the_cell(stand: Any) -> None:
    stand.node("node-1", state="ready")
    admin = stand.client("admin")
    assert admin.post("/x/nodes/node-1/drain").json()["state"] == "draining"
    assert stand.store.get("system", "node", "node-1").spec["unschedulable"] is True
    assert admin.post("/x/nodes/node-1/drain").status_code == 200
    assert admin.post("/x/nodes/node-1/undrain").json()["state"] == "ready"
    assert stand.store.get("system", "node", "node-1").spec["unschedulable"] is False
    assert stand.client("developer").post("/x/nodes/node-1/drain").status_code == 403
    missing = admin.post("/x/nodes/node-2/drain")
    assert (missing.status_code, missing.json()["hint"]) == (404, "did you mean node-1?")
    assert stand.cell.audit.list("default")[0].action == "undrain"


def test_the_cell_says_what_it_is(stand: Any) -> None:
    stand.node("node-1")
    shown = stand.client("caller").get("/x/cell").json()
    assert (shown["name"], shown["uid"], shown["leading"]) == ("local", "cell-uid", True)
    assert (shown["workspace"], shown["role"], shown["nodes"]) == ("default", "caller", ["node-1"])
    assert shown["lake_url"] == (stand.folder / "lake" / "default").as_uri()
    assert shown["gateway_url"] == "http://127.0.0.1:9"


def test_the_public_client_logs_in_and_lists_nodes(stand: Any) -> None:
    stand.node("node-1", state="ready")
    stand.node("node-2", state="unreachable")
    job = stand.run()
    stand.replica(job, "node-1")
    client = stand.client()
    assert client.get("").json()["display_name"] == "default"
    info = client.get("/workspace").json()
    assert info["workspace_state"] == "normal"
    assert info["workloads"]["num_jobs"] == 1
    assert info["resource_quota"]["limit"]["cpu"] == 2.0
    assert info["resource_quota"]["used"] == {"cpu": 0.2, "memory": 256, "accelerator_num": 0.0}
    (group,) = client.get("/dedicated-node-groups").json()
    assert (group["metadata"]["name"], group["status"]["ready_nodes"]) == ("local", 1)
    identity = group["metadata"]["id"]
    assert client.get(f"/dedicated-node-groups/{identity}").json() == group
    assert client.get("/dedicated-node-groups/other").status_code == 404
    first, second = client.get(f"/dedicated-node-groups/{identity}/nodes").json()
    assert first["status"]["status"] == ["Ready", "Healthy"]
    assert [item["name"] for item in first["status"]["workloads"]] == [job.name]
    assert second["status"]["status"] == ["Offline"]
    idle = client.get(f"/dedicated-node-groups/{identity}/nodes?idle=true").json()
    assert [item["metadata"]["id"] for item in idle] == ["node-2"]
    machines = client.get(f"/dedicated-node-groups/{identity}/machines").json()
    assert len({item["status"]["machine_id"] for item in machines}) == len(machines) >= 1
    nodes = client.get(f"/dedicated-node-groups/{identity}/nodes").json()
    assert {item["spec"]["machine_id"] for item in nodes} == {item["status"]["machine_id"] for item in machines}
    assert client.get(f"/dedicated-node-groups/{identity}/reservations").json() == []
    shapes = client.get("/shapes", params={"node_groups": identity, "purpose": "job"}).json()
    assert "cpu.small" in [item["metadata"]["id"] for item in shapes]
    assert all(item["spec"]["listable_in"] for item in shapes)
    assert client.get("/shapes?purpose=other").json() == []
