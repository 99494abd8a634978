"""A cell of containers: a deployment, a job of two workers and a pod run from an image that only a registry has; and a
hostile container gets nothing of what a process of an unguarded cell would get.

The attacks are those of test_isolation.py, where each is shown to succeed without a defence.
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest
from cell import Cell, eventually
from lep import HTTP, Lep, rows
from test_isolation import ATTACK, SECRET, VICTIM, WORK, addresses, nodes
from test_lep_jobs import MEET, created, reaches
from test_lep_pods import said

from lepton_ai import cloud
from lepton_ai.client import Cloud
from lepton_ai.errors import Failed, LeptonError
from lepton_ai.node.identity import Identity
from lepton_ai.settings import load
from lepton_ai.store import Store
from lepton_ai.tenancy import Access
from lepton_ai.tenancy.workspaces import Workspaces

SMALL = {"cpu_milli": 300, "memory_mib": 128}
SERVE = """
import http.server, os
class Say(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        text = (os.environ.get('A', '') + ' ' + os.environ['LEPTON_REPLICA_NAME']).encode()
        self.send_response(200); self.send_header('content-length', str(len(text))); self.end_headers()
        self.wfile.write(text)
http.server.ThreadingHTTPServer(('', int(os.environ['PORT'])), Say).serve_forever()
"""


@pytest.fixture(scope="module")
def containers() -> Any:
    """The module `tests/containers.py`; skips where there is no engine."""
    spec = importlib.util.spec_from_file_location("tests_containers", Path(__file__).parents[1] / "containers.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if why := module.missing():
        pytest.skip(why)
    return module


class Stage:
    """An engine that has nothing, two registries that have the image `base`, one of which wants a login."""

    def __init__(self, containers: Any) -> None:
        self.containers = containers
        self.docker, self.open, self.locked = (
            containers.Docker(),
            containers.Registry(),
            containers.Registry(login=True),
        )

    def start(self) -> None:
        for one in (self.docker, self.open, self.locked):
            one.start()
        self.docker.load(self.containers.image(), "base", "1", "ENV PATH=/bin")
        self.docker.push("base:1", f"{self.open.host}/base", "1")
        self.docker.load(self.containers.small(), "small", "1", 'CMD ["/none"]')
        self.docker.push("small:1", f"{self.locked.host}/secret", "1", self.containers.AUTH)
        for name in self.docker.images():
            self.docker.remove(name)

    def end(self) -> None:
        for one in (self.docker, self.open, self.locked):
            one.end()

    @property
    def image(self) -> str:
        return f"{self.open.host}/base:1"


@pytest.fixture(scope="module")
def stage(containers: Any) -> Iterator[Stage]:
    made = Stage(containers)
    try:
        made.start()
        yield made
    finally:
        made.end()


@pytest.fixture(scope="module")
def cell(stage: Stage, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cell]:
    """A cell of two nodes that share the engine."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LEPTON_AI_HOME", str(home))
        patch.setenv("LEPTON_AI_RUNTIME", f"docker://{stage.docker.path}")
        connection = cloud.up("test", nodes=2)
        state = cloud.state("test")
        assert state is not None
        made = Cell(connection, state, home)
        try:
            yield made
        finally:
            connection.close()
            cloud.down("test", purge=True)
            left = made.processes()
    assert not left, left
    assert stage.docker.containers() == []
    assert not {name for name in stage.docker.images() if "base" in name}, "fetched by the cell, gone with it"


def template(stage: Stage, *command: str, **more: Any) -> dict[str, Any]:
    return {"image": stage.image, "command": list(command), "resources": SMALL, **more}


def test_a_deployment_and_a_job_by_our_own_client(cell: Cell, stage: Stage) -> None:
    serve = template(stage, "python", "-c", SERVE, env={"A": "one"}, health={"path": "/"}, port=8080, idempotent=True)
    cell.cloud.deploy({"name": "web", "replicas": {"min": 2, "max": 2}, "template": serve})
    copies = cell.cloud.replicas("web")
    assert {(one.isolation, one.limits) for one in copies} == {("container", "cgroup")}
    assert len({one.port for one in copies}) == 2, "both listen on 8080"
    seen: set[str] = set()

    def both() -> bool:
        seen.add(HTTP.get(cell.url("web")).raise_for_status().text)
        return len(seen) == 2

    eventually(both, "both answer through the gateway")
    cell.cloud.deploy({"name": "web", "replicas": {"min": 1, "max": 1}, "template": {**serve, "env": {"A": "two"}}})
    assert HTTP.get(cell.url("web")).text.startswith("two ")
    job = cell.cloud.run({"name": "meet", "template": template(stage, "sh", "-c", MEET), "workers": 2})
    assert cell.cloud.wait(job.name).state == "succeeded"
    assert sorted(line.line for line in cell.cloud.logs(job.name)) == ["heard ok", "met worker-1"]
    cell.cloud.delete("web")


