"""Workspaces, their secrets, logins and templates over HTTP; GET /workspace; what is not part of this release."""

from __future__ import annotations

from typing import Any

import pytest


def test_a_workspace_is_added_shown_and_removed(stand: Any) -> None:
    owner = stand.client()
    refused = owner.post("/x/workspaces", json={"name": "team"})
    assert (refused.status_code, "--force" in refused.json()["hint"]) == (409, True)
    made = owner.post("/x/workspaces", json={"name": "team", "force": True})
    assert made.status_code == 201, made.text
    assert made.json()["warning"]
    tenant = stand.client(token=made.json()["token"], ws="team")
    assert tenant.get("/x/cell").json()["workspace"] == "team"
    assert tenant.get("/x/cell").json()["warning"] == "", "it is the cell's owner who is to be warned"
    assert "team" in owner.get("/x/cell").json()["warning"]
    assert [item["name"] for item in owner.get("/x/workspaces").json()] == ["default", "other", "team"]
    assert made.json()["token"] not in owner.get("/x/workspaces").text
    for client in (stand.client("admin"), tenant):
        assert client.get("/x/workspaces").status_code == 403
        assert client.post("/x/workspaces", json={"name": "third", "force": True}).status_code == 403
    assert owner.post("/x/workspaces", json={"name": "team", "force": True}).status_code == 409
    assert owner.delete("/x/workspaces/none").status_code == 404
    assert owner.delete("/x/workspaces/default").status_code == 400
    lake = stand.folder / "lake" / "team"
    lake.mkdir(parents=True)
    assert owner.delete("/x/workspaces/team").json() == {"name": "team", "lake_kept": True}
    assert tenant.get("/x/cell").status_code == 401
    owner.post("/x/workspaces", json={"name": "team", "force": True})
    assert owner.delete("/x/workspaces/team?purge=true").json() == {"name": "team", "lake_kept": False}
    assert not lake.exists()


def test_what_a_workspace_is_told_of_itself(stand: Any) -> None:
    stand.node("node-1", state="ready", capacity={"cpu_milli": 2000, "memory_mib": 4096, "accelerator_milli": 1000})
    client = stand.client()
    stand.deploy("web")
    pod = {"metadata": {"name": "box"}, "spec": {"container": {"command": ["true"]}, "is_pod": True}}
    assert client.post("/deployments", json=pod).status_code == 201
    job = stand.run()
    stand.replica(job, "node-1")
    client.put("/x/secrets/A", json={"value": "x"})
    client.put("/x/registries/hub", json={"registry": "r.example.com", "username": "u", "password": "p"})
    (stand.folder / "lake" / "default").mkdir(parents=True)
    (stand.folder / "lake" / "default" / "part").write_bytes(b"x" * 100_000)
    info = client.get("/workspace").json()
    assert info["workloads"] == {
        "num_deployments": 1, "num_jobs": 1, "num_pods": 1, "num_secrets": 1, "num_image_pull_secrets": 1,
    }  # fmt: skip
    assert info["resource_quota"]["limit"] == {"cpu": 2.0, "memory": 4096, "accelerator_num": 1.0}
    assert info["resource_quota"]["used"] == {"cpu": 0.2, "memory": 256, "accelerator_num": 0.0}
    assert info["workspace_disk_usage_bytes"] >= 100_000
    assert info["features"]["enable_new_deployment_api"] is False
    assert "cpu.small" in info["supported_shapes"]
    assert "cpu.xlarge" not in info["supported_shapes"], "no node could hold it"
    other = stand.client(token=stand.foreign, ws="other").get("/workspace").json()
    assert set(other["workloads"].values()) == {0}
    assert other["workspace_disk_usage_bytes"] == 0


def test_shapes_are_priced_and_of_a_group(stand: Any) -> None:
    stand.node("node-1", state="ready", capacity={"cpu_milli": 1000, "memory_mib": 2048})
    client = stand.client()
    shapes = {item["metadata"]["id"]: item["spec"] for item in client.get("/shapes").json()}
    assert {"cpu.tiny", "cpu.small", "cpu.half", "cpu.medium"} == set(shapes)
    assert all(name == name.lower() for name in shapes)
    price = stand.cell.prices
    assert shapes["cpu.medium"]["price_per_hour"] == pytest.approx(price.core_hour + 2 * price.gib_hour, abs=1e-6)
    assert "USD/hour" in shapes["cpu.medium"]["description"]
    assert client.get("/shapes", params={"node_groups": "local"}).json() == client.get("/shapes").json()
    assert client.get("/shapes", params={"node_groups": "elsewhere"}).json() == []
    assert client.get("/shapes", params={"purpose": "pod"}).json()
    assert client.get("/shapes", params={"purpose": "tea"}).json() == []


