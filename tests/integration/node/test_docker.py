"""Replicas as containers: an agent as a process of its own, a real engine, and everything killed in every way."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from lepton_ai.node import launch, shim
from lepton_ai.node.identity import Identity
from lepton_ai.node.network import Network
from lepton_ai.node.users import Users
from lepton_ai.spec.base import uuid7
from lepton_ai.spec.replica import ReplicaSpec

WAIT_S = 90.0
SERVE = (
    "import http.server; http.server.test(http.server.SimpleHTTPRequestHandler, port=int(__import__('sys').argv[1]))"
)
SMALL = {"cpu_milli": 500, "memory_mib": 128}


def until(check: Any, timeout_s: float = WAIT_S) -> Any:
    end_s = time.monotonic() + timeout_s
    while not (value := check()):
        assert time.monotonic() < end_s, "did not happen in time"
        time.sleep(0.02)
    return value


class Node:
    """An agent with runtime docker://, and what a test asks of it."""

    def __init__(self, folder: Path, docker: Any, image: str, **options: Any) -> None:
        self.folder, self.docker, self.image, self.options = folder, docker, image, options
        self.process: subprocess.Popen[bytes] | None = None
        self.http = httpx.Client()

    def start(self) -> None:
        argv = [sys.executable, "-m", "lepton_ai.node", f"--dir={self.folder}", "--name=node-1", "--cpu-milli=4000"]
        argv += ["--memory-mib=4096", f"--runtime=docker://{self.docker.path}"]
        argv += [f"--{key.replace('_', '-')}={value}" for key, value in self.options.items()]
        self.process = process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        path = self.folder / "agent.json"
        until(lambda: process.poll() is not None or (path.exists() and f'"pid": {process.pid},' in path.read_text()))
        assert process.poll() is None, process.communicate()[1]
        token, port = (self.folder / "agent.token").read_text(), json.loads(path.read_text())["port"]
        headers = {"Authorization": f"Bearer {token}", "X-Lepton-Epoch": "1"}
        self.http.close()
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=WAIT_S, trust_env=False)

    def kill(self, number: int = signal.SIGKILL) -> None:
        assert self.process is not None
        self.process.send_signal(number)
        self.process.communicate(timeout=WAIT_S)

    def end(self) -> None:
        if self.process is not None and self.process.poll() is None:
            for report in self.reports():
                self.http.delete(f"/v1/replicas/{report['uid']}", params={"grace_s": 0})
            until(lambda: all(report["phase"] == "exited" for report in self.reports()))
            for report in self.reports():
                self.http.post(f"/v1/replicas/{report['uid']}/forget").raise_for_status()
            self.kill(signal.SIGTERM)
        self.http.close()
        for path in self.folder.glob("replicas/*"):
            launch.stop(path, 0)
        self.network().remove()

    def network(self) -> Network:
        return Network(self.folder, "127.0.0.1", Users(self.folder.parent / "users.json"))

    def apply(self, *command: str, **fields: Any) -> str:
        uid = uuid7()
        values: dict[str, Any] = {
            "owner_kind": "job", "owner": "work", "workspace": "default", "image": self.image, "needs_port": False,
            "resources": SMALL, "name": f"r-{uid}", **fields,
        }  # fmt: skip
        spec = ReplicaSpec.model_validate({"uid": uid, "command": command, **values})
        answer = self.http.put(f"/v1/replicas/{uid}", content=spec.model_dump_json())
        assert answer.status_code == 202, answer.text
        return uid

    def serve(self, **fields: Any) -> str:
        values = {"owner_kind": "deployment", "owner": "web", "needs_port": True, **fields}
        return self.apply("python", "-u", "-c", SERVE, "{port}", **values)

    def reports(self) -> list[dict[str, Any]]:
        return list(self.http.get("/v1/usage").json()["replicas"])

    def report(self, uid: str) -> dict[str, Any]:
        return next(one for one in self.reports() if one["uid"] == uid)

    def phase(self, uid: str, *phases: str) -> dict[str, Any]:
        def check() -> dict[str, Any] | None:
            report = self.report(uid)
            assert report["phase"] != "exited" or "exited" in phases, (report, self.lines(uid))
            return report if report["phase"] in phases else None

        return dict(until(check))

    def run(self, *command: str, **fields: Any) -> tuple[dict[str, Any], list[str]]:
        """How it ended and what it said."""
        uid = self.apply(*command, **fields)
        return self.phase(uid, "exited"), self.lines(uid)

    def lines(self, uid: str) -> list[str]:
        text = self.http.get(f"/v1/replicas/{uid}/log").text
        return [json.loads(line)["line"] for line in text.splitlines()]

    def container(self, uid: str) -> dict[str, Any]:
        """What the engine says of a replica's container."""
        return dict(self.docker.inspect(f"lepton-{uid}"))

    def left(self) -> list[str]:
        """The names of this engine's containers."""
        return [name for one in self.docker.containers() for name in one["Names"]]


