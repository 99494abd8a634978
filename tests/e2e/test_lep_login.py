"""`lep` signs in by all three ways and lists the cell itself: workspace, nodes, shapes, secrets, templates."""

from __future__ import annotations

import json
import re

import pytest
from lep import Lep, document, rows

WRONG = "lt_" + "x" * 40


def test_the_three_ways_in(lep: Lep) -> None:
    told = lep.run([str(lep.bin / "lep"), "login", "-c", f"default:{lep.token}", "-u", lep.url], {})
    assert told.code == 0, told
    assert re.search(r"Workspace: default", told.out), told.out
    bare = {"typed": ""}
    # Everything after a login works without an environment: the record of it is what counts.
    for words, wanted in ((["id"], "default"), (["url"], lep.url), (["token"], lep.token)):
        done = lep.run([str(lep.bin / "lep"), "workspace", *words], {}, **bare)
        assert (done.code, done.out.strip()) == (0, wanted), done
    status = lep.run([str(lep.bin / "lep"), "workspace", "status"], {}).out
    assert re.search(r"^id: +default$", status, re.M), status
    assert re.search(r"^state: +(WorkspaceState\.Normal|normal)$", status, re.M), status
    assert [row[0] for row in rows(status, ruled=False)[1:]] == ["cpu (cores)", "memory (MiB)", "gpu (cards)"], status
    listed = lep.run([str(lep.bin / "lep"), "workspace", "list"], {}).out
    assert "Current workspace: default" in listed
    assert [row[1] for row in rows(listed)[1:]] == [lep.url]
    assert lep.token not in listed


def test_the_second_way_and_a_closing_slash(lep: Lep) -> None:
    words = ["workspace", "login", "-i", "default", "-t", lep.token, "--workspace-url", lep.url + "/"]
    done = lep.run([str(lep.bin / "lep"), *words], {})
    assert done.code == 0, done
    assert "Logged in to your workspace default" in done.out
    # Now every path has two slashes.
    assert lep.run([str(lep.bin / "lep"), "job", "list"], {}).code == 0
    assert lep.run([str(lep.bin / "lep"), "logout"], {}).code == 0
    assert lep.run([str(lep.bin / "lep"), "workspace", "id"], {}).code != 0


@pytest.mark.parametrize(
    ("token", "workspace", "said"),
    [(WRONG, "default", "Invalid Workspace Access"), ("", "nobody", "Workspace Not Found")],
)
def test_a_wrong_token_and_another_workspace(lep: Lep, token: str, workspace: str, said: str) -> None:
    url = lep.url.replace("/workspaces/default", f"/workspaces/{workspace}")
    words = ["workspace", "login", "-i", workspace, "-t", token or lep.token, "--workspace-url", url]
    done = lep.run([str(lep.bin / "lep"), *words], {})
    assert done.code == 1, done
    assert said in done.out, done
    # Nothing of it is remembered.
    assert lep.run([str(lep.bin / "lep"), "workspace", "id"], {}).code != 0


def test_a_token_that_ends_says_when(lep: Lep) -> None:
    token = lep.cell.cloud.create_token("short-lived", role="developer", days=5)
    mine = Lep(lep.cell, lep.bin, lep.cache, token)
    done = mine.run([str(mine.bin / "lep"), "login", "-c", f"default:{token}", "-u", mine.url], {})
    assert done.code == 0, done
    listed = mine.run([str(mine.bin / "lep"), "workspace", "list"], {}).out
    assert re.search(r"\b[45] days left", listed), listed
    lep.cell.cloud.delete_token("short-lived")
    gone = mine("job", "list", code=1)
    assert "401" in gone.out + gone.err, gone


def test_nodes_groups_and_shapes(lep: Lep) -> None:
    groups = rows(lep("node", "list").out)[1:]
    assert len(groups) == 1, groups
    assert "test" in groups[0][0].split(), groups
    assert "3" in groups[0][2], "three healthy nodes"
    cores, memory = groups[0][4], groups[0][5]
    assert re.search(r"/ ?\d", cores), groups
    assert "GiB" in memory or "MiB" in memory, groups
    nodes = rows(lep("node", "list-nodes", "-ng", "test").out)[1:]
    assert sorted(row[0].split()[0] for row in nodes) == ["node-1", "node-2", "node-3"], nodes
    assert all("Ready" in " ".join(row) for row in nodes), nodes
    shapes = lep("node", "resource-shape", "-ng", "test").out
    assert "cpu.small" in shapes, shapes
    assert shapes.count("cpu.") >= 2, "several sizes"
    reservations = lep("node", "list-reservations", "test")
    assert "node-1" not in reservations.out


def test_secrets_are_listed_without_their_values(lep: Lep) -> None:
    lep("secret", "create", "-n", "key-one", "-v", "value-one", "-n", "key_two", "-v", "value-two")
    listed = lep("secret", "list").out
    assert [row[0] for row in rows(listed)[1:]] == ["key-one", "key_two"], listed
    assert "value-one" not in listed
    assert "already exists" in lep("secret", "create", "-n", "key-one", "-v", "again", code=1).out
    for path in lep.cell.state.dir.glob("store.db*"):
        assert b"value-two" not in path.read_bytes(), path
    # Our own command sees the same ones.
    assert {"key-one", "key_two"} <= set(lep.cell.lepton("secret", "ls", "--json").json)
    lep("secret", "remove", "-n", "key-one")
    lep("secret", "remove", "-n", "key_two")
    assert rows(lep("secret", "list").out)[1:] == []


def test_templates_are_listed_and_rendered(lep: Lep) -> None:
    found = rows(lep("template", "list").out)[1:]
    kinds = {row[0].split()[-1]: row[1] for row in found}
    assert kinds, "there are public templates"
    assert set(kinds.values()) <= {"job", "pod", "endpoint"}, found
    name = next(name for name, kind in kinds.items() if kind == "job")
    detail = document(lep("template", "get", "-i", name).out)
    assert detail["metadata"]["id_"] == name, detail
    words = ["job", "create", "-n", "from-template", "-t", name, "--run", "echo rendered-run", "-rs", "cpu.small"]
    job = re.search(r"ID: (\S+)", lep(*words).out)
    assert job is not None
    assert lep.cell.cloud.wait(job[1]).state == "succeeded"
    assert "rendered-run" in [line.line for line in lep.cell.cloud.logs(job[1])]
    lep("job", "remove", "-i", job[1])


def test_what_is_not_there_yet_is_listed_and_said(lep: Lep) -> None:
    assert rows(lep("finetune", "list").out)[1:] == []
    missing = lep("finetune", "get", "-i", "nothing", code=1)
    assert "404" in missing.out + missing.err
    assert rows(lep("raycluster", "list").out)[1:] == []
    missing = lep("raycluster", "get", "-n", "nothing", code=1)
    assert "404" in missing.out + missing.err
    path = lep.cache / "ray.json"
    place = {"allowed_dedicated_node_groups": ["test-0001"]}
    group = {"group_name": "g", "resource_shape": "cpu.small", "min_replicas": 1, "affinity": place}
    spec = {"ray_version": "2.49.0", "head_group_spec": group, "worker_group_specs": [group]}
    path.write_text(json.dumps(spec), "utf-8")
    refused = lep("raycluster", "create", "-n", "ray", "-f", str(path), code=1)
    assert "501" in refused.out + refused.err, refused
    path.write_text(json.dumps({"resource_shape": "cpu.small", "trainer": {"id": "t"}}), "utf-8")
    refused = lep("finetune", "create", "-n", "tune", "-f", str(path), code=1)
    assert "501" in refused.out + refused.err, refused
