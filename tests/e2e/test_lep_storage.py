"""Storage and registry logins through the real `lep`: buckets, path rules that hold, pods from a template."""

from __future__ import annotations

from pathlib import Path

from cell import eventually
from lep import Lep, document
from test_lep_jobs import create, reaches

GROUP = ("-ng", "test")


def test_a_bucket_is_recorded_shown_changed_and_deleted(lep: Lep) -> None:
    for name in ("S3_ID", "S3_KEY", "S3_NEXT"):
        lep("secret", "create", "-n", name, "-v", "planted-value")
    where = ["--provider", "s3", "--bucket", "my-data", "--region", "local", "--endpoint", "https://s3.example.com"]
    keys = ["--access-key-secret-name", "S3_ID", "--secret-key-secret-name", "S3_KEY"]
    lep("node", "storage", "add", *GROUP, "-n", "bucket-one", "--type", "object-storage", *where, *keys)
    assert "bucket-one" in lep("node", "storage", *GROUP).out
    shown = lep("node", "storage", "get", *GROUP, "-n", "bucket-one").out
    assert "my-data" in shown
    assert "planted-value" not in shown
    lep("node", "storage", "edit", *GROUP, "-n", "bucket-one", "--access-key-secret-name", "S3_ID",
        "--secret-key-secret-name", "S3_NEXT", "-u", "owner")  # fmt: skip
    (item,) = lep.ask("/dedicated-node-groups/test/datasources")["items"]
    assert item["spec"]["permissions"]["allowed_users"] == ["owner"]
    assert "S3_NEXT" in str(item["spec"]["object"]["credentials"])
    lep("node", "storage", "permission", "add", *GROUP, "-n", "bucket-one", "-u", "ann")
    (item,) = lep.ask("/dedicated-node-groups/test/datasources")["items"]
    assert set(item["spec"]["permissions"]["allowed_users"]) == {"owner", "ann"}
    unknown = ["--access-key-secret-name", "S3_ID", "--secret-key-secret-name", "NO_SUCH"]
    lep("node", "storage", "edit", *GROUP, "-n", "bucket-one", *unknown, code=1)
    lep("node", "storage", "delete", *GROUP, "-n", "bucket-one", "--yes")
    assert lep.ask("/dedicated-node-groups/test/datasources") == {"items": []}


def test_a_path_rule_of_a_volume_holds(lep: Lep, tmp_path: Path) -> None:
    (tmp_path / "team").mkdir()
    (tmp_path / "team" / "file").write_text("of the team\n", "utf-8")
    lep("node", "storage", "add", *GROUP, "-n", "shelf-two", "--type", "node-local", "--path", str(tmp_path))
    rule = ["node", "storage", "permission"]
    lep(*rule, "add", *GROUP, "-n", "shelf-two", "-p", "/team", "-u", "somebody-else")
    assert "/team" in lep(*rule, *GROUP, "-n", "shelf-two").out
    mount = ["--mount", "/team:/mnt/data:node-local:shelf-two", *GROUP]
    refused = lep("job", "create", "-n", "reads", "-rs", "cpu.small", "--command", "cat /mnt/data/file", *mount, code=1)
    assert "403" in refused.out + refused.err
    lep(*rule, "delete", *GROUP, "-n", "shelf-two", "-p", "/team", "--yes")
    job = create(lep, "reads", "cat /mnt/data/file", *mount)
    reaches(lep, job, "Completed")
    assert "of the team" in lep("log", "get", "-j", job, "--without-timestamp").out
    lep("job", "remove", "-i", job)
    lep("node", "storage", "delete", *GROUP, "-n", "shelf-two", "--yes")


def test_a_registry_login_is_named_by_a_workload_and_has_to_exist(lep: Lep) -> None:
    words = ["job", "create", "-n", "pulls", "-rs", "cpu.small", "--command", "true", "--container-image", "x/y:1"]
    refused = lep(*words, "--image-pull-secrets", "hub", code=1)
    assert "hub" in refused.out + refused.err
    lep.cell.cloud.set_registry("hub", "registry.example.com", "me", "planted-password")
    lep(*words, "--image-pull-secrets", "hub")
    job = next(item for item in lep.ask("/jobs", q="pulls")["jobs"])
    assert job["spec"]["image_pull_secrets"] == ["hub"]
    assert "planted-password" not in str(job)
    assert lep.ask("/workspace")["workloads"]["num_image_pull_secrets"] == 1
    lep("job", "remove", "-i", job["metadata"]["id"])
    lep.cell.cloud.delete_registry("hub")


def test_a_pod_is_made_from_a_template(lep: Lep) -> None:
    lep("pod", "create", "-n", "nap", "-t", "sleep", "--run", "echo awake; sleep 1000", "-rs", "cpu.small")
    shown = document(lep("pod", "get", "-n", "nap").out)
    assert shown["spec"]["container"]["command"] == ["/bin/bash", "-c", "echo awake; sleep 1000"]
    eventually(lambda: any(line.line == "awake" for line in lep.cell.cloud.logs("nap")), "it runs")
    lep("pod", "remove", "-n", "nap")
