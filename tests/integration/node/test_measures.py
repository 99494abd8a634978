"""What a real agent says of a busy replica, of the whole machine, and of a replica that gets no processor."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from lepton_ai.node import launch
from lepton_ai.spec.base import uuid7
from lepton_ai.spec.replica import NodeReport, ReplicaReport, ReplicaSpec

WAIT_S = 60.0
BURN = "while True: pass"
WRITE = "import os,time\nwhile True:\n f=open('x','wb'); f.write(os.urandom(1<<22)); f.flush(); os.fsync(f.fileno())\n"


def until(check: Callable[[], Any]) -> Any:
    end_s = time.monotonic() + WAIT_S
    while not (value := check()):
        assert time.monotonic() < end_s, "did not happen in time"
        time.sleep(0.1)
    return value


class Node:
    """An agent on this machine."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        words = ["--dir", str(folder), "--name", "node-1", "--cpu-milli", "1000", "--memory-mib", "1024"]
        self.process = subprocess.Popen([sys.executable, "-m", "lepton_ai.node", *words], stderr=subprocess.DEVNULL)
        record = folder / "agent.json"
        until(record.exists)
        token = (folder / "agent.token").read_text()
        port = json.loads(record.read_text())["port"]
        headers = {"Authorization": f"Bearer {token}", "X-Lepton-Epoch": "1"}
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=WAIT_S, trust_env=False)

    def run(self, code: str) -> str:
        uid = uuid7()
        spec = ReplicaSpec(
            uid=uid, name="busy-1", command=(sys.executable, "-S", "-c", code), owner_kind="job", owner="busy",
            workspace="default", needs_port=False,
        )  # fmt: skip
        assert self.http.put(f"/v1/replicas/{uid}", content=spec.model_dump_json()).status_code == 202
        return uid

    def report(self) -> NodeReport:
        return NodeReport.model_validate_json(self.http.get("/v1/usage").content)

    def replica(self, uid: str) -> ReplicaReport:
        return next(one for one in self.report().replicas if one.uid == uid)

    def end(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.communicate(timeout=WAIT_S)
        self.http.close()
        for path in (self.folder / "replicas").iterdir():
            launch.stop(path, 0)


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    one = Node(tmp_path_factory.mktemp("measures") / "node-1")
    yield one
    one.end()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_busy_child_shows_in_the_report_as_its_replicas_and_as_the_machines(node: Node) -> None:
    idle, busy = node.run("import time; time.sleep(1e6)"), node.run(BURN)
    until(lambda: node.replica(busy).cpu_milli > 300)  # a core, or what others leave of it
    report = node.report()
    replica = next(one for one in report.replicas if one.uid == busy)
    assert report.cpu_used_milli >= replica.cpu_milli > 300
    assert node.replica(idle).cpu_milli < 50
    gauges = until(lambda: (known := node.report().gauges) is not None and known.cpu_milli is not None and known)
    assert gauges.cpu_milli > 300
    assert gauges.cores_milli >= gauges.cpu_milli
    assert gauges.memory_mib > gauges.memory_used_mib > 0
    first = gauges.samples
    until(lambda: (known := node.report().gauges) is not None and known.samples > first)


@pytest.mark.skipif(not Path("/proc/self/schedstat").exists(), reason="the kernel does not count waiting")
def test_a_replica_that_others_leave_no_processor_shows_as_stalled(node: Node) -> None:
    """More that burn than there are processors: each is ready to run for longer than it runs."""
    burning = [node.run(BURN) for _ in range(2 * len(os.sched_getaffinity(0)) + 1)]

    def stalled() -> bool:
        gauges = node.replica(burning[0]).gauges
        return gauges is not None and gauges.cpu_stall is not None and gauges.cpu_stall > 0.25

    until(stalled)


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="the kernel does not count bytes")
def test_a_replica_that_writes_shows_so(node: Node) -> None:
    uid = node.run(WRITE)

    def writes() -> bool:
        gauges = node.replica(uid).gauges
        return gauges is not None and (gauges.disk_write_bytes_s or 0) > 1 << 20

    until(writes)
