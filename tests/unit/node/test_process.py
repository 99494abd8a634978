"""What a replica is given: its command filled in, a clean environment, its blobs as files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lepton_ai.errors import Conflict, Unsupported
from lepton_ai.node.process import ProcessRuntime
from lepton_ai.spec.replica import MountOrder, ReplicaSpec


def spec(**fields: Any) -> ReplicaSpec:
    values = {"command": ("serve", "--port={port}", "{blobs}/m.bin"), **fields}
    return ReplicaSpec(uid="u", workspace="acme", name="web-1", owner_kind="deployment", owner="web", **values)


@pytest.fixture
def runtime() -> ProcessRuntime:
    return ProcessRuntime("node-1", use_cgroup=False)


def test_command_and_environment(runtime: ProcessRuntime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENT_SECRET", "x")
    monkeypatch.setenv("PYTHONPATH", "lib")
    monkeypatch.chdir(tmp_path)
    made = runtime.prepare(spec(env={"LANG": "de", "B": "{port}"}), tmp_path / "r", 20001, {})
    assert made.argv == ("serve", "--port=20001", f"{tmp_path}/r/work/m.bin")
    assert made.env["PORT"] == "20001"
    assert made.env["PYTHONPATH"] == str(tmp_path / "lib")
    assert (made.env["LANG"], made.env["B"]) == ("de", "{port}")
    assert made.env["LEPTON_DEPLOYMENT_NAME"] == "web"
    assert "LEPTON_JOB_NAME" not in made.env
    assert "AGENT_SECRET" not in made.env
    assert made.lease_s is None
    assert runtime.prepare(spec(exclusive=True, lease_s=9), tmp_path / "s", None, {}).lease_s == 9


def test_what_a_replica_is_told_of_itself(runtime: ProcessRuntime, tmp_path: Path) -> None:
    own = {"MASTER_ADDR": "address", "MASTER_PORT": "port"}
    given = {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "?"}
    made = runtime.prepare(spec(own=own, env=given), tmp_path / "r", 20001, {})
    # Without a network of its own its address is its node's, which whoever orders it knows.
    assert (made.env["MASTER_ADDR"], made.env["MASTER_PORT"]) == ("10.0.0.1", "20001")


def test_blobs_become_files(runtime: ProcessRuntime, tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(b"abc")
    for _ in range(2):
        runtime.prepare(spec(), tmp_path / "r", 20001, {"a/b/m.bin": tmp_path / "blob"})
    assert (tmp_path / "r/work/a/b/m.bin").read_bytes() == b"abc"
    with pytest.raises(Conflict):
        runtime.prepare(spec(), tmp_path / "r", 20001, {"a/b/m.bin/c": tmp_path / "blob"})


def test_an_image_is_kept_but_a_process_runs(runtime: ProcessRuntime) -> None:
    runtime.check(spec(image="python:3"))
    assert (runtime.image(spec(image="python:3")), runtime.image(spec())) == ("advisory", "")


def test_mounts_need_more_than_a_user_may(runtime: ProcessRuntime) -> None:
    with pytest.raises(Unsupported, match="/data"):
        runtime.check(spec(mounts=(MountOrder(target="/data"),)))


def test_a_replica_sees_its_own_accelerators_whatever_it_asks_for(runtime: ProcessRuntime, tmp_path: Path) -> None:
    asked = {"CUDA_VISIBLE_DEVICES": "0,1,2,3", "A": "b"}
    made = runtime.prepare(spec(devices=(1, 3), env=asked), tmp_path / "r", None, {})
    assert (made.env["CUDA_VISIBLE_DEVICES"], made.env["NVIDIA_VISIBLE_DEVICES"], made.env["A"]) == ("1,3", "1,3", "b")
    assert "CUDA_VISIBLE_DEVICES" not in runtime.prepare(spec(), tmp_path / "s", None, {}).env
