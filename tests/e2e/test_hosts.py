"""A cell whose nodes are other hosts: gateways and control on one, agents on two, each a network namespace with nothing
but an address on the wire. What leaves a host is TLS.
"""

from __future__ import annotations

import contextlib
import http.client
import importlib.util
import json
import os
import shutil
import ssl
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa
import pytest
from cell import Cell, eventually

from lepton_ai import cloud
from lepton_ai.control import hosts as nodes
from lepton_ai.errors import NotFound
from lepton_ai.models import RecommenderModel
from lepton_ai.node import launch
from lepton_ai.node.identity import Identity

PORT = 7070
CLIENTS = 6
# Says who answers; takes its port, which is the same for every replica where each has a network.
SERVER = """
import http.server, json, os, sys
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        data = json.dumps({"pid": os.getpid(), "path": self.path}).encode()
        self.wfile.write(b"HTTP/1.1 200 OK\\r\\nContent-Length: %d\\r\\n\\r\\n%s" % (len(data), data))
    def log_message(self, *_): pass
print("listens", os.environ.get("NOTE", ""), flush=True)
http.server.ThreadingHTTPServer(("", int(sys.argv[1])), Handler).serve_forever()
"""

# Everything that passes the center's interfaces, but what stays within it.
SNIFF = """
import socket, sys
sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 24)
with open(sys.argv[1], "wb", buffering=0) as file:
    print("ready", flush=True)
    while True:
        data, (interface, *_) = sock.recvfrom(65536)
        if interface != "lo":
            file.write(data)
"""


class Site:
    """The cell, its wire, and the agents' folders as they were copied to their hosts."""

    def __init__(self, home: Path, tools: Any, wire: Any, isolation: str) -> None:
        self.home, self.tools, self.wire, self.isolation = home, tools, wire, isolation
        self.center, *self.hosts = wire.hosts
        self.cert, self.key = tools.certificate(home, [self.center.address])
        self.agents: dict[str, subprocess.Popen[bytes]] = {}
        self.cell: Cell

    def up(self) -> str:
        """`lepton up` on the center; what it said."""
        words = [f"{host.address}:{PORT}" for host in self.hosts]
        env = {key: value for key, value in os.environ.items() if not key.startswith("LEPTON_AI_")}
        env |= {
            "LEPTON_AI_HOME": str(self.home),
            "LEPTON_AI_CELL": "test",
            "LEPTON_AI_CLUSTER": "static://" + ",".join(words),
            "LEPTON_AI_ISOLATION": self.isolation,
            "LEPTON_AI_API_HOST": self.center.address,
            "LEPTON_AI_GATEWAY_HOST": self.center.address,
            "LEPTON_AI_TLS_CERT": str(self.cert),
            "LEPTON_AI_TLS_KEY": str(self.key),
            "SSL_CERT_FILE": str(self.cert),
        }
        argv = self.center.inside(sys.executable, "-m", "lepton_ai.cli", "up")
        done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=180, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    def attach(self) -> None:
        state = cloud.state("test")
        assert state is not None
        self.cell = Cell(cloud.attach("test"), state, self.home)

    def there(self, name: str) -> Path:
        """The node's folder on its host."""
        return self.home / "there" / name

    def start(self, name: str) -> None:
        host = self.hosts[int(name[-1]) - 1]
        if not self.there(name).exists():
            shutil.copytree(self.home / "cells" / "test" / "nodes" / name, self.there(name))
        self.agents[name] = self.tools.agent(host, self.there(name), self.cert, "--cpu-milli=1000", "--memory-mib=2048")

    def state_of(self, name: str) -> str:
        return next(node.state for node in self.cell.cloud.nodes() if node.name == name)

    def reason_of(self, name: str) -> str:
        return next(node.reason for node in self.cell.cloud.nodes() if node.name == name)

    def ready(self) -> bool:
        return all(node.state == "ready" for node in self.cell.cloud.nodes())

    def replicas(self, name: str) -> list[Any]:
        return [one for one in self.cell.cloud.replicas(name) if one.phase == "ready"]

    def gone(self, name: str) -> bool:
        try:
            self.cell.cloud.replicas(name)
        except NotFound:
            return True
        return False

    def get(self, name: str, path: str = "", headers: dict[str, str] | None = None) -> tuple[int, Any]:
        parts = urlsplit(self.cell.url(name))
        trust = ssl.create_default_context(cafile=str(self.cert))
        connection = http.client.HTTPSConnection(parts.hostname or "", parts.port, timeout=60, context=trust)
        try:
            connection.request("GET", parts.path + path, headers=headers or {})
            answer = connection.getresponse()
            body = answer.read()
            return answer.status, json.loads(body) if answer.status == 200 else body
        finally:
            connection.close()

    def answers(self, name: str, count: int = 60) -> Counter[int]:
        """Who answered `count` requests; none may fail."""
        found: Counter[int] = Counter()
        for number in range(count):
            status, body = self.get(name, f"{number}")
            assert status == 200, body
            assert body["path"].endswith(f"/{number}")
            found[body["pid"]] += 1
        return found

    @contextlib.contextmanager
    def load(self, name: str) -> Iterator[list[tuple[float, int, int]]]:
        """Requests without end on some connections: (when it was sent, client, status) of each that was answered."""
        seen: list[tuple[float, int, int]] = []
        stop = threading.Event()

        def client() -> None:
            while not stop.is_set():
                sent_s = time.monotonic()
                seen.append((sent_s, threading.get_ident(), self.get(name)[0]))

        threads = [threading.Thread(target=client) for _ in range(CLIENTS)]
        for thread in threads:
            thread.start()
        try:
            yield seen
        finally:
            stop.set()
            for thread in threads:
                thread.join()

    def close(self) -> None:
        for agent in self.agents.values():
            agent.terminate()
        for agent in self.agents.values():
            agent.wait(20)
        for folder in [*self.home.glob("there/*/replicas/*"), *self.home.glob("there/*/inlet")]:
            launch.stop(folder, 0)
        if hasattr(self, "cell"):
            self.cell.cloud.close()
        cloud.down("test", purge=True)