@pytest.fixture
def node(tmp_path: Path, docker: Any, registry: Any) -> Iterator[Node]:
    one = Node(tmp_path / "node-1", docker, f"{registry.host}/base:1")
    try:
        one.start()
        yield one
    finally:
        one.end()
    assert until(lambda: not one.left()), one.left()


def test_a_replica_serves_is_measured_stopped_and_forgotten(node: Node) -> None:
    uid = node.serve(env={"GREETING": "hello"})
    report = node.phase(uid, "ready")
    assert (report["isolation"], report["image"], report["limits"]) == ("container", "used", "cgroup")
    assert httpx.get(f"http://127.0.0.1:{report['port']}/bin/", trust_env=False).status_code == 200
    until(lambda: node.report(uid)["memory_mib"] > 1)
    labels = node.container(uid)["Config"]["Labels"]
    assert (labels["lepton_ai.uid"], labels["lepton_ai.workspace"], labels["lepton_ai.node"]) == (
        uid, "default", "node-1",
    )  # fmt: skip
    assert node.left() == [f"/lepton-{uid}"]  # what held its network is gone
    node.http.delete(f"/v1/replicas/{uid}", params={"grace_s": 1})
    report = node.phase(uid, "exited")
    # Python as the first process of its container has no handler of TERM, and the kernel spares such a one.
    assert (report["exit"]["signal"], report["reason"]) == (signal.SIGKILL, "stopped")
    assert node.http.post(f"/v1/replicas/{uid}/forget").status_code == 200
    until(lambda: node.left() == [])
    assert not (node.folder / "replicas" / uid).exists()


def test_codes_output_and_the_images_own_command(node: Node) -> None:
    code = "import os, sys; print('out'); print('err', file=sys.stderr); print('ü' * 70000, end=''); sys.exit(7)"
    report, lines = node.run("python", "-u", "-c", code)
    assert (report["exit"]["code"], report["exit"]["signal"]) == (7, None)
    assert {"out", "err"} <= set(lines)
    assert "".join(line for line in lines if "ü" in line) == "ü" * 70000
    assert node.run()[1] == ["of the image"]
    report, lines = node.run("no-such-program")
    assert report["exit"]["code"] == 127
    assert "cannot start the container" in report["reason"]
    assert "no-such-program" in report["reason"]
    report, _ = node.run("python", "-c", "import os; os.kill(os.getpid(), 6); __import__('ctypes').string_at(0)")
    assert report["exit"]["signal"] == signal.SIGSEGV


def test_out_of_memory_is_told(node: Node) -> None:
    report, _ = node.run("python", "-c", "x = bytearray(400 << 20); print(len(x))")
    assert report["exit"]["out_of_memory"]
    assert report["exit"]["signal"] == signal.SIGKILL
    assert "out of memory" in report["reason"]


def test_a_replica_that_heeds_term_ends_by_itself_and_one_that_does_not_is_killed(node: Node) -> None:
    heeds = "import signal, sys, time; signal.signal(15, lambda *_: (print('bye', flush=True), sys.exit(3)));"
    polite = node.apply("python", "-u", "-c", heeds + "print('up'); time.sleep(600)")
    stubborn = node.apply(
        "python", "-u", "-c", "import signal, time; signal.signal(15, 1); print('up'); time.sleep(600)"
    )
    for uid in (polite, stubborn):
        until(lambda uid=uid: node.lines(uid))
    node.http.delete(f"/v1/replicas/{polite}", params={"grace_s": 600})
    node.http.delete(f"/v1/replicas/{stubborn}", params={"grace_s": 1})
    assert node.phase(polite, "exited")["exit"]["code"] == 3
    assert node.lines(polite) == ["up", "bye"]
    assert node.phase(stubborn, "exited")["exit"]["signal"] == signal.SIGKILL
    until(lambda: not node.left())


