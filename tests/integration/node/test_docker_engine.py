"""The engine itself dies, or comes back: what runs goes on where it can, and what ended is told as it was."""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from lepton_ai.node.identity import Identity


def load() -> Any:
    """The class `Node` of the tests beside this file."""
    spec = importlib.util.spec_from_file_location("node_test_docker", Path(__file__).with_name("test_docker.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


here = load()


@pytest.fixture(params=["live-restore", "plain"])
def stage(request: pytest.FixtureRequest, containers: Any, tmp_path: Path) -> Iterator[Any]:
    """A node with an engine of its own, that is to be killed."""
    flags = ("--live-restore",) if request.param == "live-restore" else ()
    docker = containers.Docker(*flags)
    node = here.Node(tmp_path / "node-1", docker, "base:1")
    try:
        docker.start()
        docker.load(containers.image(), "base", "1", "ENV PATH=/bin")
        node.start()
        yield node, bool(flags)
    finally:
        node.end()
        docker.end()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_an_engine_that_restarts(stage: Any, number: int) -> None:
    node, keeps = stage
    code = "import time\nfor n in range(100000): print(n); time.sleep(0.1)"
    uid = node.serve()
    talker = node.apply("python", "-u", "-c", code)
    port = node.phase(uid, "ready")["port"]
    here.until(lambda: node.lines(talker))
    containers = [Identity.of(node.container(one)["State"]["Pid"]) for one in (uid, talker)]
    node.docker.kill(number)
    if keeps:
        assert httpx.get(f"http://127.0.0.1:{port}/", trust_env=False).status_code == 200
        assert node.report(uid)["phase"] == "ready"
        os.kill(containers[1].pid, signal.SIGKILL)  # it ends while nobody can tell how
        node.docker.start()
        assert node.phase(talker, "exited")["exit"]["signal"] == signal.SIGKILL
        assert node.report(uid)["phase"] == "ready"
        assert containers[0].alive()
        again = node.apply("python", "-c", "print('goes on')")
        assert node.phase(again, "exited")["exit"]["code"] == 0
        node.http.delete(f"/v1/replicas/{uid}", params={"grace_s": 1})
        assert node.phase(uid, "exited")["exit"]["signal"] == signal.SIGKILL
    else:
        node.docker.start()  # it ends what it finds
        for one in (uid, talker):
            assert node.phase(one, "exited")["exit"]["code"] != 0
        here.until(lambda: not any(one.alive() for one in containers))
    here.until(lambda: not node.left())


@pytest.mark.parametrize("stage", ["live-restore"], indirect=True)
def test_a_replica_is_stopped_without_an_engine(stage: Any) -> None:
    node, _ = stage
    uid = node.apply("sleep", "600")
    node.phase(uid, "ready")
    container = Identity.of(node.container(uid)["State"]["Pid"])
    node.docker.kill(signal.SIGKILL)
    node.http.delete(f"/v1/replicas/{uid}", params={"grace_s": 1})
    node.phase(uid, "exited")
    assert not container.alive()
    waiting = node.apply("true")  # said, not waited for without end
    assert "does not answer" in node.phase(waiting, "exited")["reason"]
    node.docker.start()
    here.until(lambda: not node.left())
