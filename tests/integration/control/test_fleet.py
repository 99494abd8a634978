"""The fleet over HTTP against a real agent on loopback, with real shims and processes."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from lepton_ai.control.nodes import HttpFleet
from lepton_ai.control.ports import NodeAddress
from lepton_ai.errors import NotFound, Unavailable
from lepton_ai.node import shim
from lepton_ai.node.agent import Agent
from lepton_ai.node.server import Server
from lepton_ai.spec.base import uuid7
from lepton_ai.spec.replica import MountOrder, ReplicaReport, ReplicaSpec
from lepton_ai.spec.workload import Resources

TOKEN = "the agent's token"
SERVE = "import http.server; http.server.test(http.server.BaseHTTPRequestHandler, port=int({port}), bind='127.0.0.1')"


class Node:
    """An agent in a thread: `start`, `stop` (its replicas run on) and `close` (they end)."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True)
        (folder / "agent.token").write_text(TOKEN)
        self.agent: Agent | None = None
        self._thread: threading.Thread | None = None

    @property
    def address(self) -> NodeAddress:
        return NodeAddress("node-1", "127.0.0.1", 1, str(self.folder / "agent.token"))  # the port stands in agent.json

    def start(self) -> None:
        started = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve(started)))
        self._thread.start()
        assert started.wait(30)

    def stop(self) -> None:
        if self._thread is not None:
            self._loop.call_soon_threadsafe(self._end)
            self._thread.join(30)
            self._thread = None

    def close(self) -> None:
        self.stop()
        for record in self.folder.glob("replicas/*/shim.json"):
            found = shim.read_record(str(record)) or {}
            with_pid = int(found.get("pid", 0))
            if with_pid and shim.start_ticks(with_pid) == found.get("start_ticks"):
                os.kill(with_pid, signal.SIGTERM)

    async def _serve(self, started: threading.Event) -> None:
        self._loop = asyncio.get_running_loop()
        self.agent = Agent(self.folder, "node-1", Resources(cpu_milli=4000, memory_mib=4096))
        await self.agent.start()
        application = Server(self.agent, TOKEN)
        config = uvicorn.Config(
            application, loop="asyncio", ws="none", lifespan="off", log_config=None, access_log=False,
            timeout_graceful_shutdown=2,
        )  # fmt: skip
        server = uvicorn.Server(config)
        sock = socket.create_server(("127.0.0.1", 0))

        def end() -> None:
            application.closing.set()
            server.should_exit = True

        self._end = end
        shim.write_record(str(self.folder / "agent.json"), {"address": "127.0.0.1", "port": sock.getsockname()[1]})
        started.set()
        await server._serve([sock])  # without the handlers of signals, which belong to the main thread
        sock.close()
        await self.agent.close()


def until(true: Callable[[], Any], timeout_s: float = 30) -> Any:
    end_s = time.monotonic() + timeout_s
    while not (value := true()):
        assert time.monotonic() < end_s, "did not happen in time"
        time.sleep(0.01)
    return value


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    made = Node(tmp_path / "node-1")
    made.start()
    yield made
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
    made.close()
    gc.collect()  # what was left open would warn here, and warnings are errors


def spec_of(*command: str, **fields: Any) -> ReplicaSpec:
    uid = uuid7()
    return ReplicaSpec(
        uid=uid, workspace="default", name="x", owner_kind="deployment", owner="x", command=command, **fields
    )


def report(fleet: HttpFleet, uid: str) -> ReplicaReport | None:
    view = fleet.nodes()["node-1"]
    found = view.report.replicas if view.report is not None else ()
    return next((item for item in found if item.uid == uid), None)


def phase(fleet: HttpFleet, uid: str) -> str:
    found = report(fleet, uid)
    return found.phase if found is not None else ""


def test_from_the_order_to_the_end(node: Node, fleet: HttpFleet, kept: dict[str, list[str]]) -> None:
    changes = threading.Semaphore(0)
    fleet.subscribe(changes.release)
    fleet.connect([node.address], 1)
    until(lambda: fleet.nodes()["node-1"].connected)
    assert changes.acquire(timeout=10)
    spec = spec_of(sys.executable, "-u", "-c", "print('hello'); " + SERVE)
    fleet.apply("node-1", spec, 1)
    fleet.apply("node-1", spec, 1)
    until(lambda: phase(fleet, spec.uid) == "ready")
    found = report(fleet, spec.uid)
    assert found is not None
    assert found.port
    fleet.stop("node-1", spec.uid, 1.0, 1)
    until(lambda: phase(fleet, spec.uid) == "exited")
    fleet.forget("node-1", spec.uid, 1, spec)
    fleet.forget("node-1", spec.uid, 1, spec)
    until(lambda: report(fleet, spec.uid) is None)
    assert kept[spec.uid][0] == "hello"
    fleet.forget("node-1", "nobody", 1, None)