def test_what_it_is_told_and_what_it_may(node: Node, tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(b"weights")
    ref = {"digest": f"sha256:{hashlib.sha256(b'weights').hexdigest()}", "size_bytes": 7, "path": "m/w.bin"}
    code = (
        "import json, os, socket; status = open('/proc/self/status').read()\n"
        "def read(*paths):\n"
        "    return next(open(path).read().strip() for path in paths if os.path.exists(path))\n"
        "print(json.dumps({'env': dict(os.environ), 'status': status, 'blob': open(os.sys.argv[1]).read(),\n"
        "  'memory': read('/sys/fs/cgroup/memory.max', '/sys/fs/cgroup/memory/memory.limit_in_bytes'),\n"
        "  'cpu': read('/sys/fs/cgroup/cpu.max', '/sys/fs/cgroup/cpu/cpu.cfs_quota_us'),\n"
        "  'pids': read('/sys/fs/cgroup/pids.max', '/sys/fs/cgroup/pids/pids.max'),\n"
        "  'shm': os.statvfs('/dev/shm').f_blocks * os.statvfs('/dev/shm').f_frsize, 'pid': os.getpid(),\n"
        "  'own': socket.gethostbyname(socket.gethostname()),\n"
        "  'blob writable': os.access(os.sys.argv[1], os.W_OK)}))"
    )
    report, lines = node.run(
        "python", "-c", code, "{blobs}/m/w.bin", env={"A": "b"}, needs_port=True, shared_memory_mib=8,
        own={"ME": "address"}, blobs=({"ref": ref, "url": (tmp_path / "source").as_uri()},),
    )  # fmt: skip
    assert report["exit"]["code"] == 0, lines
    seen = json.loads("".join(lines))
    env = seen["env"]
    assert env["LEPTON_JOB_NAME"] == "work"
    assert (env["A"], env["LEPTON_WORKSPACE_ID"], env["LEPTON_AI_NODE"]) == ("b", "default", "node-1")
    assert int(env["PORT"]) == report["port"]
    assert env["ME"] == seen["own"]
    assert not {name for name in env if "TOKEN" in name or name in ("PYTHONPATH", "VIRTUAL_ENV")}
    assert (seen["memory"], seen["pids"], seen["shm"]) == (str(128 << 20), "4096", 8 << 20)
    assert seen["cpu"].split()[0] == "50000"
    assert (seen["blob"], seen["blob writable"], seen["pid"]) == ("weights", False, 1)
    rights = {
        line.split()[0]: line.split()[1]
        for line in seen["status"].splitlines()
        if line.startswith(("Cap", "No", "Sec"))
    }
    assert rights["NoNewPrivs:"] == "1"
    assert rights["Seccomp:"] == "2"
    # NET_RAW, SYS_ADMIN, SYS_PTRACE, SYS_MODULE, MKNOD, NET_ADMIN
    assert not [number for number in (13, 21, 19, 16, 27, 12) if int(rights["CapBnd:"], 16) >> number & 1]


def test_mounts(node: Node, tmp_path: Path) -> None:
    def mount(target: str = "/data", **fields: Any) -> tuple[dict[str, Any], ...]:
        return ({"target": target, **fields},)

    assert (
        node.run("sh", "-c", "echo one > /data/deep/file", mounts=mount("/data/deep", path="/sub"))[0]["exit"]["code"]
        == 0
    )
    report, lines = node.run("sh", "-c", "cat /data/sub/file; echo x > /data/y", mounts=mount(read_only=True))
    assert report["exit"]["code"] != 0
    assert lines[0] == "one"
    assert "Read-only" in lines[1]
    assert node.run("ls", "/data", mounts=mount(), workspace="evil")[1] == []
    (tmp_path / "volume").mkdir()
    (tmp_path / "volume" / "given").write_text("by the operator")
    given = mount(volume="shared", root=str(tmp_path / "volume"))
    assert node.run("cat", "/data/given", mounts=given)[1] == ["by the operator"]
    # A link that a tenant plants leads nowhere.
    assert node.run("python", "-c", "import os; os.symlink('/', '/data/link')", mounts=mount())[0]["exit"]["code"] == 0
    report, _ = node.run("ls", "/data", mounts=mount(path="/link/etc"))
    assert "cannot mount /link/etc" in report["reason"], report
    uids = [report["uid"] for report in node.reports()]
    assert not [path for uid in uids for path in Path("/run/lepton_ai/binds").glob(f"bind-{uid}*")]
    assert not [uid for uid in uids if f"bind-{uid}" in Path("/proc/self/mounts").read_text()]


def test_an_images_user_may_use_its_volume(node: Node, docker: Any, containers: Any, registry: Any) -> None:
    docker.load(containers.image(), "user", "1", "ENV PATH=/bin", "USER user", "WORKDIR /tmp")
    mounts = ({"target": "/data", "path": "/deep/er"},)
    code = "import os; open('/data/x', 'w').write('mine'); print(os.getuid(), os.getcwd(), open('/data/x').read())"
    values = {"image": "user:1", "mounts": mounts}
    assert node.run("python", "-c", code, **values)[1][-1] == "1000 /tmp mine"
    # What it left is its workspace's, and the way there is nobody else's on this machine.
    file = node.folder / "volumes" / "default" / "deep" / "er" / "x"
    assert file.read_text() == "mine"
    assert node.folder.stat().st_mode & 0o077 == 0
    # The image says which signal ends it.
    made = docker.engine.ask("POST", "/containers/create", {"Image": "user:1", "Cmd": ["true"]})["Id"]
    query = {"container": made, "repo": "signal", "tag": "1"}
    docker.engine.ask("POST", "/commit", {"StopSignal": "SIGINT"}, query=query)
    docker.engine.ask("DELETE", f"/containers/{made}")
    code = (
        "import time\ntry:\n    print('up', flush=True); time.sleep(600)\nexcept KeyboardInterrupt:\n    print('bye')"
    )
    uid = node.apply("python", "-u", "-c", code, **{**values, "image": "signal:1"})
    until(lambda: "up" in node.lines(uid))
    node.http.delete(f"/v1/replicas/{uid}", params={"grace_s": 600})
    assert node.phase(uid, "exited")["exit"]["code"] == 0
    assert node.lines(uid)[-1] == "bye"


def test_two_replicas_with_one_port(node: Node) -> None:
    first, second = (node.serve(port=8080, health={"path": "/"}) for _ in range(2))
    ports = {node.phase(uid, "ready")["port"] for uid in (first, second)}
    assert len(ports) == 2
    assert 8080 not in ports
    for port in ports:
        assert httpx.get(f"http://127.0.0.1:{port}/", trust_env=False).status_code == 200
    # They reach each other as they are.
    code = "import sys, urllib.request; print(urllib.request.urlopen('http://' + sys.argv[1] + ':8080/').status)"
    inner = node.report(first)["inner_address"]
    assert node.run("python", "-c", code, inner)[1] == ["200"]
    other = node.run("python", "-c", code, inner, workspace="evil")[0]
    assert other["exit"]["code"] == 1


def test_a_restarted_agent_adopts_and_knows_what_ended(node: Node) -> None:
    lasting, dying = node.serve(), node.serve()
    before = {uid: node.phase(uid, "ready") for uid in (lasting, dying)}
    started = node.container(lasting)["State"]["StartedAt"]
    node.kill()
    os.kill(node.container(dying)["State"]["Pid"], signal.SIGKILL)
    until(lambda: launch.state(node.folder / "replicas" / dying).phase == "exited")
    node.start()
    report = node.report(lasting)
    assert (report["phase"], report["pid"], report["port"]) == (
        "ready",
        before[lasting]["pid"],
        before[lasting]["port"],
    )
    assert node.phase(dying, "exited")["exit"]["signal"] == signal.SIGKILL
    assert node.container(lasting)["State"]["StartedAt"] == started
    until(lambda: node.report(lasting)["memory_mib"] > 1)
    assert httpx.get(f"http://127.0.0.1:{report['port']}/", trust_env=False).status_code == 200


@pytest.mark.parametrize("who", ["shim", "child", "both", "all"])
def test_what_loses_its_watchers_ends(node: Node, who: str) -> None:
    uid = node.serve()
    node.phase(uid, "ready")
    container = Identity.of(node.container(uid)["State"]["Pid"])
    assert container is not None
    if who == "all":
        node.kill()
    for name in ("shim", "child") if who in ("both", "all") else (who,):
        watcher = Identity.read(node.folder / "replicas" / uid / f"{name}.json")
        assert watcher is not None
        watcher.kill(signal.SIGKILL)
    if who == "all":
        node.start()
    report = node.phase(uid, "exited")
    assert report["exit"]["signal"] == signal.SIGKILL if who == "child" else report["reason"].startswith("lost")
    until(lambda: not container.alive())
    until(lambda: not node.left())


def test_a_container_that_is_killed_or_removed_from_outside(node: Node, docker: Any) -> None:
    killed, removed = node.serve(), node.serve()
    for uid in (killed, removed):
        node.phase(uid, "ready")
    docker.engine.ask("POST", f"/containers/lepton-{killed}/kill")
    docker.engine.ask("DELETE", f"/containers/lepton-{removed}", query={"force": 1})
    for uid in (killed, removed):
        assert node.phase(uid, "exited")["exit"]["signal"] == signal.SIGKILL


def test_what_no_replica_has_is_removed_at_the_start(node: Node, docker: Any) -> None:
    uid = node.serve()
    node.phase(uid, "ready")
    node.kill()
    labels = {**node.container(uid)["Config"]["Labels"], "lepton_ai.uid": "nobody"}
    alike = {"Image": "base:1", "Cmd": ["sleep", "600"], "HostConfig": {"NetworkMode": "none"}}
    docker.engine.ask("POST", "/containers/create", {**alike, "Labels": labels}, query={"name": "orphan"})
    docker.engine.ask("POST", "/containers/create", {**alike, "Labels": {}}, query={"name": "stranger"})
    for name in ("orphan", "stranger"):
        docker.engine.ask("POST", f"/containers/{name}/start")
    node.start()
    until(lambda: "/orphan" not in node.left())
    assert {"/stranger", f"/lepton-{uid}"} == set(node.left())
    assert node.report(uid)["phase"] == "ready"
    docker.engine.ask("DELETE", "/containers/stranger", query={"force": 1})


def test_an_exclusive_replica_ends_when_control_is_silent(node: Node) -> None:
    uid = node.apply("sleep", "600", exclusive=True, lease_s=3.0, grace_s=0.5)
    node.phase(uid, "ready", "exited")
    node.kill()
    record = shim.read_record(str(node.folder / "replicas" / uid / "container.json")) or {}
    until(lambda: shim.start_ticks(record["pid"]) != record["start_ticks"])
    node.start()
    assert "lease lost" in node.phase(uid, "exited")["reason"]


def test_an_order_without_an_image_is_refused(node: Node) -> None:
    spec = ReplicaSpec(uid="x", workspace="default", name="x", owner_kind="job", owner="x", command=("true",))
    answer = node.http.put("/v1/replicas/x", content=spec.model_dump_json())
    assert (answer.status_code, answer.json()["code"]) == (501, "Unsupported")
    assert "no image" in answer.json()["message"]


def test_an_agent_that_is_killed_while_it_starts_replicas(node: Node, soak: bool) -> None:
    chance = random.Random(0 if not soak else None)
    for _ in range(40 if soak else 4):
        uids = [node.serve(port=8080) for _ in range(2)]
        time.sleep(chance.uniform(0.0, 1.2))
        node.kill()
        node.start()
        for uid in uids:
            port = node.phase(uid, "ready")["port"]
            assert httpx.get(f"http://127.0.0.1:{port}/", trust_env=False).status_code == 200
        until(lambda uids=uids: sorted(node.left()) == sorted(f"/lepton-{uid}" for uid in uids))
        for uid in uids:
            node.http.delete(f"/v1/replicas/{uid}", params={"grace_s": 0})
        for uid in uids:
            node.phase(uid, "exited")
            node.http.post(f"/v1/replicas/{uid}/forget").raise_for_status()
        until(lambda: not node.left())
    assert not list(Path("/run/lepton_ai/binds").glob(f"bind-{uids[0]}*"))
    assert not node.network().records()