def test_the_cell_is_restarted_and_the_containers_run_on(cell: Cell, stage: Stage) -> None:
    cell.cloud.deploy({"name": "last", "template": template(stage, "python", "-c", SERVE, health={"path": "/"})})
    before = next(one for one in cell.cloud.replicas("last") if one.phase == "ready")
    started = stage.docker.inspect(f"lepton-{before.uid}")["State"]["StartedAt"]
    for name in ("control", *cell.state.nodes):
        child = Identity.read(cell.state.system_dir(name) / "child.json")
        assert child is not None
        child.kill(signal.SIGKILL)
    eventually(lambda: all(node.state == "ready" for node in cell.cloud.nodes()), "the nodes are back")
    after = next(one for one in cell.cloud.replicas("last") if one.phase == "ready")
    assert (after.uid, after.pid) == (before.uid, before.pid)
    assert stage.docker.inspect(f"lepton-{before.uid}")["State"]["StartedAt"] == started
    assert HTTP.get(cell.url("last")).status_code == 200
    cell.cloud.delete("last")


def test_what_cannot_run_says_why(cell: Cell, stage: Stage) -> None:
    for words, image in (
        ("has no such image", f"{stage.open.host}/none:1"),
        ("wants a login", f"{stage.locked.host}/secret:1"),
        ("there is no host registry.invalid", "registry.invalid/base:1"),
    ):
        with pytest.raises(Failed, match=words):
            cell.cloud.deploy({"name": "wrong", "template": {"image": image, "command": ["true"], "resources": SMALL}})
        cell.cloud.delete("wrong")
        eventually(lambda: "wrong" not in [row.name for row in cell.cloud.ps()], "it is gone")
    with pytest.raises(LeptonError, match=r"template\.image is missing"):
        cell.cloud.deploy({"name": "wrong", "template": {"command": ["true"], "resources": SMALL}})


def test_an_image_behind_a_login(cell: Cell, stage: Stage, lep: Lep) -> None:
    body = {"registry": stage.locked.host, "username": stage.containers.USER, "password": stage.containers.PASSWORD}
    headers = {"authorization": f"Bearer {lep.token}"}
    HTTP.put(f"{lep.url}/x/registries/mine", json=body, headers=headers).raise_for_status()
    private = {"image": f"{stage.locked.host}/secret:1", "image_pull_secrets": ["mine"], "resources": SMALL}
    job = cell.cloud.run({"name": "private", "template": private})
    # It holds no program, and so it cannot start: but it was fetched.
    done = cell.cloud.wait(job.name)
    assert done.state == "failed"
    assert "/none" in cell.cloud.replicas(job.name)[0].reason
    assert stage.containers.PASSWORD not in json.dumps(lep.ask("/jobs"))


def test_an_endpoint_by_lep(lep: Lep, stage: Stage) -> None:
    words = ["-n", "page", "--container-image", stage.image, "--container-port", "8080", "-e", "A=alice"]
    lep("endpoint", "create", *words, "-rs", "cpu.small", "--container-command", f'exec python -c "{SERVE}"')
    eventually(lambda: lep.ask("/deployments/page")["status"]["state"] == "Ready", "it is ready")
    status = lep.ask("/deployments/page")["status"]
    assert HTTP.get(status["endpoint"]["external_endpoint"]).text.startswith("alice page-")
    row = next(row for row in rows(lep("endpoint", "list").out) if row[0].split()[:1] == ["page"])
    assert row[2] == "Ready"
    assert any("GET / HTTP" in line.line for line in lep.cell.cloud.logs("page"))
    lep("endpoint", "remove", "-n", "page")


def test_a_job_of_two_workers_by_lep(lep: Lep, stage: Stage) -> None:
    words = ["-n", "pair", "-rs", "cpu.small", "--container-image", stage.image, "-w", "2", "--command", MEET]
    job = created(lep("job", "create", *words, "--shared-memory-size", "64"))
    reaches(lep, job, "Completed")
    text = lep("job", "log", "-i", job).out
    assert "met worker-1" in text
    shown = lep.ask(f"/jobs/{job}")
    assert (shown["spec"]["container"]["image"], shown["status"]["image"]) == (stage.image, "used")
    assert "ImageNotUsed" not in lep("job", "events", "-i", job).out
    lep("job", "remove", "-i", job)


