"""An agent whose replicas are reached through an inlet: what it says of them, and what stays when it starts again."""

from __future__ import annotations

import asyncio
import hashlib
import http.server
import json
import socket
import ssl
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from lepton_ai.errors import Conflict, NotFound
from lepton_ai.node import launch
from lepton_ai.node.agent import Agent
from lepton_ai.node.inlet import Certificates, Inlet
from lepton_ai.node.leave import REASON, leave
from lepton_ai.node.ports import Ports
from lepton_ai.spec.base import uuid7
from lepton_ai.spec.replica import FetchBlob, ReplicaReport, ReplicaSpec, node_host
from lepton_ai.spec.workload import BlobRef, Resources
from lepton_ai.tenancy.authority import Authority

OUTER = "127.0.0.2"
SERVER = (
    "import http.server, sys\n"
    "http.server.HTTPServer(('127.0.0.1', int(sys.argv[1])), http.server.SimpleHTTPRequestHandler).serve_forever()\n"
)


class Node:
    def __init__(self, folder: Path) -> None:
        self.folder = folder / "node-1"
        self.authority = Authority(folder / "tls", "test")
        pair = self.authority.node("node-1", self.folder)
        self.certificates = Certificates(pair.cert, pair.key, self.authority.ca)

    @asynccontextmanager
    async def agent(self) -> AsyncIterator[Agent]:
        """One life of its agent."""
        ports_dir = self.folder.parent / "ports"
        ports = Ports(OUTER, ports_dir)
        inlet = Inlet(self.folder / "inlet", OUTER, self.certificates, ports)
        made = Agent(self.folder, "node-1", Resources(cpu_milli=1000, memory_mib=512), ports_dir=ports_dir, inlet=inlet)
        await made.start()
        try:
            yield made
        finally:
            await made.close()
            ports.close()

    def asked(self, port: int) -> bytes:
        """What a gateway is answered."""
        context = ssl.create_default_context(cafile=str(self.authority.ca))
        pair = self.authority.client("gateway")
        context.load_cert_chain(pair.cert, pair.key)
        try:
            with (
                socket.create_connection((OUTER, port), 20) as plain,
                context.wrap_socket(plain, server_hostname=node_host("node-1")) as sock,
            ):
                sock.sendall(b"HEAD / HTTP/1.0\r\n\r\n")
                return sock.recv(12)
        except OSError:
            return b""

    def end(self) -> None:
        for folder in (*self.folder.glob("replicas/*"), self.folder / "inlet"):
            launch.stop(folder, 0)


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    made = Node(tmp_path)
    try:
        yield made
    finally:
        made.end()


def order(*command: str, owner_kind: Any = "deployment", **fields: Any) -> ReplicaSpec:
    return ReplicaSpec(
        uid=uuid7(), workspace="default", name="x", owner_kind=owner_kind, owner="x", command=command, **fields
    )


def report(agent: Agent, uid: str) -> ReplicaReport:
    return next(item for item in agent.usage().replicas if item.uid == uid)


async def until(true: Callable[[], Any]) -> None:
    async with asyncio.timeout(60):
        while not await asyncio.to_thread(true):
            await asyncio.sleep(0.01)


def test_what_serves_is_at_the_nodes_address_and_keeps_its_port(node: Node) -> None:
    asyncio.run(keeps_its_port(node))


async def keeps_its_port(node: Node) -> None:
    spec = order(sys.executable, "-S", "-c", SERVER, "{port}")
    job = order(sys.executable, "-S", "-c", SERVER, "{port}", owner_kind="job")
    async with node.agent() as agent:
        await agent.apply(spec, 1)
        await agent.apply(job, 1)
        await until(lambda: report(agent, spec.uid).phase == report(agent, job.uid).phase == "ready")
        seen = report(agent, spec.uid)
        assert (agent.usage().address, seen.address, seen.tls) == (OUTER, OUTER, True)
        port = seen.port
        assert port is not None
        assert port != json.loads((node.folder / "replicas" / spec.uid / "life.json").read_text())["port"]
        await until(lambda: node.asked(port) == b"HTTP/1.0 200")
        # What no gateway asks for stays on its host: there is nobody to prove anything to its callers.
        assert (report(agent, job.uid).address, report(agent, job.uid).tls) == ("127.0.0.1", False)
    assert await asyncio.to_thread(node.asked, port) == b"HTTP/1.0 200", "it goes on while the agent is away"
    async with node.agent() as agent:
        assert report(agent, spec.uid).port == port
        assert await asyncio.to_thread(node.asked, port) == b"HTTP/1.0 200"
        await agent.stop(spec.uid, 5, 1)
        await until(lambda: report(agent, spec.uid).phase == "exited")
        await until(lambda: node.asked(port) == b"")
        assert report(agent, spec.uid).port is None
        with pytest.raises(Conflict):
            await asyncio.to_thread(leave, node.folder)
    assert await asyncio.to_thread(leave, node.folder) == 1
    assert await asyncio.to_thread(leave, node.folder) == 0
    assert launch.state(node.folder / "inlet").child is None
    ended = launch.state(node.folder / "replicas" / job.uid).exit
    assert ended is not None
    assert ended.reason == REASON
    with pytest.raises(NotFound):
        leave(node.folder.parent)


def test_a_blob_comes_from_a_server_with_a_certificate_of_the_cell_only(node: Node, tmp_path: Path) -> None:
    asyncio.run(blobs_come(node, tmp_path))


async def blobs_come(node: Node, tmp_path: Path) -> None:
    data = b"weights"
    digest = "sha256:" + hashlib.sha256(data).hexdigest()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    def serve(authority: Authority) -> http.server.ThreadingHTTPServer:
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        pair = authority.server("localhost")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(pair.cert, pair.key)
        server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever).start()
        return server

    async def fetched(server: http.server.ThreadingHTTPServer, agent: Agent) -> ReplicaReport:
        url = f"https://localhost:{server.server_port}/blob"
        blob = FetchBlob(ref=BlobRef(path="model", digest=digest, size_bytes=len(data)), url=url)
        spec = order("sleep", "60", owner_kind="job", needs_port=False, blobs=(blob,))
        await agent.apply(spec, 1)
        await until(lambda: report(agent, spec.uid).phase in ("ready", "exited"))
        return report(agent, spec.uid)

    good, foreign = serve(node.authority), serve(Authority(tmp_path / "other", "another"))
    try:
        async with node.agent() as agent:
            refused = await fetched(foreign, agent)
            assert refused.phase == "exited"
            assert refused.exit is not None
            assert "CERTIFICATE_VERIFY_FAILED" in refused.exit.reason
            assert (await fetched(good, agent)).phase == "ready"
    finally:
        for server in (good, foreign):
            await asyncio.to_thread(server.shutdown)
            server.server_close()