def test_an_agent_that_restarts_elsewhere_is_found_and_its_replica_still_runs(node: Node, fleet: HttpFleet) -> None:
    fleet.connect([node.address], 1)
    spec = spec_of("sleep", "600", needs_port=False)
    until(lambda: fleet.nodes()["node-1"].connected)
    fleet.apply("node-1", spec, 1)
    until(lambda: phase(fleet, spec.uid) == "ready")
    before = report(fleet, spec.uid)
    node.stop()
    until(lambda: not fleet.nodes()["node-1"].connected)
    assert "agent" in fleet.nodes()["node-1"].reason
    fleet.stop("node-1", "lost-on-the-way", None, 1)
    node.start()
    until(lambda: fleet.nodes()["node-1"].connected and phase(fleet, spec.uid) == "ready")
    after = report(fleet, spec.uid)
    assert before is not None
    assert after is not None
    assert (after.pid, after.started_ms) == (before.pid, before.started_ms)


def test_an_older_leader_is_not_obeyed(node: Node, fleet: HttpFleet) -> None:
    fleet.connect([node.address], 7)
    until(lambda: fleet.nodes()["node-1"].connected)
    first, second = spec_of("sleep", "600", needs_port=False), spec_of("sleep", "600", needs_port=False)
    fleet.apply("node-1", first, 7)
    until(lambda: phase(fleet, first.uid) == "ready")
    fleet.apply("node-1", second, 6)
    fleet.stop("node-1", first.uid, 1.0, 6)
    third = spec_of("sleep", "600", needs_port=False)
    fleet.apply("node-1", third, 7)
    until(lambda: phase(fleet, third.uid) == "ready")
    time.sleep(0.2)
    assert phase(fleet, first.uid) == "ready"
    assert report(fleet, second.uid) is None


def test_leases_are_renewed_only_while_the_loop_says_that_it_leads(
    node: Node, fleet: HttpFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lepton_ai.control.nodes.KEEPALIVE_S", 0.05)
    monkeypatch.setattr("lepton_ai.control.nodes.LEADS_S", 0.5)
    fleet.connect([node.address], 1)
    until(lambda: fleet.nodes()["node-1"].connected)
    agent = node.agent
    assert agent is not None
    seen = agent._contact_ns
    until(lambda: agent._contact_ns > seen)
    time.sleep(0.8)  # the loop stands still
    seen = agent._contact_ns
    time.sleep(0.3)
    assert agent._contact_ns == seen
    fleet.connect([node.address], 1)
    until(lambda: agent._contact_ns > seen)


def test_logs_are_read_from_the_node(node: Node, fleet: HttpFleet) -> None:
    fleet.connect([node.address], 1)
    until(lambda: fleet.nodes()["node-1"].connected)
    spec = spec_of("sh", "-c", "echo one; echo two >&2; exit 3", needs_port=False)
    fleet.apply("node-1", spec, 1)
    until(lambda: phase(fleet, spec.uid) == "exited")

    async def read(name: str, uid: str) -> list[tuple[str, str]]:
        return sorted([(stream, text) async for _, stream, text in fleet.log(name, uid)])

    assert asyncio.run(read("node-1", spec.uid)) == [("e", "two"), ("o", "one")]
    with pytest.raises(NotFound):
        asyncio.run(read("node-1", "nobody"))
    with pytest.raises(Unavailable):
        asyncio.run(read("node-2", spec.uid))


def test_a_wrong_token_and_another_nodes_address_are_said(node: Node, fleet: HttpFleet) -> None:
    wrong = node.address
    fleet.connect([NodeAddress("node-2", wrong.address, wrong.port, wrong.token_file)], 1)
    until(lambda: "that of node node-1" in fleet.nodes()["node-2"].reason)
    (node.folder / "agent.token").write_text("another")
    fleet.connect([wrong], 1)
    until(lambda: "answered 401" in fleet.nodes()["node-1"].reason)
    assert not fleet.nodes()["node-1"].connected


def test_why_a_node_does_not_take_an_order_is_known(node: Node, fleet: HttpFleet) -> None:
    fleet.connect([node.address], 3)
    until(lambda: fleet.nodes()["node-1"].connected)
    mounts = spec_of("true", needs_port=False, mounts=(MountOrder(target="/data"),))
    fleet.apply("node-1", mounts, 3)
    until(lambda: mounts.uid in fleet.nodes()["node-1"].refused)
    assert "/data" in fleet.nodes()["node-1"].refused[mounts.uid]
    stale = spec_of("true", needs_port=False)
    fleet.apply("node-1", stale, 2)
    last = spec_of("true", needs_port=False)
    fleet.apply("node-1", last, 3)
    until(lambda: phase(fleet, last.uid) == "exited")
    assert set(fleet.nodes()["node-1"].refused) == {mounts.uid}


def test_it_ends_in_the_middle_of_everything(node: Node, kept: dict[str, list[str]]) -> None:
    fleet = HttpFleet()
    fleet.connect([node.address], 1)
    for _ in range(20):
        fleet.apply("node-1", spec_of("true", needs_port=False), 1)
    fleet.close()
    fleet.apply("node-1", spec_of("true", needs_port=False), 1)
    fleet.forget("node-1", "nobody", 1, None)
    fleet.connect([node.address], 1)
    assert fleet.nodes() == {}
    assert not fleet._thread.is_alive()
    gc.collect()
