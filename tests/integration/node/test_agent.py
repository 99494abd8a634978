"""The agent as a process of its own, over HTTP, with real replicas that are killed in every way."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from lepton_ai.node import launch
from lepton_ai.node.identity import Identity
from lepton_ai.spec.base import uuid7
from lepton_ai.spec.replica import ReplicaSpec

WAIT_S = 30.0
SERVER = (
    "from http.server import BaseHTTPRequestHandler, HTTPServer\n"
    "import sys; HTTPServer(('127.0.0.1', int(sys.argv[1])), BaseHTTPRequestHandler).serve_forever()\n"
)
# `python -m lepton_ai.node`, with another heartbeat.
AGENT = (
    "import os, sys; from lepton_ai.node import __main__, server\n"
    "server.HEARTBEAT_S = float(sys.argv.pop(1)); os._exit(__main__.main())\n"
)


def until(check: Callable[[], Any], timeout_s: float = WAIT_S) -> Any:
    end_s = time.monotonic() + timeout_s
    while not (value := check()):
        assert time.monotonic() < end_s, "did not happen in time"
        time.sleep(0.01)
    return value


class Node:
    """An agent process, and what a test asks of it."""

    def __init__(self, folder: Path, heartbeat_s: float = 0.5) -> None:
        self.folder = folder
        self.heartbeat_s = heartbeat_s
        self.process: subprocess.Popen[bytes] | None = None
        self.http = httpx.Client(timeout=WAIT_S)

    def start(self) -> None:
        env = {**os.environ, "SECRET_OF_AGENT": "x"}
        self.process = subprocess.Popen(self.argv(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=env)
        process, path = self.process, self.folder / "agent.json"
        until(lambda: process.poll() is not None or (path.exists() and f'"pid": {process.pid},' in path.read_text()))
        assert process.poll() is None, process.communicate()[1]
        record = json.loads(path.read_text())
        token = (self.folder / "agent.token").read_text()
        headers = {"Authorization": f"Bearer {token}", "X-Lepton-Epoch": "1"}
        self.http.close()
        self.http = httpx.Client(
            base_url=f"http://127.0.0.1:{record['port']}", headers=headers, timeout=WAIT_S, trust_env=False
        )

    def argv(self) -> list[str]:
        argv = [sys.executable, "-c", AGENT, str(self.heartbeat_s), "--dir", str(self.folder), "--name", "node-1"]
        return [*argv, "--cpu-milli", "2000", "--memory-mib", "1024"]

    def kill(self, number: int = signal.SIGKILL) -> None:
        assert self.process is not None
        self.process.send_signal(number)
        self.process.communicate(timeout=WAIT_S)

    def end(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.kill(signal.SIGTERM)
        self.http.close()
        if (self.folder / "replicas").exists():
            for path in (self.folder / "replicas").iterdir():
                launch.stop(path, 0)

    def apply(self, command: tuple[str, ...], **fields: Any) -> str:
        uid = uuid7()
        values: dict[str, Any] = {"owner_kind": "deployment", "owner": "web", "workspace": "default", **fields}
        spec = ReplicaSpec(uid=uid, name="web-1", command=command, **values)
        answer = self.http.put(f"/v1/replicas/{uid}", content=spec.model_dump_json())
        assert answer.status_code == 202, answer.text
        return uid

    def serve(self, **fields: Any) -> str:
        return self.apply((sys.executable, "-S", "-c", SERVER, "{port}"), **fields)

    def run(self, code: str, **fields: Any) -> str:
        return self.apply((sys.executable, "-S", "-c", code), needs_port=False, owner_kind="job", **fields)

    def report(self, uid: str) -> dict[str, Any]:
        replicas = self.http.get("/v1/usage").json()["replicas"]
        return next(one for one in replicas if one["uid"] == uid)

    def phase(self, uid: str, phase: str) -> dict[str, Any]:
        def check() -> dict[str, Any] | None:
            report = self.report(uid)
            return report if report["phase"] == phase else None

        return until(check)


@pytest.fixture(scope="module")
def idle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """One agent for all requests that it refuses."""
    one = Node(tmp_path_factory.mktemp("idle") / "node-1")
    one.start()
    yield one
    one.end()


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    one = Node(tmp_path / "node-1")
    one.start()
    yield one
    one.end()


def test_a_replica_serves_is_stopped_and_forgotten(node: Node) -> None:
    uid = node.serve(env={"GREETING": "hello"})
    report = node.phase(uid, "ready")
    assert 20_000 <= report["port"] < 32_000
    with socket.create_connection((report["address"], report["port"]), timeout=WAIT_S):
        pass
    assert node.http.delete(f"/v1/replicas/{uid}", params={"grace_s": 5}).status_code == 202
    report = node.phase(uid, "exited")
    assert report["exit"]["signal"] == signal.SIGTERM
    assert report["reason"] == "stopped"
    assert node.http.post(f"/v1/replicas/{uid}/forget").status_code == 200
    assert node.http.get("/v1/usage").json()["replicas"] == []
    assert not (node.folder / "replicas" / uid).exists()
    assert node.http.delete(f"/v1/replicas/{uid}").status_code == 202
    assert node.http.post(f"/v1/replicas/{uid}/forget").status_code == 200


def test_a_killed_replica_is_reported_through_watch_at_once(tmp_path: Path) -> None:
    node = Node(tmp_path / "node-1", heartbeat_s=600)  # what is told, is told because it happened
    node.start()
    try:
        uid = node.serve()
        pid = node.phase(uid, "ready")["pid"]
        with node.http.stream("GET", "/v1/watch") as answer:
            for number, line in enumerate(answer.iter_lines()):
                if number == 0:
                    os.kill(pid, signal.SIGKILL)
                report = json.loads(line)["replicas"][0]
                if report["phase"] == "exited":
                    break
        assert report["exit"]["signal"] == signal.SIGKILL
    finally:
        node.end()


def test_a_restarted_agent_adopts_and_knows_what_ended(node: Node) -> None:
    lasting, dying, lost = node.serve(), node.serve(), node.serve()
    pids = {uid: node.phase(uid, "ready")["pid"] for uid in (lasting, dying, lost)}
    before = json.loads((node.folder / "agent.json").read_text())
    node.kill()
    for pid in pids.values():
        assert Identity.of(pid) is not None, "the agent's end ended a replica"
    os.kill(pids[dying], signal.SIGKILL)
    running = Identity.read(node.folder / "replicas" / lost / "shim.json")
    assert running is not None
    running.kill(signal.SIGKILL)
    until(lambda: launch.state(node.folder / "replicas" / dying).phase == "exited")
    orphan = Identity.of(pids[lost])
    assert orphan is not None
    node.start()
    report = node.report(lasting)
    assert (report["phase"], report["pid"]) == ("ready", pids[lasting])
    assert node.phase(dying, "exited")["exit"]["signal"] == signal.SIGKILL
    end = node.phase(lost, "exited")["exit"]
    assert (end["code"], end["signal"]) == (None, None)
    assert end["reason"].startswith("lost")
    assert not orphan.alive()
    after = json.loads((node.folder / "agent.json").read_text())
    assert after["port"] == before["port"]
    assert after["agent_uid"] != before["agent_uid"]
    os.kill(pids[lasting], signal.SIGKILL)
    assert node.phase(lasting, "exited")["exit"]["signal"] == signal.SIGKILL


def test_a_killed_shim_ends_its_child(node: Node) -> None:
    uid = node.serve()
    child = Identity.of(node.phase(uid, "ready")["pid"])
    running = Identity.read(node.folder / "replicas" / uid / "shim.json")
    assert child is not None
    assert running is not None
    running.kill(signal.SIGKILL)
    assert node.phase(uid, "exited")["exit"]["reason"].startswith("lost")
    assert not child.alive()


def test_two_agents_on_one_folder(node: Node) -> None:
    second = subprocess.run(node.argv(), capture_output=True, timeout=WAIT_S)
    assert second.returncode == 1
    assert b"another agent" in second.stderr
    assert b"hint:" in second.stderr
    assert node.http.get("/v1/usage").status_code == 200


def test_the_command_finds_its_blobs_port_and_environment(node: Node, tmp_path: Path) -> None:
    data = b"weights"
    (tmp_path / "source").write_bytes(data)
    ref = {"digest": f"sha256:{hashlib.sha256(data).hexdigest()}", "size_bytes": len(data), "path": "models/w.bin"}
    blob = {"ref": ref, "url": (tmp_path / "source").as_uri()}
    code = (
        "import os, sys; env = os.environ; here = os.path.isfile('models/w.bin')\n"
        "print(open(sys.argv[1]).read(), here, sys.argv[2] == env['PORT'], end=' ')\n"
        "print(env['LEPTON_DEPLOYMENT_NAME'], env['A'], 'SECRET_OF_AGENT' in env)\n"
    )
    uid = node.apply(
        (sys.executable, "-S", "-c", code, "{blobs}/models/w.bin", "{port}"), env={"A": "b"}, blobs=(blob,)
    )
    report = node.phase(uid, "exited")
    assert report["last_log"] == "weights True True web b False"
    lines = [json.loads(line) for line in node.http.get(f"/v1/replicas/{uid}/log").text.splitlines()]
    assert [line["line"] for line in lines] == [report["last_log"]]


def test_a_blob_that_is_not_what_it_should_be(node: Node, tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(b"other!!")
    ref = {"digest": f"sha256:{hashlib.sha256(b'weights').hexdigest()}", "size_bytes": 7, "path": "w"}
    uid = node.serve(blobs=({"ref": ref, "url": (tmp_path / "source").as_uri()},))
    report = node.phase(uid, "exited")
    assert "digest" in report["exit"]["reason"]
    assert report["pid"] is None


def test_a_replica_that_never_gets_ready(node: Node) -> None:
    for deadline_s in (1, 5, 25):  # long enough to say its line on this machine
        health = {"startup_deadline_s": deadline_s}
        uid = node.apply(("sh", "-c", "echo loading; exec sleep 600"), health=health)
        report = node.phase(uid, "exited")
        assert f"not ready within {deadline_s} s" in report["reason"]
        if report["last_log"]:
            break
    assert report["last_log"] == "loading"


def test_an_unready_replica_recovers(node: Node, tmp_path: Path) -> None:
    code = (
        "import http.server, os, sys\n"
        "class H(http.server.BaseHTTPRequestHandler):\n"
        "    def do_GET(self):\n"
        "        self.send_response(503 if os.path.exists('sick') else 200); self.end_headers()\n"
        "http.server.HTTPServer(('127.0.0.1', int(sys.argv[1])), H).serve_forever()\n"
    )
    health = {"path": "/healthz", "interval_s": 0.1, "failures": 2}
    uid = node.apply((sys.executable, "-S", "-c", code, "{port}"), health=health)
    node.phase(uid, "ready")
    sick = node.folder / "replicas" / uid / "work" / "sick"
    sick.touch()
    assert "503" in node.phase(uid, "unready")["reason"]
    sick.unlink()
    node.phase(uid, "ready")


def test_a_port_that_another_took_first_is_exchanged(node: Node) -> None:
    code = (
        "import http.server, os, sys\n"
        "if not os.path.exists('again'):\n"
        "    open('again', 'w').close(); sys.exit('OSError: [Errno 98] Address already in use')\n" + SERVER
    )
    uid = node.apply((sys.executable, "-S", "-c", code, "{port}"))
    node.phase(uid, "ready")


def test_log_is_followed_to_the_end(node: Node) -> None:
    uid = node.run("import time\nfor i in range(5): print(i); time.sleep(0.05)")
    with node.http.stream("GET", f"/v1/replicas/{uid}/log", params={"follow": "true"}) as answer:
        lines = [json.loads(line) for line in answer.iter_lines()]
    assert [line["line"] for line in lines] == list("01234")
    start, end = lines[1]["ns"], lines[3]["ns"]
    answer = node.http.get(f"/v1/replicas/{uid}/log", params={"start_ns": start, "end_ns": end})
    assert [json.loads(line)["line"] for line in answer.text.splitlines()] == ["1", "2"]


def test_older_leaders_are_refused_also_after_a_restart(node: Node) -> None:
    assert node.http.post("/v1/keepalive", headers={"X-Lepton-Epoch": "7"}).status_code == 200
    for _ in range(2):
        answer = node.http.post("/v1/keepalive", headers={"X-Lepton-Epoch": "6"})
        assert (answer.status_code, answer.json()["code"]) == (409, "StaleEpoch")
        assert node.http.get("/v1/usage").json()["epoch"] == 7
        node.kill()
        node.start()


def test_an_exclusive_replica_ends_when_control_is_silent(node: Node) -> None:
    for lease_s in (1.5, 6.0, 24.0):  # a machine that stands still longer than the lease shows nothing: a longer one
        began_s = last_s = time.monotonic()
        longest_s = 0.0
        uid = node.run("import time; time.sleep(600)", exclusive=True, lease_s=lease_s, grace_s=0.1)
        until(lambda uid=uid: node.report(uid)["phase"] in ("ready", "exited"))
        while time.monotonic() < began_s + 1.7 * lease_s:
            time.sleep(lease_s / 10)
            assert node.http.post("/v1/keepalive").status_code == 200
            longest_s, last_s = max(longest_s, time.monotonic() - last_s), time.monotonic()
        if longest_s < 0.8 * lease_s:  # it is written at a tenth of its length
            break
    assert node.report(uid)["phase"] == "ready"
    node.kill()  # the lease holds without an agent
    child = Identity.read(node.folder / "replicas" / uid / "child.json")
    assert child is not None
    until(lambda: not child.alive())
    node.start()
    assert node.phase(uid, "exited")["exit"]["reason"] == "lease lost"


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code"),
    [
        ("PUT", "/v1/replicas/a", b"{", 400, "InvalidParameter"),
        ("PUT", "/v1/replicas/a", b"\xff\x00", 400, "InvalidParameter"),
        ("PUT", "/v1/replicas/a", b'{"uid": "a", "env": {"KEY": 5}}', 400, "InvalidParameter"),
        ("PUT", "/v1/replicas/a", b" " * (1 << 21), 413, "TooLarge"),
        ("GET", "/v1/replicas/a/log", b"", 404, "NotFound"),
        ("GET", "/v1/replicas/../../etc", b"", 404, "NotFound"),
        ("DELETE", "/v1/replicas/a?grace_s=soon", b"", 400, "InvalidParameter"),
        ("DELETE", "/v1/replicas/a?grace_s=nan", b"", 400, "InvalidParameter"),
        ("PATCH", "/v1/usage", b"", 404, "NotFound"),
        ("GET", "/", b"", 404, "NotFound"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    idle: Node, method: str, path: str, body: bytes, status: int, code: str
) -> None:
    answer = idle.http.request(method, path, content=body)
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert set(answer.json()) == {"code", "message", "hint", "details"}


def test_who_may_ask(idle: Node) -> None:
    for header in ("", "Bearer", "Bearer wrong", "Basic x"):
        answer = idle.http.get("/v1/usage", headers={"Authorization": header})
        assert (answer.status_code, answer.json()["code"]) == (401, "Unauthorized")
    assert idle.http.post("/v1/keepalive", headers={"X-Lepton-Epoch": "x"}).status_code == 400
    spec = ReplicaSpec(uid="../x", name="x", workspace="default", owner_kind="job", owner="x", command=("true",))
    assert idle.http.put("/v1/replicas/..%2Fx", content=spec.model_dump_json()).status_code in (400, 404)
    assert (idle.folder / "agent.token").stat().st_mode & 0o077 == 0


def test_an_image_is_kept_but_a_process_runs(idle: Node) -> None:
    spec = ReplicaSpec(
        uid=uuid7(), name="x", workspace="default", owner_kind="job", owner="x", command=("true",), image="python:3"
    )
    answer = idle.http.put(f"/v1/replicas/{spec.uid}", content=spec.model_dump_json())
    assert (answer.status_code, answer.json()["image"]) == (202, "advisory")
    report = idle.http.get("/v1/usage").json()
    assert (report["runtime"], report["isolation"], report["forwards"]) == ("process", "none", False)


def test_apply_is_idempotent_and_stop_before_the_start(node: Node) -> None:
    uid = uuid7()
    spec = ReplicaSpec(
        uid=uid, name="x", workspace="default", owner_kind="job", owner="x", command=("sleep", "600"), needs_port=False
    )
    answers: list[int] = []

    def put() -> None:
        answers.append(node.http.put(f"/v1/replicas/{uid}", content=spec.model_dump_json()).status_code)

    threads = [threading.Thread(target=put) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [202] * 5
    assert node.http.delete(f"/v1/replicas/{uid}", params={"grace_s": 1}).status_code == 202
    node.phase(uid, "exited")
    put()
    assert node.report(uid)["phase"] == "exited"


def test_two_agents_choose_different_ports(node: Node, tmp_path: Path) -> None:
    other = Node(tmp_path / "node-2")
    other.start()
    try:
        uids = [(one, one.serve()) for one in (node, other) for _ in range(4)]
        ports = [one.phase(uid, "ready")["port"] for one, uid in uids]
        assert len(set(ports)) == len(ports)
    finally:
        other.end()
