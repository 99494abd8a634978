"""Without root a node cannot make networks: then the engine's are used, one a workspace, and it leads ports there."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from lepton_ai.node.agent import Agent
from lepton_ai.node.docker import DockerRuntime, clear
from lepton_ai.node.engine import Engine
from lepton_ai.node.images import Images
from lepton_ai.spec.base import uuid7
from lepton_ai.spec.replica import ReplicaReport, ReplicaSpec
from lepton_ai.spec.workload import Resources

WAIT_S = 90.0
SERVE = "import http.server; http.server.test(http.server.SimpleHTTPRequestHandler, port=8080)"
FETCH = (
    "import sys, urllib.request; print(urllib.request.urlopen('http://' + sys.argv[1] + ':8080/', timeout=5).status)"
)


@pytest.fixture
def runtime(docker: Any, registry: Any, tmp_path: Path) -> Iterator[DockerRuntime]:
    made = subprocess.run(["ip", "link", "add", "lai-bridge", "type", "bridge"], capture_output=True, check=False)
    subprocess.run(["ip", "link", "delete", "lai-bridge"], capture_output=True, check=False)
    if made.returncode != 0:
        pytest.skip("this kernel has no bridges")
    engine = Engine(docker.path)
    folder = tmp_path / "node-1"
    yield DockerRuntime("node-1", folder, engine, Images(engine, tmp_path / "images.json"))
    clear(engine, folder)
    assert not [one for one in engine.ask("GET", "/networks") if one["Name"].startswith("lepton_ai-")]


def test_two_replicas_with_one_port(runtime: DockerRuntime, docker: Any, registry: Any, tmp_path: Path) -> None:
    def order(*command: str, **fields: Any) -> ReplicaSpec:
        uid = uuid7()
        values: dict[str, Any] = {
            "workspace": "default", "owner_kind": "deployment", "owner": "web", "name": f"web-{uid}",
            "image": f"{registry.host}/base:1", "resources": Resources(cpu_milli=500, memory_mib=64), **fields,
        }  # fmt: skip
        return ReplicaSpec(uid=uid, command=command, **values)

    async def life() -> None:
        agent = Agent(tmp_path / "node-1", "node-1", Resources(), runtime, ports_dir=tmp_path / "ports")
        await agent.start()
        orders = [order("python", "-u", "-c", SERVE, port=8080, health={"path": "/"}) for _ in range(2)]
        for one in orders:
            await agent.apply(one, 1)
        reports = await until(agent, "ready")
        ports = {one.port for one in reports}
        assert len(ports) == 2
        assert 8080 not in ports
        for port in ports:
            answer = await asyncio.to_thread(httpx.get, f"http://127.0.0.1:{port}/", trust_env=False)
            assert answer.status_code == 200
        inside = docker.inspect(f"lepton-{orders[0].uid}")["NetworkSettings"]["Networks"]
        address = next(iter(inside.values()))["IPAddress"]
        friend = order("python", "-c", FETCH, address, owner_kind="job", needs_port=False)
        await agent.apply(friend, 1)
        assert (await until(agent, "exited", friend.uid))[0].exit.code == 0  # type: ignore[union-attr]
        networks = {name for one in docker.containers() for name in one["NetworkSettings"]["Networks"]}
        assert len(networks) == 1
        stranger = order("python", "-c", "import time; time.sleep(600)", workspace="evil", needs_port=False)
        await agent.apply(stranger, 1)
        await until(agent, "ready", stranger.uid)
        networks = {name for one in docker.containers() for name in one["NetworkSettings"]["Networks"]}
        assert {name.rpartition("-")[2] for name in networks} == {"default", "evil"}
        for one in (*orders, friend, stranger):
            await agent.stop(one.uid, 0, 1)
        await until(agent, "exited")
        for one in (*orders, friend, stranger):
            await agent.forget(one.uid, 1)
        await agent.close()

    async def until(agent: Agent, phase: str, uid: str = "") -> list[ReplicaReport]:
        while True:
            reports = [one for one in agent.usage().replicas if not uid or one.uid == uid]
            if all(one.phase == phase for one in reports):
                return reports
            assert phase == "exited" or not any(one.exit for one in reports), reports
            await asyncio.sleep(0.02)

    asyncio.run(asyncio.wait_for(life(), WAIT_S))
