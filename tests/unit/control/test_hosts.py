"""Nodes of a cell by the setting `cluster`: what it may say, and the folders that other hosts are given."""

from __future__ import annotations

import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from lepton_ai.control import hosts
from lepton_ai.control.folder import State
from lepton_ai.errors import Invalid, LeptonError, Unsupported
from lepton_ai.settings import Settings

CLUSTER = "static://10.9.8.1:7070,[fd00::2]:7071"


def state_of(folder: Path, cluster: str = CLUSTER, *, nodes: int = 0, **settings: str) -> State:
    return State(
        name="office",
        uid="u",
        dir=folder,
        nodes=tuple(f"node-{number}" for number in range(1, nodes + 1)),
        api_host="127.0.0.1",
        api_port=1,
        gateway_host="127.0.0.1",
        gateway_port=2,
        created_ms=0,
        settings=Settings(home=folder, cluster=cluster, **settings),  # type: ignore[arg-type]
    )


def test_what_a_cluster_says() -> None:
    assert [(host.name, host.address, host.port) for host in hosts.hosts(CLUSTER)] == [
        ("node-1", "10.9.8.1", 7070),
        ("node-2", "fd00::2", 7071),
    ]
    assert hosts.local(CLUSTER) == 0
    assert hosts.hosts("local://?nodes=2") == ()
    assert (hosts.local("local://"), hosts.local("local://?nodes=2")) == (3, 2)


@pytest.mark.parametrize(
    "cluster",
    [
        "static://",
        "static://10.0.0.1",
        "static://10.0.0.1:",
        "static://10.0.0.1:0",
        "static://10.0.0.1:70000",
        "static://10.0.0.1:7,10.0.0.1:7",
        "static://host.example:7",
        "static://10.0.0.1:7/x",
        "static://a@10.0.0.1:7",
        "static://10.0.0.1:7,",
        "static:10.0.0.1:7",
    ],
)
def test_what_is_no_cluster_is_said(cluster: str) -> None:
    with pytest.raises(Invalid) as caught:
        hosts.hosts(cluster)
    assert "static://10.0.0.1:7070" in str(caught.value.hint)


@pytest.mark.parametrize("cluster", ["ssh://x", "local://?nodes=0", "local://?nodes=many", "local://?nodes=65"])
def test_what_is_no_cluster_of_this_machine_is_said(cluster: str) -> None:
    with pytest.raises((Invalid, Unsupported)):
        hosts.local(cluster)


def test_the_nodes_of_a_cell_do_not_become_fewer_or_others(tmp_path: Path) -> None:
    far, here = state_of(tmp_path), state_of(tmp_path, "local://?nodes=3", nodes=3)
    hosts.check(far, CLUSTER + ",10.9.8.3:1", 0)
    hosts.check(far, "static://10.9.8.7:7070,10.9.8.8:7070", 0)  # a node may move to another host
    hosts.check(here, here.settings.cluster, 4)
    for before, cluster, nodes in (
        (far, "static://10.9.8.1:7070", 0),
        (far, "local://", 3),
        (here, CLUSTER, 0),
        (here, "local://", 2),
        (None, "local://", 0),
        (None, "local://", 65),
        (None, "static://" + ",".join(f"10.0.0.1:{port}" for port in range(1, 66)), 0),
    ):
        with pytest.raises(Invalid):
            hosts.check(before, cluster, nodes)


def test_a_host_is_given_what_its_node_needs_and_nothing_of_another(tmp_path: Path) -> None:
    state = state_of(tmp_path, isolation="uid")
    found = hosts.specs(state)
    assert set(found) == {"node-1", "node-2"}
    first = state.node_dir("node-1")
    assert set(os.listdir(first)) == {"agent.token", "ca.pem", "node.key", "node.pem", "start"}
    assert all((first / name).stat().st_mode & 0o077 == 0 for name in os.listdir(first))
    assert first.stat().st_mode & 0o077 == 0
    assert (tmp_path / "tls" / "ca.key").stat().st_mode & 0o777 == 0o600
    tokens = {(state.node_dir(name) / "agent.token").read_text() for name in found}
    assert len(tokens) == 2
    secret = (tmp_path / "tls" / "ca.key").read_text()
    assert not any(secret in (first / name).read_text() for name in os.listdir(first))
    spec = found["node-2"]
    assert (spec["address"], spec["port"]) == ("fd00::2", 7071)
    assert spec["token_file"] == str(state.node_dir("node-2") / "agent.token")
    assert spec["tls"]["host"] == "node-2.node"
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert hosts.specs(state) == found
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_the_line_that_starts_an_agent_works_where_it_was_copied_to(tmp_path: Path) -> None:
    state = state_of(tmp_path / "cell", isolation="uid")
    hosts.specs(state)
    there = tmp_path / "else where"
    state.node_dir("node-1").rename(there)
    fake = tmp_path / "python"
    fake.write_text('#!/bin/sh\npwd\nfor word in "$@"; do echo "$word"; done\n')
    fake.chmod(0o755)
    done = subprocess.run(
        ["sh", str(there / "start"), "--memory-mib=512"],
        env={"PATH": os.environ["PATH"], "PYTHON": str(fake)},
        capture_output=True,
        text=True,
        check=True,
    )
    where, *words = done.stdout.splitlines()
    assert where == str(there)
    assert words[:4] == ["-m", "lepton_ai.node", "--dir=.", "--name=node-1"]
    assert {"--address=10.9.8.1", "--port=7070", "--isolation=uid", "--runtime=process://"} < set(words)
    assert {"--tls-cert=node.pem", "--tls-key=node.key", "--tls-ca=ca.pem"} < set(words)
    assert words[-1] == "--memory-mib=512"
    given = dict(word.removeprefix("--").split("=", 1) for word in words if word.startswith("--"))
    assert int(given["cpu-milli"]) >= 1000


def test_what_is_said_of_hosts(tmp_path: Path) -> None:
    state = state_of(tmp_path)
    host = hosts.afar(state)[0]
    assert hosts.advice(state, host) == f"copy {tmp_path}/nodes/node-1 to 10.9.8.1 and run there: sh node-1/start"
    assert "api_host" in hosts.lacks(state)
    assert hosts.lacks(replace(state, api_host="10.9.8.9")) == ""
    here = state_of(tmp_path, "local://", nodes=1)
    assert hosts.lacks(here) == ""
    assert hosts.upstream(here) is None
    assert not (tmp_path / "tls").exists()
    gateway = hosts.upstream(state)
    assert gateway is not None
    assert all(Path(path).parent == tmp_path / "tls" and Path(path).exists() for path in (gateway.ca, gateway.cert))
    assert Path(gateway.key).stat().st_mode & 0o077 == 0


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    state = state_of(tmp_path)
    (tmp_path / "nodes").write_text("")
    with pytest.raises(LeptonError) as caught:
        hosts.specs(state)
    assert caught.value.hint
