"""Volumes, path rules, data sources and reservations, as the public client asks for them and as workloads meet them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

GROUP = "/dedicated-node-groups/local-0001"
BUCKET: dict[str, Any] = {
    "name": "model-data",
    "workspace": "default",
    "description": "",
    "object": {
        "bucket": "model-bucket",
        "provider": {"type": "aws", "aws": {"region": "us-west-2"}},
        "credentials": {
            "type": "leptonSecret",
            "leptonSecret": {"s3Credentials": {"accessKeySecretName": "AK", "secretKeySecretName": "SK"}},
        },
    },
}


def volume(folder: Path, **fields: Any) -> dict[str, Any]:
    made = {"from": "local", "name": "data", "size_in_gb": 0, "creation_mode": "mkdir", "from_path": str(folder)}
    return {**made, **fields}


def test_a_volume_from_its_adding_to_its_end(stand: Any, tmp_path: Path) -> None:
    client = stand.client("admin")
    (group,) = client.get("/dedicated-node-groups").json()
    assert [item["name"] for item in group["spec"]["volumes"]] == ["local"]
    made = client.post(GROUP + "/volumes", json=volume(tmp_path / "srv"))
    assert made.status_code == 200, made.text
    assert made.json()["metadata"] == group["metadata"]
    shown = {item["name"]: item for item in made.json()["spec"]["volumes"]}["data"]
    assert (shown["from"], shown["from_path"], shown["managed_by_lepton"]) == ("local", str(tmp_path / "srv"), False)
    assert (tmp_path / "srv").is_dir()
    assert client.post(GROUP + "/volumes", json=volume(tmp_path / "other")).status_code == 409
    template = {"command": ["true"], "mounts": [{"volume": "data", "target": "/mnt/x"}]}
    assert client.put("/x/deployments/web", json={"name": "web", "template": template}).status_code == 200
    used = client.delete(GROUP + "/volumes/data")
    assert (used.status_code, "web" in used.text) == (409, True)
    stand.store.delete(stand.store.get("default", "deployment", "web"))
    assert client.delete(GROUP + "/volumes/data").status_code == 200
    missing = client.put("/x/deployments/web", json={"name": "web", "template": template})
    assert (missing.status_code, "no volume 'data'" in missing.text) == (404, True)


@pytest.mark.parametrize(
    "fields",
    [
        {"from_path": "/etc"}, {"from_path": "relative"}, {"from_path": "/"}, {"from": "s3"}, {"name": "Bad"},
        {"creation_mode": "copy"}, {"size_in_gb": -1}, {"workspaces": ["nobody"]}, {"default_mount_path": "x"},
        {"creation_mode": "none", "from_path": "/not/there"},
    ],
)  # fmt: skip
def test_volumes_that_are_refused(stand: Any, tmp_path: Path, fields: dict[str, Any]) -> None:
    response = stand.client().post(GROUP + "/volumes", json=volume(tmp_path / "srv", **fields))
    assert response.status_code in (400, 404), response.text
    assert response.json()["hint"]
    assert stand.store.list("volume") == []


def test_the_cells_folder_is_no_volume(stand: Any) -> None:
    for path in (stand.folder, stand.folder / "lake", stand.folder.parent):
        response = stand.client().post(GROUP + "/volumes", json=volume(path))
        assert response.status_code == 400, path


def test_a_volume_is_given_to_workspaces(stand: Any, tmp_path: Path) -> None:
    other = stand.client(token=stand.foreign, ws="other")
    stand.client().post(GROUP + "/volumes", json=volume(tmp_path / "a", name="ours"))
    stand.client().post(GROUP + "/volumes", json=volume(tmp_path / "b", name="both", workspaces=["default", "other"]))
    (group,) = other.get("/dedicated-node-groups").json()
    assert [item["name"] for item in group["spec"]["volumes"]] == ["local", "both"]
    assert "workspaces" not in group["spec"]["volumes"][1], "who else has it is not its business"
    assert other.post(GROUP + "/volumes", json=volume(tmp_path / "c", name="mine")).status_code == 403


def test_path_rules_bind_who_deploys(stand: Any, tmp_path: Path) -> None:
    admin, developer = stand.client("admin"), stand.client("developer")
    admin.post(GROUP + "/volumes", json=volume(tmp_path / "srv"))
    rule = {
        "path_prefix": "/team",
        "allowed_users": ["developer"],
        "subfolder_policy": "",
        "nodegroup_id": "local-0001",
    }
    assert developer.post("/storage-permission/data", json=rule).status_code == 403
    assert admin.post("/storage-permission/data", json=rule).status_code == 200
    by_user = {"path_prefix": "/home", "allowed_users": [], "subfolder_policy": "by_user"}
    assert admin.post("/storage-permission/data", json=by_user).status_code == 200
    listed = admin.get("/storage-permission/data", params={"nodegroup_id": "local-0001"}).json()
    assert [item["path_prefix"] for item in listed] == ["/home", "/team"]
    assert listed[1] == rule
    assert admin.get("/storage-permission/data", params={"nodegroup_id": "elsewhere"}).status_code == 404
    assert admin.get("/storage-permission/none").status_code == 404

    def put(client: Any, path: str) -> int:
        mount = {"volume": "data", "path": path, "target": "/mnt/x"}
        form = {"name": "web", "template": {"command": ["true"], "mounts": [mount]}}
        return int(client.put("/x/deployments/web", json=form).status_code)

    assert put(developer, "/team/a") == 200
    assert put(developer, "/home/developer") == 200
    assert put(developer, "/") == 403
    assert put(developer, "/home/admin") == 403
    assert put(admin, "/team/b") == 403
    assert admin.delete("/storage-permission/data/team", params={"nodegroup_id": "local-0001"}).status_code == 200
    assert put(developer, "/team/c") == 403
    assert admin.delete("/storage-permission/data/home").status_code == 200
    assert put(developer, "/") == 200
    assert admin.delete("/storage-permission/data/home").status_code == 404


def test_a_data_source_from_its_adding_to_its_end(stand: Any) -> None:
    admin = stand.client("admin")
    assert admin.post(GROUP + "/datasources", json=BUCKET).status_code == 403, "its secrets are not there"
    for name in ("AK", "SK"):
        admin.put(f"/x/secrets/{name}", json={"value": "hush"})
    made = admin.post(GROUP + "/datasources", json=BUCKET)
    assert made.status_code == 201, made.text
    assert made.json()["status"]["ready"] is False
    (item,) = admin.get(GROUP + "/datasources").json()["items"]
    assert item == admin.get(GROUP + "/datasources/model-data").json() == made.json()
    assert admin.post(GROUP + "/datasources", json=BUCKET).status_code == 409
    # As the client does: the whole spec comes back.
    members = {**item["spec"], "permissions": {"allowed_users": ["admin"]}}
    assert admin.patch(GROUP + "/datasources/model-data", json=members).json()["spec"]["permissions"]
    assert stand.client("developer").get(GROUP + "/datasources").json()["items"] == []
    assert stand.client("developer").get(GROUP + "/datasources/model-data").status_code == 404
    assert "permissions" not in admin.patch(GROUP + "/datasources/model-data", json=item["spec"]).json()["spec"]
    moved = {**item["spec"], "object": {**item["spec"]["object"], "bucket": "another"}}
    assert admin.patch(GROUP + "/datasources/model-data", json=moved).status_code == 400
    assert admin.patch(GROUP + "/datasources/model-data", json={}).status_code == 400
    assert admin.delete(GROUP + "/datasources/model-data").status_code == 200
    assert admin.get(GROUP + "/datasources").json() == {"items": []}


@pytest.mark.parametrize(
    "credentials",
    [
        {"type": "static", "accessKey": "AKIA-PLANTED"}, {"type": "wif", "key": "AKIA-PLANTED"}, {}, "AKIA-PLANTED",
        {"type": "leptonSecret", "leptonSecret": {"s3Credentials": {"accessKey": "AKIA-PLANTED"}}},
        {"type": "leptonSecret", "accessKey": "AKIA-PLANTED", "leptonSecret": BUCKET["object"]["credentials"]},
    ],
)  # fmt: skip
def test_keys_themselves_are_refused_and_not_told_back(stand: Any, credentials: Any) -> None:
    body = {**BUCKET, "object": {**BUCKET["object"], "credentials": credentials}}
    response = stand.client().post(GROUP + "/datasources", json=body)
    assert response.status_code == 400
    assert "PLANTED" not in response.text
    assert stand.store.list("datasource") == []


def test_reservations_have_a_phase_by_their_time(stand: Any) -> None:
    now_s = stand.store.now_ms() // 1000
    client = stand.client("admin")
    times = {"past": (now_s - 20, now_s - 10), "now": (now_s - 10, now_s + 3600), "next": (now_s + 3600, now_s + 7200)}
    for name, (start, end) in times.items():
        rule = {"start_timestamp": start, "end_timestamp": end}
        body = {"metadata": {"name": name}, "spec": {"users": ["ann"], "desired_nodes": 2, "time_rule": rule}}
        assert client.post("/x/reservations", json=body).status_code == 201
    assert client.post("/x/reservations", json={"metadata": {"name": "now"}, "spec": {}}).status_code == 409
    found = {item["metadata"]["name"]: item for item in client.get(GROUP + "/reservations").json()}
    phases = {name: item["status"]["phase"] for name, item in found.items()}
    assert phases == {"past": "Expired", "now": "Reserving", "next": "WaitingEffective"}
    assert found["now"]["spec"]["approved_nodes"] == 2
    assert found["now"]["status"]["reserved_count"] == 0
    assert client.get("/x/reservations").json() == client.get(GROUP + "/reservations").json()
    wrong = {"metadata": {"name": "w"}, "spec": {"time_rule": {"start_timestamp": 10, "end_timestamp": 5}}}
    assert client.post("/x/reservations", json=wrong).status_code == 400
    elsewhere = {"metadata": {"name": "theirs"}, "workspace": "other", "spec": {}}
    assert client.post("/x/reservations", json=elsewhere).status_code == 201
    assert "theirs" not in client.get("/x/reservations").text
    other = stand.client(token=stand.foreign, ws="other")
    assert [item["metadata"]["name"] for item in other.get(GROUP + "/reservations").json()] == ["theirs"]
    assert client.delete("/x/reservations/past").status_code == 200
    assert client.delete("/x/reservations/past").status_code == 404
