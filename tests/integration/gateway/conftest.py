"""A gateway of real Envoys with real backend processes and a load that checks every answer."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lepton_ai.gateway.envoy import EnvoyGateway, Published
from lepton_ai.gateway.listener import Listen
from lepton_ai.gateway.upstream import Upstream
from lepton_ai.spec.route import Backend, Endpoint, Route, Routes
from lepton_ai.tenancy.authority import Authority

BACKEND = r"""
import asyncio, json, sys
name, lag_s = sys.argv[1], float(sys.argv[3])
state = {"draining": 0}
released = asyncio.Event()
async def handle(reader, writer):
    try:
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            lines = head.split("\r\n")
            method, path, _ = lines[0].split(" ")
            fields = {k.strip().lower(): v.strip() for k, _, v in (l.partition(":") for l in lines[1:])}
            body = await reader.readexactly(int(fields.get("content-length", 0)))
            if "upgrade" in fields:
                writer.write(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n")
                while data := await reader.read(4096):
                    writer.write(data.upper()); await writer.drain()
                return
            if path.startswith("/sse"):
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n")
                writer.write(b"Transfer-Encoding: chunked\r\n\r\n")
                for i in range(3):
                    part = b"data: %d\n\n" % i
                    writer.write(b"%x\r\n%s\r\n" % (len(part), part)); await writer.drain()
                    if i == 0 and "x-hold" in fields:
                        await released.wait()
                writer.write(b"0\r\n\r\n"); await writer.drain()
                continue
            if path.startswith("/drain"):
                state["draining"] = 1
            if path.startswith("/undrain"):
                state["draining"] = 0
            if path.startswith("/release"):
                released.set()
            if "x-hold" in fields:
                await released.wait()
            await asyncio.sleep(float(fields.get("x-sleep", lag_s)))
            status = b"503 Service Unavailable" if state["draining"] and path.startswith("/work") else b"200 OK"
            answer = json.dumps({"name": name, "path": path, "length": len(body), "fields": fields}).encode()
            writer.write(b"HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n%s" % (status, len(answer), answer))
            await writer.drain()
            if fields.get("connection", "").lower() == "close":
                return
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writer.close()
async def main():
    server = await asyncio.start_server(handle, "127.0.0.1", int(sys.argv[2]))
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.Event().wait()
asyncio.run(main())
"""


class Replica:
    """A backend process that says its name in every answer."""

    def __init__(self, name: str, port: int = 0, lag_s: float = 0.0) -> None:
        self.name = name
        argv = [sys.executable, "-I", "-S", "-c", BACKEND, name, str(port), str(lag_s)]
        self.process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline())
        self.endpoint = Endpoint(replica=name, address="127.0.0.1", port=self.port)

    def release(self) -> None:
        """Let it answer the requests that came with the header x-hold."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        with contextlib.closing(connection):
            connection.request("GET", "/release")
            assert connection.getresponse().status == 200

    def end(self) -> None:
        self.process.kill()
        self.process.wait(10)
        assert self.process.stdout is not None
        self.process.stdout.close()


class Load:
    """Closed loop on `connections` connections from a thread of its own, until `stop`."""

    def __init__(self, port: int, path: str, connections: int = 6, names: str = "") -> None:
        self.ok = 0
        self.failed: list[str] = []
        self.by_name: Counter[str] = Counter()
        self._port, self._path, self._connections, self._names = port, path, connections, names
        self._stop = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._main()))
        self._thread.start()

    def stop(self) -> Load:
        self._stop.set()
        self._thread.join(30)
        assert not self._thread.is_alive()
        return self

    async def _main(self) -> None:
        await asyncio.gather(*(self._client() for _ in range(self._connections)))

    async def _client(self) -> None:
        writer = None
        while not self._stop.is_set():
            try:
                if writer is None:
                    reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
                writer.write(f"GET {self._path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
                head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 20)
                length = next(
                    int(line.split(b":")[1])
                    for line in head.split(b"\r\n")
                    if line.lower().startswith(b"content-length")
                )
                body = await reader.readexactly(length)
                if head[9:12] == b"200":
                    self.ok += 1
                    self.by_name[json.loads(body)["name"]] += 1
                else:
                    self.failed.append(f"{head[9:12].decode()} {body.decode()}")
            except (OSError, asyncio.IncompleteReadError, TimeoutError) as error:
                self.failed.append(repr(error))
                if writer is not None:
                    writer.close()
                writer = None
            await asyncio.sleep(0.002)
        if writer is not None:
            writer.close()