def test_nodes_machines_and_what_is_there(stand: Any) -> None:
    machine = {"id": "m1", "hostname": "box", "os": "Linux", "kernel": "6.1", "processor": "CPU", "disk_mib": 1000}
    status = {"machine": machine, "disk_free_mib": 400, "runtime": "process", "isolation": "uid"}
    stand.node("node-1", state="ready", **status)
    stand.node("node-2", state="ready", **status)
    stand.node("node-3", state="unreachable")
    record = stand.store.get("system", "node", "node-2")
    stand.store.update(record, spec={**record.spec, "unschedulable": True})
    foreign = stand.store.create("other", "job", "secret-job", {})
    stand.replica(foreign, "node-1")
    stand.replica(stand.deploy("web"), "node-1")
    client = stand.client()
    nodes = {item["metadata"]["id"]: item for item in client.get("/dedicated-node-groups/local/nodes").json()}
    first = nodes["node-1"]
    assert first["spec"]["resource"]["cpu"] == {"allocated": 0.4, "total": 1.0, "type": "CPU"}, "all that is promised"
    assert first["spec"]["resource"]["disk"] == {"total_bytes": 500 << 20, "used_bytes": 300 << 20}, "of both"
    assert first["spec"]["resource"]["system"] == {"os": "Linux", "kernel_version": "6.1"}
    assert [item["name"] for item in first["status"]["workloads"]] == ["web"], "only the workspace's own"
    assert first["metadata"]["labels"]["isolation"] == "uid"
    assert nodes["node-2"]["status"]["status"] == ["Ready", "Draining"]
    assert nodes["node-3"]["status"]["status"] == ["Offline"]
    machines = client.get("/dedicated-node-groups/local/machines").json()
    assert [item["status"]["machine_id"] for item in machines] == ["m1", nodes["node-3"]["spec"]["machine_id"]]
    assert machines[0]["status"]["resource"]["cpu"]["total"] == 2.0
    assert machines[0]["status"]["resource"]["disk"]["total_bytes"] == 1000 << 20
    assert first["spec"]["machine_id"] == "m1"


def test_a_private_secret_is_its_owners(stand: Any) -> None:
    developer, admin = stand.client("developer"), stand.client("admin")
    text, _ = stand.cell.access.issue("default", "developer", "colleague")
    colleague = stand.client(token=text)
    body = [
        {"name": "MINE", "value": "planted-1", "visibility": "private", "tags": ["prod"]},
        {"name": "OURS", "value": "planted-2", "visibility": "public"},
    ]
    assert developer.post("/usersecrets", json=body).status_code == 201
    assert {item["name"]: item for item in developer.get("/usersecrets").json()} == {
        "MINE": {"name": "MINE", "owner": "developer", "visibility": "private", "tags": ["prod"]},
        "OURS": {"name": "OURS", "owner": "developer", "visibility": "public", "tags": []},
    }
    assert [item["name"] for item in colleague.get("/usersecrets").json()] == ["OURS"]
    assert [item["name"] for item in admin.get("/usersecrets").json()] == ["MINE", "OURS"]
    assert colleague.delete("/usersecrets/MINE").status_code == 404
    assert colleague.get("/x/secrets/MINE").status_code == 404
    assert colleague.put("/x/secrets/MINE", json={"value": "other"}).status_code == 409
    assert stand.cell.secrets.value("default", "MINE") == "planted-1"
    form = {"name": "web", "template": {"command": ["true"], "secrets": {"K": "MINE"}}}
    assert colleague.put("/x/deployments/web", json=form).status_code == 404
    assert developer.put("/x/deployments/web", json=form).status_code == 200
    assert "planted" not in developer.get("/x/secrets").text + admin.get("/x/deployments").text


def test_secrets_that_are_refused_are_refused_together(stand: Any) -> None:
    client = stand.client()
    good = {"name": "GOOD", "value": "x"}
    for wrong in ({"name": "LEPTON_JOB_NAME", "value": "x"}, {"name": "1A", "value": "x"}, {"name": "B"}, good):
        assert client.post("/usersecrets", json=[good, wrong]).status_code == 400, wrong
    assert client.get("/usersecrets").json() == []
    # What the client makes for --include-workspace-token is a secret like any other.
    assert client.post("/usersecrets", json=[{"name": "LEPTON_WORKSPACE_TOKEN", "value": "t"}]).status_code == 201