@pytest.fixture(scope="module", params=["none", "uid"])
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    spec = importlib.util.spec_from_file_location("tests_hosts", Path(__file__).parents[1] / "hosts.py")
    assert spec is not None
    assert spec.loader is not None
    tools = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tools)
    if why := tools.missing():
        pytest.skip(why)
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch, tools.wired(home / "wire", 3) as wire:
        made = Site(home, tools, wire, str(request.param))
        patch.setenv("LEPTON_AI_HOME", str(home))
        patch.setenv("SSL_CERT_FILE", str(made.cert))
        try:
            said = made.up()
            made.attach()
            for name, host in (("node-1", made.hosts[0]), ("node-2", made.hosts[1])):
                assert f"{name} is not there" in said
                assert f"copy {made.cell.state.node_dir(name)} to {host.address}" in said
                made.start(name)
            eventually(made.ready, "both nodes are there")
            yield made
        finally:
            made.close()
        assert not [pid for host in wire.hosts for pid in host.left()]


def form(name: str, replicas: int, **template: Any) -> dict[str, Any]:
    return {
        "name": name,
        "replicas": {"min": replicas, "max": replicas},
        "template": {
            "command": [sys.executable, "-c", SERVER, "{port}"],
            "health": {"path": "/health", "interval_s": 0.5},
            "resources": {"cpu_milli": 50, "memory_mib": 64},
            "idempotent": True,
            "grace_s": 3,
            **template,
        },
    }


def test_up_adopts_what_is_there(site: Site) -> None:
    said = site.up()
    assert "is not there" not in said
    assert "cell test is up" in said


def test_a_host_is_cut_off_and_comes_back(site: Site) -> None:
    site.cell.cloud.deploy(form("web", 2) | {"survive": {"node": 1}}, wait=True)
    found = {one.node: one for one in site.replicas("web")}
    assert set(found) == {"node-1", "node-2"}
    assert len(site.answers("web")) == 2
    for name, host in zip(("node-1", "node-2"), site.hosts, strict=True):
        status = site.cell.cloud.replicas("web")
        assert host.address in {one.address for one in status if one.node == name}
    site.wire.cut(site.hosts[0])
    lost = Identity.read(site.there("node-1") / "replicas" / found["node-1"].uid / "child.json")
    assert lost is not None
    assert lost.alive()
    try:
        eventually(lambda: site.state_of("node-1") == "unreachable", "the loss is seen")
        assert site.reason_of("node-1")
        # The one that is left, and soon another beside it, on the host that is left.
        eventually(
            lambda: {one.node for one in site.replicas("web")} == {"node-2"} and len(site.replicas("web")) == 2,
            "a replica takes the place of the lost one",
        )
        assert lost.pid not in site.answers("web")
    finally:
        site.wire.mend(site.hosts[0])
    eventually(site.ready, "the host is back")
    eventually(lambda: {one.node for one in site.replicas("web")} == {"node-1", "node-2"}, "both hosts serve again")
    eventually(lambda: len(site.replicas("web")) == 2, "what is too many is ended")
    eventually(lambda: len(site.answers("web")) == 2, "both answer")
    site.cell.cloud.delete("web")


def test_requests_on_a_host_that_vanishes_are_answered_by_another(site: Site) -> None:
    site.cell.cloud.deploy(form("busy", 4) | {"survive": {"node": 1}}, wait=True)
    with site.load("busy") as seen:
        eventually(lambda: len(seen) > 10 * CLIENTS, "it is under load")
        site.wire.cut(site.hosts[1])
        cut_s = time.monotonic()
        try:
            # While it is away: no client waits for it to come back.
            eventually(
                lambda: len({who for sent_s, who, _ in seen if sent_s > cut_s}) == CLIENTS, "every client went on"
            )
        finally:
            site.wire.mend(site.hosts[1])
    assert {status for *_, status in seen} == {200}
    eventually(site.ready, "the host is back")
    site.cell.cloud.delete("busy")


