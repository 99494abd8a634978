"""A hostile workload of one workspace against a cell and another workspace: at isolation `none` every attack is won,
at `uid` none is. So each of these would fail without its defence.

The boundaries are those of the table in SECURITY.md.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil
import pytest
from cell import Cell, eventually, service

from lepton_ai import cloud
from lepton_ai.client import Cloud
from lepton_ai.node.enclose import able
from lepton_ai.node.identity import Identity
from lepton_ai.node.network import Network
from lepton_ai.node.users import Users
from lepton_ai.settings import load
from lepton_ai.store import Store
from lepton_ai.tenancy import Access
from lepton_ai.tenancy.workspaces import Workspaces

SECRET = "the-victims-secret"
WORK = "the-victims-work"
ATTACK = Path(__file__).with_name("attack.py").read_text("utf-8")
SMALL = {"cpu_milli": 50, "memory_mib": 128}
# Serves, and leaves something worth stealing in its work folder.
VICTIM = (
    "import http.server, os, pathlib, sys; os.umask(0); pathlib.Path('loot').write_text(sys.argv[2]);"
    "os.chmod('.', 0o777);"
    "print(sys.argv[2], flush=True);"
    "http.server.ThreadingHTTPServer(('', int(sys.argv[1])), http.server.SimpleHTTPRequestHandler).serve_forever()"
)


@pytest.fixture(scope="module", params=["none", "uid"])
def stage(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """A cell with a victim in workspace `default` and a token of workspace `hostile`."""
    level = str(request.param)
    home = tmp_path_factory.mktemp(level)
    why = able() or Network(home, "127.0.0.1", Users(home / "users.json")).available()
    if why:
        pytest.skip(f"isolation uid is not possible here: {why}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LEPTON_AI_HOME", str(home))
        patch.setenv("LEPTON_AI_ISOLATION", level)
        try:
            with cloud.up("test", nodes=2) as connection:
                state = cloud.state("test")
                assert state is not None
                cell = Cell(connection, state, home)
                with Store.open(state.store_url) as store:
                    Workspaces(store, load({"cell": "test"})).add("hostile", force=True)
                    token, _ = Access(store).issue("hostile", "owner", "hostile")
                with Cloud(state.api_url, token, "hostile") as hostile:
                    yield Stage(level, cell, hostile)
                cables = [one.name for one in networks(cell)]
                assert bool(cables) == (level == "uid")
        finally:
            cloud.down("test", purge=True)
    assert not cell.processes()
    assert not {*cables} & {*os.listdir("/sys/class/net")}
    tables = subprocess.run(["nft", "list", "tables"], capture_output=True, text=True, check=True).stdout
    assert not [one.table for one in nodes(cell) if one.table in tables]


class Stage:
    """Who attacks whom."""

    def __init__(self, level: str, cell: Cell, hostile: Cloud) -> None:
        self.level, self.cell, self.hostile = level, cell, hostile
        command = [sys.executable, "-c", VICTIM, "{port}", WORK]
        template = {"command": command, "env": {"KEY": SECRET}, "health": {"path": "/"}, "resources": SMALL}
        cell.cloud.deploy({"name": "victim", "template": template})
        self.replica = next(one for one in cell.cloud.replicas("victim") if one.phase == "ready")
        self.folder = next(cell.state.dir.glob(f"nodes/*/replicas/{self.replica.uid}"))
        logs = self.folder / "log"
        eventually(lambda: any(WORK in path.read_text() for path in logs.glob("*.log")), "its first line is written")
        child = Identity.read(self.folder / "child.json")
        assert child is not None
        self.pid = child.pid
        volume = self.folder.parents[1] / "volumes" / "default"
        volume.mkdir(parents=True, exist_ok=True)
        (volume / "loot").write_text(WORK)
        self.volume = volume / "loot"

    def attack(self, plan: dict[str, list[Any]]) -> dict[str, str]:
        """What each attack got; empty where it got nothing."""
        template = {"command": [sys.executable, "-c", ATTACK, json.dumps(plan)], "resources": SMALL}
        job = self.hostile.run({"name": "attack", "template": template})
        done = self.hostile.wait(job.name)
        assert done.state == "succeeded", [line.line for line in self.hostile.logs(job.name)]

        def said() -> list[str]:
            lines = [line.line for line in self.hostile.logs(job.name)]
            return lines if len(lines) == len(plan) else []

        lines = eventually(said, "all it said is in its log")
        answers = {answer["attack"]: answer for answer in map(json.loads, lines)}
        assert set(answers) == set(plan), lines
        return {name: answer["found"] if answer["won"] else "" for name, answer in answers.items()}

    def judge(self, plan: dict[str, list[Any]]) -> None:
        """At `none` every attack of the plan is won, at `uid` none."""
        got = self.attack(plan)
        if self.level == "none":
            assert all(got.values()), {name for name, found in got.items() if not found}  # else the test shows nothing
        else:
            assert not any(got.values()), {name: found for name, found in got.items() if found}


def test_the_cells_own_files(stage: Stage) -> None:
    folder = stage.cell.state.dir
    stage.judge(
        {
            "the database": ["read", str(folder / "store.db"), "SQLite"],
            "the key of all secrets": ["read", str(folder / "secret.key")],
            "the owner's token": ["read", str(folder / "token")],
            "cell.json": ["read", str(folder / "cell.json"), "gateway_port"],
            "the cell's folder": ["listing", str(folder / "system")],
            "an agent's token": ["read", str(folder / "nodes" / "node-1" / "agent.token")],
            "the gateway's files": ["read_any", f"{folder}/gateway/**/*"],
            "the control plane's log": ["read_any", f"{folder}/system/control/log/*.log"],
            "the package, to change it": ["write", _package_file()],
        }
    )


def test_another_workspaces_files(stage: Stage) -> None:
    stage.judge(
        {
            "its work folder": ["listing", str(stage.folder / "work")],
            "a file in it": ["read", str(stage.folder / "work" / "loot"), WORK],
            "its order, with its secrets": ["read", str(stage.folder / "replica.json"), SECRET],
            "its log": ["read_any", f"{stage.folder}/log/*.log", WORK],
            "its volume": ["read", str(stage.volume), WORK],
        }
    )


def test_another_workspaces_processes(stage: Stage) -> None:
    control = Identity.read(stage.cell.state.system_dir("control") / "child.json")
    assert control is not None
    stage.judge(
        {
            "its environment": ["read", f"/proc/{stage.pid}/environ", SECRET],
            "its command line": ["read", f"/proc/{stage.pid}/cmdline", WORK],
            "its memory": ["memory_of", stage.pid],
            "a signal to it": ["send_signal", stage.pid],
            "a signal to the control plane": ["send_signal", control.pid],
            "a hold on it": ["trace", stage.pid],
            "its files through /proc": ["listing", f"/proc/{stage.pid}/cwd/"],
            "who else runs here": ["others"],
        }
    )


def test_ports(stage: Stage) -> None:
    state = stage.cell.state
    agent = json.loads((state.node_dir("node-1") / "agent.json").read_text())
    plan: dict[str, list[Any]] = {
        "the API": ["tcp", "127.0.0.1", state.api_port],
        "the gateway": ["tcp", "127.0.0.1", state.gateway_port],
        "an agent": ["tcp", "127.0.0.1", agent["port"]],
        "another's replica at its host port": ["tcp", "127.0.0.1", stage.replica.port],
    }
    with closing(socket.socket()) as private, closing(socket.socket(socket.AF_UNIX)) as abstract:
        private.bind(("0.0.0.0", 0))
        private.listen(64)
        name = f"@lepton_ai-test-{os.getpid()}"
        abstract.bind("\0" + name[1:])
        abstract.listen(64)
        plan["an abstract socket of the host"] = ["unix", name]
        port = private.getsockname()[1]
        for address in addresses():
            plan[f"a service of the host at {address}"] = ["tcp", address, port]
        stage.judge(plan)
        if stage.level == "uid":
            inner = next(one.address for one in networks(stage.cell) if one.uid == stage.replica.uid)
            pool = inner.rsplit(".", 2)[0] + ".0.1"
            got = stage.attack(
                {
                    "another's replica at its own address": ["tcp", inner, stage.replica.port],
                    "a service at the host's end of the cable": ["tcp", pool, port],
                    "the API there": ["tcp", pool, state.api_port],
                }
            )
            assert not any(got.values()), got
            # It is reached from where it should be: the host, and thereby the gateway.
            with closing(socket.create_connection((inner, stage.replica.port), 10)):
                pass


def test_limits_and_rights(stage: Stage) -> None:
    if stage.replica.limits != "cgroup":
        pytest.skip("control groups cannot be made here")
    spec = json.loads((stage.folder / "spec.json").read_text())
    open_to_all = stage.cell.home.parent / "neighbour"
    open_to_all.write_text("not yours")
    stage.judge(
        {
            "the rights of root": ["become_root"],
            "more memory": ["unlimit"],
            "another's control group": ["join", f"{spec['cgroup'][0]}/cgroup.procs"],
            "a file of the host": ["write", "/etc/lepton_ai-attack"],
            "a file that the whole host may read": ["read", str(open_to_all)],
        }
    )
    Path("/etc/lepton_ai-attack").unlink(missing_ok=True)


def test_two_replicas_with_one_fixed_port_on_a_host(stage: Stage) -> None:
    if stage.level != "uid":
        pytest.skip("without a network of its own, a port is the host's")
    command = [
        "bash",
        "-c",
        "hostname -I > /dev/null 2>&1; echo $LEPTON_REPLICA_NAME > index.html; exec python -m http.server 8080",
    ]
    template = {"command": command, "port": 8080, "health": {"path": "/"}, "resources": SMALL}
    cell = stage.cell
    cell.cloud.deploy({"name": "fixed", "replicas": {"min": 2, "max": 2}, "template": template})
    replicas = [one for one in cell.cloud.replicas("fixed") if one.phase == "ready"]
    assert len({one.port for one in replicas}) == 2
    assert {one.isolation for one in replicas} == {"uid"}
    import httpx

    names = {one.name for one in replicas}
    seen: set[str] = set()

    def all_answer() -> bool:
        seen.add(httpx.get(cell.url("fixed"), trust_env=False).raise_for_status().text.strip())
        return seen == names

    eventually(all_answer, "both answer through the gateway")
    cell.cloud.delete("fixed")


def test_a_service_that_listens_on_its_loopback_is_reached_too(stage: Stage) -> None:
    source = Path(__file__).with_name("service.py").read_text("utf-8")
    template = service("one", command=[sys.executable, "-c", source, "{port}", "one"], resources=SMALL)
    stage.cell.cloud.deploy({"name": "loop", "template": template})
    assert stage.cell.cloud.call("loop", {"value": 7})["echo"] == 7
    stage.cell.cloud.delete("loop")


def addresses() -> list[str]:
    """Every IPv4 address of this host."""
    found = [one.address for links in psutil.net_if_addrs().values() for one in links if one.family == socket.AF_INET]
    return sorted({address for address in found if not address.startswith("10.231.")})


def networks(cell: Cell) -> list[Any]:
    """What is recorded of the cell's replicas: name, uid, address."""
    return [record for one in nodes(cell) for record in one.records()]


def nodes(cell: Cell) -> list[Network]:
    users = Users(cell.state.dir / "nodes" / "users.json")
    return [Network(cell.state.node_dir(name), "127.0.0.1", users) for name in cell.state.nodes]


def _package_file() -> str:
    import lepton_ai

    return str(Path(lepton_ai.__file__))
