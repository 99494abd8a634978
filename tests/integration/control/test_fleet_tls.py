"""Agents behind TLS, as processes of their own: who is heard, and who is believed."""

from __future__ import annotations

import asyncio
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from lepton_ai.control.nodes import HttpFleet
from lepton_ai.control.ports import NodeAddress
from lepton_ai.control.transport import NodeTls, where
from lepton_ai.errors import Unavailable
from lepton_ai.node import launch, shim
from lepton_ai.spec.base import uuid7
from lepton_ai.spec.replica import ReplicaSpec, node_host
from lepton_ai.tenancy.authority import Authority, Pair


class Place:
    """An authority, and agents with certificates by it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.authority = Authority(folder / "tls", "test")
        self._agents: list[subprocess.Popen[bytes]] = []

    def agent(self, name: str, pair: Pair | None = None, *, ca: Path | None = None) -> Path:
        """Starts one on loopback; returns its folder."""
        folder = self.folder / name
        pair = pair or self.authority.node(name, folder)
        argv = [sys.executable, "-m", "lepton_ai.node", f"--dir={folder}", f"--name={name}", "--cpu-milli=1000"]
        argv += ["--memory-mib=512", f"--tls-cert={pair.cert}", f"--tls-key={pair.key}"]
        argv += [f"--tls-ca={ca or self.authority.ca}"]
        process = subprocess.Popen(argv, stderr=subprocess.DEVNULL)
        self._agents.append(process)
        until(lambda: process.poll() is not None or (folder / "agent.json").exists())
        assert process.poll() is None
        return folder

    def tls(self, name: str, *, by: Authority | None = None, pair: Pair | None = None) -> NodeTls:
        pair = pair or (by or self.authority).client("control")
        return NodeTls(str(self.authority.ca), str(pair.cert), str(pair.key), node_host(name))

    def close(self) -> None:
        for process in self._agents:
            process.terminate()
        for process in self._agents:
            process.wait(20)
        for folder in self.folder.glob("*/replicas/*"):
            launch.stop(folder, 0)


def address_of(folder: Path, tls: NodeTls | None) -> NodeAddress:
    return NodeAddress(folder.name, "127.0.0.1", 1, str(folder / "agent.token"), tls)


def port_of(folder: Path) -> int:
    return int((shim.read_record(str(folder / "agent.json")) or {})["port"])


def until(true: Callable[[], Any], timeout_s: float = 60) -> Any:
    end_s = time.monotonic() + timeout_s
    while not (value := true()):
        assert time.monotonic() < end_s, "did not happen in time"
        time.sleep(0.01)
    return value


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def kept() -> dict[str, list[str]]:
    return {}


@pytest.fixture
def fleet(kept: dict[str, list[str]]) -> Iterator[HttpFleet]:
    def archive(spec: ReplicaSpec, lines: Iterable[tuple[int, str, str]]) -> None:
        kept[spec.uid] = [text for _, _, text in lines]

    made = HttpFleet(archive)
    yield made
    made.close()


def order(*command: str) -> ReplicaSpec:
    return ReplicaSpec(
        uid=uuid7(), workspace="default", name="x", owner_kind="job", owner="x", command=command, needs_port=False
    )


def test_orders_logs_and_the_end_over_tls(place: Place, fleet: HttpFleet, kept: dict[str, list[str]]) -> None:
    folder = place.agent("node-1")
    fleet.connect([address_of(folder, place.tls("node-1"))], 1)
    until(lambda: fleet.nodes()["node-1"].connected)
    spec = order(sys.executable, "-c", "print('hello'); import sys; sys.stdin.read(); raise SystemExit(3)")
    fleet.apply("node-1", spec, 1)

    def phase() -> str:
        report = fleet.nodes()["node-1"].report
        assert report is not None
        return next((item.phase for item in report.replicas if item.uid == spec.uid), "")

    until(lambda: phase() == "exited")

    async def lines() -> list[str]:
        return [text async for _, _, text in fleet.log("node-1", spec.uid)]

    assert asyncio.run(lines()) == ["hello"]
    fleet.forget("node-1", spec.uid, 1, spec)
    until(lambda: phase() == "")
    assert kept == {spec.uid: ["hello"]}


def reason(fleet: HttpFleet, node: NodeAddress) -> str:
    fleet.connect([node], 1)
    said = str(until(lambda: (text := fleet.nodes()[node.name].reason) != "not yet connected" and text))
    assert not fleet.nodes()[node.name].connected
    return said


def test_only_the_nodes_own_certificate_by_the_cells_authority_is_believed(place: Place, fleet: HttpFleet) -> None:
    other = Authority(place.folder / "other", "another")
    foreign = place.agent("foreign", other.node("foreign", place.folder / "foreign"))
    assert "its certificate is not good" in reason(fleet, address_of(foreign, place.tls("foreign")))
    # Another node of the same cell, at the address of this one.
    second = place.agent("node-2")
    assert "its certificate is not good" in reason(fleet, address_of(second, place.tls("node-1")))
    # A client's certificate is no server's, though the authority made it.
    client = place.agent("node-3", place.authority.client("gateway"))
    tls = replace(place.tls("node-3"), host="gateway.client")
    assert "its certificate is not good" in reason(fleet, address_of(client, tls))


def test_an_agent_hears_nobody_without_a_certificate_and_nobody_without_its_token(
    place: Place, fleet: HttpFleet
) -> None:
    folder = place.agent("node-1")
    token = (folder / "agent.token").read_text()
    other = Authority(place.folder / "other", "another")
    wrong = place.tls("node-1", by=other)
    assert "its agent does not answer" in reason(fleet, address_of(folder, wrong))
    server = place.tls("node-1", pair=place.authority.node("node-1", folder))
    assert "its agent does not answer" in reason(fleet, address_of(folder, server))
    (folder / "agent.token").write_text("guessed")
    assert "answered 401" in reason(fleet, address_of(folder, place.tls("node-1")))
    # With the right token and no certificate at all: not a byte of an answer.
    assert asked(port_of(folder), place.authority.ca, token) == b""
    with pytest.raises(httpx.HTTPError):
        httpx.get(f"http://127.0.0.1:{port_of(folder)}/v1/usage", headers={"authorization": f"Bearer {token}"})


def asked(port: int, ca: Path, token: str) -> bytes:
    """What an agent answers to who has its token, but no certificate."""
    anybody = ssl.create_default_context(cafile=str(ca))
    anybody.check_hostname = False
    try:
        with socket.create_connection(("127.0.0.1", port), 20) as plain, anybody.wrap_socket(plain) as sock:
            sock.sendall(f"GET /v1/usage HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n\r\n".encode())
            return sock.recv(100)
    except (ssl.SSLError, ConnectionError):
        return b""


def test_a_plain_agent_where_tls_is_expected_is_not_spoken_to(place: Place, fleet: HttpFleet) -> None:
    folder = place.folder / "node-9"
    folder.mkdir()
    heard = b""
    with socket.create_server(("127.0.0.1", 0)) as server:
        shim.write_record(str(folder / "agent.json"), {"address": "127.0.0.1", "port": server.getsockname()[1]})
        (folder / "agent.token").write_text("the-secret-token")
        fleet.connect([address_of(folder, place.tls("node-9"))], 1)
        peer, _ = server.accept()
        with peer:
            heard = peer.recv(65536)
            peer.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
            until(lambda: fleet.nodes()["node-9"].reason not in ("", "not yet connected"))
    assert b"the-secret-token" not in heard
    assert not fleet.nodes()["node-9"].connected


def test_nothing_plain_goes_beyond_this_machine(place: Place, fleet: HttpFleet) -> None:
    for address in ("192.0.2.7", "10.0.0.1", "2001:db8::1", "0.0.0.0"):
        with pytest.raises(Unavailable, match="plain HTTP is not spoken"):
            where(address, 1, "token", None)
    assert where("::1", 1, "token", None).base == "http://[::1]:1"
    assert where("192.0.2.7", 1, "token", place.tls("a")).base == "https://192.0.2.7:1"
    node = NodeAddress("far", "192.0.2.7", 1, str(place.folder / "none"))
    assert "plain HTTP is not spoken" in reason(fleet, node)
    for extra in ([], ["--tls-cert=x"], ["--tls-cert=x", "--tls-key=x", "--tls-ca=x"]):
        argv = [sys.executable, "-m", "lepton_ai.node", f"--dir={place.folder / 'far'}", "--name=far"]
        argv += ["--cpu-milli=1000", "--memory-mib=512", "--address=192.0.2.7", *extra]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 1
        assert "--tls-ca" in done.stderr