def test_models_come_over_the_wire(site: Site) -> None:
    rows = [{"user": user, "item": item, "rating": 1.0} for user in range(6) for item in range(user % 3, 6)]
    model = RecommenderModel().fit(pa.Table.from_pylist(rows))
    version = site.cell.cloud.register("tiny", model)
    assert version
    site.cell.cloud.deploy(
        {"name": "tiny", "model": "tiny@1", "replicas": {"min": 2, "max": 2}, "survive": {"node": 1}}, wait=True
    )
    assert {one.node for one in site.replicas("tiny")} == {"node-1", "node-2"}
    site.cell.cloud.delete("tiny")


def test_one_port_many_replicas(site: Site) -> None:
    wanted = form("fixed", 3, port=8080)
    if site.isolation == "none":
        site.cell.cloud.deploy(wanted, wait=False)
        eventually(lambda: len(site.replicas("fixed")) == 2, "one on each host")
        reason = eventually(lambda: site.cell.cloud.deployment("fixed").reason, "why there is no third")
        assert "8080" in reason
    else:
        site.cell.cloud.deploy(wanted, wait=True)
        assert Counter(one.node for one in site.replicas("fixed")).most_common(1)[0][1] > 1
        assert len(site.answers("fixed", 90)) == 3
    site.cell.cloud.delete("fixed")


def test_logs_of_the_living_and_the_dead(site: Site) -> None:
    command = [sys.executable, "-c", "import os; print('ran as', os.getuid()); raise SystemExit(3)"]
    job = site.cell.cloud.run(command, name="ends")
    name = job.name
    eventually(lambda: site.cell.cloud.job(name).state == "failed", "the job ended")
    lines = eventually(lambda: [line for line in site.cell.cloud.logs(name)], "its log")
    assert any("ran as" in str(line) for line in lines)


def test_nothing_on_the_wire_can_be_read(site: Site) -> None:
    mark, plain = "a-word-that-nobody-else-says", b"what is sent plain is seen"
    heard = site.home / "heard"
    argv = site.center.inside(sys.executable, "-c", SNIFF, str(heard))
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as sniffer:
        try:
            assert sniffer.stdout is not None
            assert sniffer.stdout.readline() == "ready\n"
            wanted = form("secret", 2, env={"NOTE": mark}) | {"survive": {"node": 1}}
            site.cell.cloud.deploy(wanted, wait=False)
            # Held until a replica is there, by what is not the gateway's Envoy.
            eventually(lambda: site.get("secret", mark, {"x-note": mark})[0] == 200, "it serves")
            site.cell.cloud.deploy(wanted, wait=True)
            for number in range(20):
                status, body = site.get("secret", f"{mark}/{number}", {"x-note": mark})
                assert status == 200
                assert mark in body["path"]
            eventually(lambda: len([1 for line in site.cell.cloud.logs("secret") if mark in str(line)]) == 2, "logs")
            site.cell.cloud.delete("secret")
            eventually(lambda: site.gone("secret"), "it is gone, and its logs are fetched")
            said = f"import socket; socket.socket(2, 2).sendto({plain!r}, ('{site.center.address}', 9))"
            site.hosts[0].run(sys.executable, "-c", said)
            eventually(lambda: plain in heard.read_bytes(), "the sniffer hears")
        finally:
            sniffer.kill()
    found = heard.read_bytes()
    assert len(found) > 50_000
    for words in (mark.encode(), b"HTTP/1.1", b"uthorization: ", b"earer "):
        assert words not in found, words


def test_what_is_said_without_a_certificate_is_not_answered(site: Site) -> None:
    token = (site.there("node-1") / "agent.token").read_text()
    address = site.hosts[0].address
    ask = (
        "import http.client, ssl, sys; c = http.client.{kind}; c.request('GET', '/v1/usage', "
        "headers={{'authorization': 'Bearer ' + sys.argv[1]}}); print(c.getresponse().status)"
    )
    for kind in (
        f"HTTPConnection('{address}', {PORT}, timeout=10)",
        f"HTTPSConnection('{address}', {PORT}, timeout=10, context=ssl._create_unverified_context())",
    ):
        done = subprocess.run(
            site.center.inside(sys.executable, "-c", ask.format(kind=kind), token), capture_output=True, check=False
        )
        assert b"200" not in done.stdout


def test_another_agent_at_the_nodes_address_is_not_believed(site: Site, tmp_path: Path) -> None:
    assert nodes.hosts(site.cell.state.settings.cluster)[0].name == "node-1"
    agent = site.agents["node-1"]
    agent.terminate()
    agent.wait(20)
    stranger = tmp_path / "node-1"
    shutil.copytree(site.cell.state.node_dir("node-2"), stranger)
    start = (site.cell.state.node_dir("node-1") / "start").read_text()
    (stranger / "start").write_text(start)
    wrong = site.tools.agent(site.hosts[0], stranger, site.cert)
    try:
        reason = eventually(lambda: why if "certificate" in (why := site.reason_of("node-1")) else "", "why it is not")
        assert "its certificate is not good" in reason
        assert "node-1.node" in reason
    finally:
        wrong.terminate()
        wrong.wait(20)
        launch.stop(stranger / "inlet", 0)
        site.start("node-1")
    eventually(site.ready, "the right one is back")
