"""From a real gateway through the inlet of a node, by TLS: who gets through, and what goes on meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lepton_ai.errors import Invalid
from lepton_ai.node import inlet, launch, shim
from lepton_ai.node.inlet import Certificates, Inlet
from lepton_ai.node.ports import Ports
from lepton_ai.spec.replica import node_host
from lepton_ai.spec.route import Backend, Endpoint, Route
from lepton_ai.tenancy.authority import Authority, Pair

OUTER = "127.0.0.2"
"""Stands for the address of another host: the replicas listen on 127.0.0.1 only."""


class Node:
    """The inlet of a node; `start` again is a restart of its agent."""

    def __init__(self, folder: Path, authority: Authority, name: str = "node-1") -> None:
        self.folder, self.name = folder / name, name
        pair = authority.node(name, self.folder)
        self.certificates = Certificates(pair.cert, pair.key, authority.ca)
        self.start()

    def start(self) -> None:
        self.ports = Ports(OUTER, self.folder.parent / "ports")
        self.inlet = Inlet(self.folder / "inlet", OUTER, self.certificates, self.ports)
        self.inlet.start()

    def end(self) -> None:
        self.ports.close()
        launch.stop(self.folder / "inlet")

    def endpoint(self, replica: Any, host: str | None = None) -> Endpoint:
        port = self.inlet.port(replica.name)
        assert port is not None
        return Endpoint(replica=replica.name, address=OUTER, port=port, host=host or node_host(self.name))


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "tls", "test")


@pytest.fixture
def node(tmp_path: Path, authority: Authority) -> Iterator[Node]:
    made = Node(tmp_path, authority)
    try:
        yield made
    finally:
        made.end()


def route(name: str, *ends: Endpoint, **fields: Any) -> Route:
    backends = (Backend(release=1, endpoints=ends),)
    return Route(workspace="default", name=name, backends=backends, **fields)


def listens(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex((OUTER, port)) == 0


def test_requests_pass_the_inlet_and_are_counted_by_replica(far: Any, node: Node) -> None:
    one, two, near = far.replica("one"), far.replica("two"), far.replica("near")
    node.inlet.publish({item.name: ("127.0.0.1", item.port) for item in (one, two)})
    ends = (node.endpoint(one), node.endpoint(two), near.endpoint)
    far.publish(route("movies", *ends, health_path="/healthz"))
    far.until(lambda: {far.get("/default/movies/")[1].get("name") for _ in range(9)} == {"one", "two", "near"})
    status, body = far.get("/default/movies/a?x=1")
    assert (status, body["path"]) == (200, "/a?x=1")
    held = http.client.HTTPConnection("127.0.0.1", far.port, timeout=30)
    held.request("GET", "/default/movies/", headers={"x-hold": "1"})
    far.until(lambda: sum(far.gateway.stats()[0].in_flight_by_replica.values()) == 1)
    for replica in (one, two, near):
        replica.release()
    assert held.getresponse().status == 200
    held.close()


def test_a_socket_that_was_upgraded_passes(far: Any, node: Node) -> None:
    one = far.replica("one")
    node.inlet.publish({"one": ("127.0.0.1", one.port)})
    far.publish(route("chat", node.endpoint(one)))
    far.until(lambda: far.get("/default/chat/")[0] == 200)
    with socket.create_connection(("127.0.0.1", far.port), 30) as sock:
        sock.sendall(b"GET /default/chat/ HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
        head = b""
        while b"\r\n\r\n" not in head:
            head += sock.recv(4096)
        assert head.startswith(b"HTTP/1.1 101")
        sock.sendall(b"hello")
        assert sock.recv(4096) == b"HELLO"


def test_the_inlet_hears_the_gateways_of_its_cell_only(
    far: Any, node: Node, authority: Authority, tmp_path: Path
) -> None:
    one = far.replica("one")
    node.inlet.publish({"one": ("127.0.0.1", one.port)})
    port = node.inlet.port("one")
    assert port is not None
    far.until(lambda: listens(port))
    gateway = authority.client("gateway")

    def asked(pair: Pair | None, ca: Path = authority.ca) -> bytes:
        context = ssl.create_default_context(cafile=str(ca))
        if pair is not None:
            context.load_cert_chain(pair.cert, pair.key)
        try:
            with (
                socket.create_connection((OUTER, port), 20) as plain,
                context.wrap_socket(plain, server_hostname=node_host("node-1")) as sock,
            ):
                sock.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                return sock.recv(12)
        except (ssl.SSLError, ConnectionError):
            return b""

    assert asked(gateway) == b"HTTP/1.1 200"
    other = Authority(tmp_path / "other", "another")
    for wrong in (None, authority.client("control"), authority.node("node-1", node.folder), other.client("gateway")):
        assert asked(wrong) == b""
    with socket.create_connection((OUTER, port), 20) as plain:
        plain.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            assert not plain.recv(12).startswith(b"HTTP")


def test_who_says_nothing_is_not_waited_for(far: Any, node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inlet, "HANDSHAKE_S", 0.3)
    one = far.replica("one")
    node.inlet.publish({"one": ("127.0.0.1", one.port)})
    port = node.inlet.port("one")
    assert port is not None
    far.until(lambda: listens(port))
    with socket.create_connection((OUTER, port), 60) as silent:
        assert silent.recv(1) == b""


def test_the_gateway_believes_the_node_that_it_means_only(
    far: Any, node: Node, authority: Authority, tmp_path: Path
) -> None:
    one = far.replica("one")
    node.inlet.publish({"one": ("127.0.0.1", one.port)})
    far.publish(route("right", node.endpoint(one)), route("wrong", node.endpoint(one, node_host("node-2"))))
    far.until(lambda: far.get("/default/right/")[0] == 200)
    assert far.get("/default/wrong/", Authorization="Bearer secret")[0] == 503
    other = Node(tmp_path / "x", Authority(tmp_path / "other", "another"))
    try:
        other.inlet.publish({"one": ("127.0.0.1", one.port)})
        far.publish(route("right", node.endpoint(one)), route("foreign", other.endpoint(one)))
        far.until(lambda: listens(other.endpoint(one).port))
        assert far.get("/default/foreign/")[0] == 503
        assert far.get("/default/right/")[0] == 200
    finally:
        other.end()


def test_what_would_leave_this_machine_in_plain_is_refused(far: Any, place: Any) -> None:
    plain = Endpoint(replica="x", address="192.0.2.1", port=80)
    with pytest.raises(Invalid, match="without TLS"):
        far.publish(route("a", plain))
    with pytest.raises(Invalid, match="no certificate"):
        place.publish(route("a", plain.model_copy(update={"host": "node-1.node"})))


def test_an_agent_that_starts_again_and_changes_of_others_disturb_no_request(far: Any, node: Node) -> None:
    one, two = far.replica("one"), far.replica("two")
    ports = {item.name: ("127.0.0.1", item.port) for item in (one, two)}
    node.inlet.publish({"one": ports["one"]})
    port = node.inlet.port("one")
    far.publish(route("movies", node.endpoint(one)))
    far.until(lambda: far.get("/default/movies/")[0] == 200)
    load = far.load("/default/movies/")

    def goes_on() -> None:
        seen = load.ok
        far.until(lambda: load.ok > seen + 30)

    envoy = shim.read_record(str(node.folder / "inlet" / "child.json"))
    for _ in range(3):
        node.ports.close()
        node.start()
        assert node.inlet.port("one") == port
        node.inlet.publish(ports)
        other = node.inlet.port("two")
        assert other is not None
        far.until(lambda other=other: listens(other))
        goes_on()
        node.inlet.publish({"one": ports["one"]})
        far.until(lambda other=other: not listens(other))
        goes_on()
    assert load.stop().failed == []
    assert shim.read_record(str(node.folder / "inlet" / "child.json")) == envoy


def test_a_killed_inlet_comes_back_at_the_same_ports(far: Any, node: Node) -> None:
    one = far.replica("one")
    node.inlet.publish({"one": ("127.0.0.1", one.port)})
    far.publish(route("movies", node.endpoint(one)))
    far.until(lambda: far.get("/default/movies/")[0] == 200)
    for record in ("shim.json", "child.json"):
        found = shim.read_record(str(node.folder / "inlet" / record)) or {}
        assert shim.kill_pid(int(found["pid"]), int(found["start_ticks"]), 9)

    def back() -> bool:
        asyncio.run(node.inlet.look())  # as the agent does every two seconds
        return bool(far.get("/default/movies/")[0] == 200)

    far.until(back)


def test_a_port_that_another_process_has_is_given_up(far: Any, node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = far.replica("one"), far.replica("two")
    with socket.create_server((OUTER, 0)) as squatter:
        taken = squatter.getsockname()[1]
        with monkeypatch.context() as patch:
            patch.setattr(node.ports, "take", lambda: taken)
            node.inlet.publish({"one": ("127.0.0.1", one.port)})
        wanted = {item.name: ("127.0.0.1", item.port) for item in (one, two)}
        node.inlet.publish(wanted)
        good = node.inlet.port("two")
        assert good is not None
        far.until(lambda: listens(good))
        looks = [asyncio.run(node.inlet.look()) for _ in range(4)]
        assert looks == [False, False, True, False]
        assert (node.inlet.port("one"), node.inlet.port("two")) == (None, good)
        node.inlet.publish(wanted)
        assert node.inlet.port("one") not in (None, taken)
        far.publish(route("movies", node.endpoint(one)))
        far.until(lambda: far.get("/default/movies/")[0] == 200)