def test_a_pod_by_lep(lep: Lep, stage: Stage) -> None:
    answers = (
        'exec python -c "import socketserver\n'
        "class Say(socketserver.BaseRequestHandler):\n"
        "    def handle(self): self.request.sendall(b'pod')\n"
        "socketserver.ThreadingTCPServer(('', 18888), Say).serve_forever()\""
    )
    words = [
        "-n",
        "desk",
        "-rs",
        "cpu.small",
        "--container-image",
        stage.image,
        "--container-port",
        "18888:tcp:hostmap",
    ]
    lep("pod", "create", *words, "--container-command", answers)
    eventually(lambda: lep.ask("/deployments/desk")["status"]["state"] == "Ready", "it is ready")
    port = lep.ask("/deployments/desk")["status"]["container_port_status"][0]["host_port"]
    eventually(lambda: said(port) == "pod", "it answers where the list says")
    lep("pod", "stop", "-n", "desk")
    eventually(lambda: said(port).startswith("not reached"), "nobody answers")
    lep("pod", "remove", "-n", "desk")


# --- the boundary -----------------------------------------------------------------------------------------------------


class Boundary:
    """A victim in workspace `default`, and a hostile container of another workspace."""

    def __init__(self, cell: Cell, stage: Stage, hostile: Cloud) -> None:
        self.cell, self.stage, self.hostile = cell, stage, hostile
        served = template(stage, "python", "-c", VICTIM, "{port}", WORK, env={"KEY": SECRET}, health={"path": "/"})
        served["mounts"] = [{"volume": "local", "path": "/", "target": "/mnt/keep"}]
        cell.cloud.deploy({"name": "victim", "template": served})
        self.replica = next(one for one in cell.cloud.replicas("victim") if one.phase == "ready")
        self.folder = next(cell.state.dir.glob(f"nodes/*/replicas/{self.replica.uid}"))
        self.pid = int(stage.docker.inspect(f"lepton-{self.replica.uid}")["State"]["Pid"])
        self.volume = self.folder.parents[1] / "volumes" / "default"
        (self.volume / "loot").write_text(WORK)

    def attack(self, plan: dict[str, list[Any]], **more: Any) -> dict[str, str]:
        """What each attack got; empty where it got nothing."""
        job = self.hostile.run(
            {"name": "attack", "template": template(self.stage, "python", "-c", ATTACK, json.dumps(plan), **more)}
        )
        done = self.hostile.wait(job.name)
        lines = [line.line for line in self.hostile.logs(job.name)]
        assert done.state == "succeeded", lines
        answers = {answer["attack"]: answer for answer in map(json.loads, lines)}
        assert set(answers) == set(plan), lines
        return {name: answer["found"] for name, answer in answers.items() if answer["won"]}


@pytest.fixture(scope="module")
def boundary(cell: Cell, stage: Stage) -> Iterator[Boundary]:
    with Store.open(cell.state.store_url) as store:
        Workspaces(store, load({"cell": "test"})).add("hostile")  # not forced: containers keep it apart
        token, _ = Access(store).issue("hostile", "owner", "hostile")
    with Cloud(cell.state.api_url, token, "hostile") as hostile:
        yield Boundary(cell, stage, hostile)
    cell.cloud.delete("victim")


def outside(boundary: Boundary) -> dict[str, list[Any]]:
    """What root gets on this machine when it is in no container."""
    return {
        "the engine's socket": ["unix", boundary.stage.docker.path],
        "the engine's files": ["listing", f"{boundary.stage.docker.folder}/data"],
        "the host's accounts": ["read", "/etc/shadow"],
        "the kernel's settings": ["write", "/proc/sys/kernel/core_pattern"],
        "a device of its own making": ["device"],
        "a file system of its own": ["mount"],
        "a namespace of users": ["namespace"],
    }


def test_root_outside_of_a_container_wins(boundary: Boundary) -> None:
    plan = outside(boundary)
    argv = ["unshare", "--mount", sys.executable, "-c", ATTACK, json.dumps(plan)]
    done = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=60, stdin=subprocess.DEVNULL)
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert {answer["attack"] for answer in answers if answer["won"]} == set(plan), answers