class Place:
    """The gateway under test with everything that it needs."""

    def __init__(
        self,
        folder: Path,
        upstream: Upstream | None = None,
        trusted: tuple[str, ...] = (),
        *,
        picker: bool = True,
    ) -> None:
        self.folder = folder
        self.port = free_port()
        listen = Listen("127.0.0.1", self.port, trusted=trusted)
        self.gateway = EnvoyGateway(folder, listen, upstream=upstream, picker=picker)
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.replicas: list[Replica] = []
        self.loads: list[Load] = []
        for number in (1, 2):
            self.start(number)
        self.until(lambda: self.gateway.live() == 2)

    def start(self, number: int) -> None:
        self._run(f"envoy-{number}", self.gateway.argv(number))

    def start_activator(self, **limits: float) -> None:
        argv = self.gateway.activator_argv()
        for name, value in limits.items():
            argv += [f"--{name.replace('_', '-')}", str(value)]
        self._run("activator", argv, self.gateway.environment())
        self.until(lambda: (self.gateway._files.activator_socket()).exists())

    def _run(self, name: str, argv: list[str], env: dict[str, str] | None = None) -> None:
        with (self.folder.parent / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(argv, stdout=log, stderr=log, env=env or {})

    def kill(self, name: str) -> None:
        process = self.processes.pop(name)
        process.kill()
        process.wait(10)

    def replica(self, name: str, port: int = 0, lag_s: float = 0.0) -> Replica:
        self.replicas.append(Replica(name, port, lag_s))
        return self.replicas[-1]

    def load(self, path: str, connections: int = 6) -> Load:
        self.loads.append(Load(self.port, path, connections))
        return self.loads[-1]

    def publish(self, *routes: Route) -> Published:
        return self.gateway.publish(Routes(routes=routes))

    def get(self, path: str, *, host: str | None = None, timeout_s: float = 30, **headers: str) -> tuple[int, Any]:
        """Status and JSON body of GET `path`, sent as it is."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout_s)
        with contextlib.closing(connection):
            connection.putrequest("GET", path, skip_host=host is not None)
            for name, value in {**({"Host": host} if host else {}), **headers}.items():
                connection.putheader(name.replace("_", "-"), value)
            connection.endheaders()
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())

    def until(self, condition: Callable[[], bool], timeout_s: float = 30) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, "the condition did not come true in time"
            time.sleep(0.01)

    def end(self) -> None:
        for load in self.loads:
            load.stop()
        for process in self.processes.values():
            process.kill()
        for process in self.processes.values():
            process.wait(10)
        for replica in self.replicas:
            replica.end()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def make_route(name: str, *releases: list[Replica], weights: tuple[int, ...] = (), **fields: Any) -> Route:
    """A route of workspace "default" whose releases 1, 2, ... have these replicas."""
    backends = tuple(
        Backend(
            release=number,
            weight=weights[number - 1] if weights else 100,
            endpoints=tuple(replica.endpoint for replica in replicas),
        )
        for number, replicas in enumerate(releases, 1)
    )
    return Route(workspace="default", name=name, backends=backends, **fields)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path / "gateway")
    try:
        yield made
    finally:
        made.end()


@pytest.fixture
def plain(tmp_path: Path) -> Iterator[Place]:
    """A gateway on a machine where its picker cannot be built."""
    made = Place(tmp_path / "gateway", picker=False)
    try:
        yield made
    finally:
        made.end()


@pytest.fixture
def behind(tmp_path: Path) -> Iterator[Place]:
    """A gateway behind a proxy whose addresses are those of 127.0.7.0/24."""
    made = Place(tmp_path / "gateway", trusted=("127.0.7.0/24",))
    try:
        yield made
    finally:
        made.end()


@pytest.fixture
def far(tmp_path: Path) -> Iterator[Place]:
    """A gateway with certificates by the authority in tmp_path/tls."""
    authority = Authority(tmp_path / "tls", "test")
    pair = authority.client("gateway")
    made = Place(tmp_path / "gateway", Upstream(str(authority.ca), str(pair.cert), str(pair.key)))
    try:
        yield made
    finally:
        made.end()


@pytest.fixture
def route() -> Callable[..., Route]:
    return make_route


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """One place for the tests that only read: an open route, a locked one, one that nobody may call."""
    made = Place(tmp_path_factory.mktemp("shared") / "gateway")
    try:
        opened, locked = made.replica("open"), made.replica("locked")
        made.publish(
            make_route("open", [opened]),
            make_route("locked", [locked], tokens=("right", "second")),
            make_route("other", [locked], tokens=("other",)),
            make_route("nobody", [locked], tokens=()),
        )
        yield made
    finally:
        made.end()
