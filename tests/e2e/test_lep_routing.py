"""Host names and storage through the real `lep`: ingress by weight, volumes of the node group, and mounts that work."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from cell import eventually
from lep import HTTP, Lep, document, rows
from test_lep_endpoints import create as endpoint
from test_lep_endpoints import reaches as serves
from test_lep_jobs import create, reaches

DOMAIN = "shop.example.test"


def called(lep: Lep, domain: str = DOMAIN) -> tuple[int, str]:
    answer = HTTP.post(lep.cell.state.gateway_url, json={"value": 1}, headers={"host": domain})
    return answer.status_code, answer.json().get("release", "") if answer.status_code == 200 else ""


def test_a_host_name_is_shared_by_weight(lep: Lep) -> None:
    for name in ("blue", "green"):
        endpoint(lep, name, "--public", "--replicas-static", "1", release=name)
    for name in ("blue", "green"):
        serves(lep, name, "Ready")
    lep("ingress", "create", "-d", DOMAIN)
    row = rows(lep("ingress", "list").out, ruled=False)[1:][0]
    name = row[0]
    assert row[2] == DOMAIN, row
    again = lep("ingress", "create", "-d", DOMAIN, code=1)
    assert "409" in again.out + again.err, "a host name belongs to one ingress"
    lep("ingress", "add-endpoint", "-n", name, "-e", "blue", "-w", "100")
    eventually(lambda: called(lep) == (200, "blue"), "it leads to blue")
    lep("ingress", "set-endpoints", "-n", name, "-e", "blue:50", "-e", "green:50")
    eventually(lambda: called(lep)[1] == "green", "some requests lead to green")
    seen = Counter(called(lep) for _ in range(200))
    assert set(seen) == {(200, "blue"), (200, "green")}, seen
    assert min(seen.values()) > 40, seen
    shown = document(lep("ingress", "get", "-n", name).out)
    assert shown["spec"]["domain_name"] == DOMAIN
    assert {(item["deployment"], item["weight"]) for item in shown["spec"]["endpoints"]} == {
        ("blue", 50),
        ("green", 50),
    }
    lep("ingress", "update-endpoint", "-n", name, "-e", "green", "-w", "0")
    lep("ingress", "remove-endpoint", "-n", name, "-e", "blue")
    assert called(lep, "other.example.test")[0] == 404
    lep("ingress", "delete", "-n", name)
    eventually(lambda: called(lep)[0] == 404, "the name leads nowhere")
    for name in ("blue", "green"):
        lep("endpoint", "remove", "-n", name)


def test_a_mount_of_the_node_is_written_and_read(lep: Lep) -> None:
    words = ["--mount", "/notes:/mnt/notes:node-local", "-ng", "test", "-ni", "node-1"]
    first = create(lep, "writes", "echo kept > /mnt/notes/one; ls /mnt/notes", *words)
    reaches(lep, first, "Completed")
    second = create(lep, "reads", "cat /mnt/notes/one", *words)
    reaches(lep, second, "Completed")
    assert "kept" in lep("log", "get", "-j", second, "--without-timestamp").out
    shown = document(lep("job", "get", "-i", second).out)["spec"]
    assert shown["mounts"][0]["mount_path"] == "/mnt/notes"
    assert [row[2] for row in rows(lep("job", "replicas", "-i", second).out, ruled=False)[1:]] == ["node-1"]
    for path in ("/etc", "/proc/x", "/mnt/../etc"):
        refused = lep("job", "create", "-n", "bad", "-rs", "cpu.small", "--command", "true", "--mount",
                      f"/a:{path}:node-local", code=1)  # fmt: skip
        assert "mount" in (refused.out + refused.err).lower() or path in refused.out, refused
    for job in (first, second):
        lep("job", "remove", "-i", job)


def test_a_volume_is_added_mounted_and_deleted(lep: Lep, tmp_path: Path) -> None:
    folder = tmp_path / "shared"
    folder.mkdir()
    (folder / "data.txt").write_text("from the host\n", "utf-8")
    add = ["node", "storage", "add", "-ng", "test", "-n", "shelf-one", "--type", "node-local", "--path", str(folder)]
    lep(*add)
    listed = lep("node", "storage", "-ng", "test").out
    assert "shelf-one" in listed, listed
    assert str(folder) in listed, listed
    job = create(lep, "volume", "cat /mnt/data/data.txt", "--mount", "/:/mnt/data:node-local:shelf-one", "-ng", "test")
    reaches(lep, job, "Completed")
    assert "from the host" in lep("log", "get", "-j", job, "--without-timestamp").out
    lep("job", "remove", "-i", job)
    lep("node", "storage", "delete", "-ng", "test", "-n", "shelf-one", "--yes")
    assert "shelf-one" not in lep("node", "storage", "-ng", "test").out
    refused = lep("job", "create", "-n", "gone", "-rs", "cpu.small", "--command", "true", "--mount",
                  "/:/mnt/data:node-local:shelf-one", "-ng", "test", code=1)  # fmt: skip
    assert "shelf-one" in refused.out + refused.err