def test_files_of_the_cell_and_of_others(boundary: Boundary) -> None:
    cell = boundary.cell.state
    plan: dict[str, list[Any]] = {
        **outside(boundary),
        "the database": ["read", str(cell.dir / "store.db")],
        "the key of all secrets": ["read", str(cell.dir / "secret.key")],
        "the owner's token": ["read", str(cell.dir / "token")],
        "the cell's folder": ["listing", str(cell.dir)],
        "the gateway's files": ["read_any", f"{cell.dir}/gateway/**/*"],
        "another's order": ["read", str(boundary.folder / "replica.json")],
        "another's container, as it was ordered": ["read", str(boundary.folder / "contain.json")],
        "another's log": ["read_any", f"{boundary.folder}/log/*.log"],
        "another's volume": ["read", str(boundary.volume / "loot")],
        "the engine's usual socket": ["unix", "/var/run/docker.sock"],
        "the host's disks": ["read_any", "/dev/[svx][dv]*"],
        "the kernel's memory": ["read", "/proc/kcore"],
        "the kernel's trigger": ["write", "/proc/sysrq-trigger"],
        "a control group's release agent": ["write", "/sys/fs/cgroup/memory/release_agent"],
    }
    assert boundary.attack(plan) == {}
    # As root of its container it does get at its own: so the plan is able to win something.
    own = boundary.attack({"its own passwd": ["read", "/etc/passwd"], "its own root": ["write", "/new"]})
    assert set(own) == {"its own passwd", "its own root"}


def test_processes_of_others(boundary: Boundary) -> None:
    control = Identity.read(boundary.cell.state.system_dir("control") / "child.json")
    assert control is not None
    plan: dict[str, list[Any]] = {
        "its environment": ["read", f"/proc/{boundary.pid}/environ", SECRET],
        "any environment with the secret": ["read_any", "/proc/*/environ", SECRET],
        "its memory": ["memory_of", boundary.pid],
        "a signal to it": ["send_signal", boundary.pid],
        "a signal to the control plane": ["send_signal", control.pid],
        "a hold on it": ["trace", boundary.pid],
        "its files through /proc": ["listing", f"/proc/{boundary.pid}/root/"],
        "who else runs here": ["others"],
        "more memory": ["unlimit"],
    }
    assert boundary.attack(plan) == {}


def test_ports_of_the_host_and_of_others(boundary: Boundary) -> None:
    state = boundary.cell.state
    agent = json.loads((state.node_dir("node-1") / "agent.json").read_text())
    inner = next(record.address for one in nodes(boundary.cell) for record in one.records()
                 if record.uid == boundary.replica.uid)  # fmt: skip
    pool = inner.rsplit(".", 2)[0] + ".0.1"
    with closing(socket.socket()) as private, closing(socket.socket(socket.AF_UNIX)) as abstract:
        private.bind(("0.0.0.0", 0))
        private.listen(64)
        abstract.bind(f"\0lepton_ai-container-{os.getpid()}")
        abstract.listen(64)
        port = private.getsockname()[1]
        plan: dict[str, list[Any]] = {
            "the API": ["tcp", "127.0.0.1", state.api_port],
            "the gateway": ["tcp", "127.0.0.1", state.gateway_port],
            "an agent": ["tcp", "127.0.0.1", agent["port"]],
            "another's replica at its host port": ["tcp", "127.0.0.1", boundary.replica.port],
            "another's replica at its own address": ["tcp", inner, boundary.replica.port],
            "the API at the host's end of the cable": ["tcp", pool, state.api_port],
            "an abstract socket of the host": ["unix", f"@lepton_ai-container-{os.getpid()}"],
            "raw packets": ["raw"],
            "what clouds tell their machines": ["tcp", "169.254.169.254", 80],
            **{f"a service of the host at {address}": ["tcp", address, port] for address in addresses()},
        }
        assert boundary.attack(plan) == {}
    # It is reached from where it should be.
    answer = httpx.get(boundary.cell.url("victim"), trust_env=False)
    assert answer.status_code == 200


def test_a_link_in_a_volume_leads_nowhere(boundary: Boundary) -> None:
    mounts = [{"volume": "local", "path": "/", "target": "/mnt/own"}]
    assert boundary.attack({"a link": ["link", "/", "/mnt/own/out"]}, mounts=mounts)
    out = [{"volume": "local", "path": "/out/etc", "target": "/mnt/host"}]
    job = boundary.hostile.run({"name": "out", "template": template(boundary.stage, "ls", "/mnt/host", mounts=out)})
    assert boundary.hostile.wait(job.name).state == "failed"
    assert "cannot mount" in boundary.hostile.replicas(job.name)[0].reason