def test_registry_logins_are_sealed(stand: Any) -> None:
    client = stand.client("developer")
    login = {"registry": "r.example.com:5000", "username": "me", "password": "planted-password"}
    assert client.put("/x/registries/hub", json=login).status_code == 200
    assert "planted" not in client.get("/x/registries").text
    assert client.get("/x/registries").json()[0]["username"] == "me"
    assert stand.cell.registries.login("default", "hub").password == "planted-password"
    assert client.put("/x/registries/hub", json={**login, "pasword": "x"}).status_code == 400
    assert stand.client("viewer").put("/x/registries/hub", json=login).status_code == 403
    assert client.delete("/x/registries/hub").status_code == 200
    assert client.delete("/x/registries/hub").status_code == 404


def test_tokens_of_the_caller(stand: Any) -> None:
    client = stand.client()
    made = client.post("/x/tokens", json={"name": "short", "role": "viewer", "days": 2}).json()
    (own,) = stand.client(token=made["token"]).get("/tokens").json()
    before, after = own["masked_value"].split("...")
    assert made["token"].startswith(before)
    assert made["token"].endswith(after)
    assert own["expires_at"] == made["expires_ms"]
    assert made["token"] not in client.get("/x/tokens").text
    stand.store.now_ms = lambda: made["expires_ms"] + 1
    assert stand.client(token=made["token"]).get("/tokens").status_code == 401


def test_templates(stand: Any) -> None:
    client = stand.client("developer")
    public = {item["metadata"]["id"]: item for item in client.get("/templates/public").json()}
    assert {item["spec"]["workload_type"] for item in public.values()} == {"job", "pod", "deployment"}
    for identity, item in public.items():
        assert client.get(f"/templates/public/{identity}").json() == item
        needs = item["spec"]["json_schema"].get("required", [])
        body = {"run": "true"} if "run" in needs else {}
        made = client.post(f"/templates/public/{identity}/render", json=body)
        assert made.status_code == 200, (identity, made.text)
        assert "{{" not in made.text
        # What is rendered is what a cell takes: the promise of a template that ships with it.
        path = "/jobs" if item["spec"]["workload_type"] == "job" else "/deployments"
        taken = client.post(path, json=made.json())
        assert taken.status_code == 201, (identity, taken.text)
        if "run" in needs:
            assert client.post(f"/templates/public/{identity}/render", json={}).status_code == 400
    assert client.get("/templates/public/none").status_code == 404
    assert client.post("/templates/public/python/render", json={"run": "x", "other": "y"}).status_code == 400


def test_a_template_of_ones_own(stand: Any) -> None:
    client = stand.client("developer")
    content = {"spec": {"container": {"command": ["/bin/bash", "-c", "{{run}} --size {{size}}"]}, "envs": []}}
    spec = {"workload_type": "job", "content": content, "json_schema": {"properties": {"size": {"type": "string"}}}}
    assert client.put("/x/templates/mine", json={"metadata": {"name": "Mine"}, "spec": spec}).status_code == 200
    (shown,) = client.get("/templates/private").json()
    assert (shown["metadata"]["id"], shown["metadata"]["name"]) == ("mine", "Mine")
    assert client.get("/templates/private/mine").json() == shown
    made = client.post("/templates/private/mine/render", json={"run": 'a"}], "x": "', "size": "3"}).json()
    assert made["spec"]["container"]["command"][2] == 'a"}], "x": " --size 3', "a value adds no field"
    assert set(made["spec"]) == {"container", "envs"}
    for wrong in ({}, {"spec": {**spec, "workload_type": "tea"}}, {"spec": {**spec, "json_schema": {}}}):
        assert client.put("/x/templates/mine", json=wrong).status_code == 400
    assert client.put("/x/templates/Bad.Name", json={"spec": spec}).status_code == 400
    assert stand.client("viewer").put("/x/templates/mine", json={"spec": spec}).status_code == 403
    assert client.delete("/x/templates/mine").status_code == 200
    assert client.get("/templates/private").json() == []
    assert client.post("/templates/private/mine/render", json={}).status_code == 404


def test_what_is_not_part_of_this_release_says_so(stand: Any) -> None:
    client = stand.client()
    assert client.get("/finetune/jobs", params={"page": 1, "page_size": 500}).json()["finetune_jobs"] == []
    assert client.get("/finetune/trainers", params={"default_only": "true"}).json() == []
    assert client.get("/finetune/supported-models").json() == []
    assert client.get("/rayclusters").json() == []
    for path in ("/finetune/jobs/a", "/rayclusters/a"):
        assert client.get(path).status_code == 404
        assert client.delete(path).status_code == 404
        assert client.patch(path, json={"spec": {}}).status_code == 404
    for path in ("/finetune/jobs", "/rayclusters"):
        response = client.post(path, json={"metadata": {"name": "a"}, "spec": {}})
        assert response.status_code == 501
        assert response.json()["hint"]
