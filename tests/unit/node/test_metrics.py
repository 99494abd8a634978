"""Use is a difference between two looks; health a verdict on one answer."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lepton_ai.node import cgroup
from lepton_ai.node.metrics import Metrics, Target, Use
from lepton_ai.node.probe import _verdict


def group(folder: Path, cpu_ns: int, memory: int) -> tuple[str, ...]:
    (folder / "memory").mkdir(exist_ok=True)
    (folder / "cpuacct.usage").write_text(f"{cpu_ns}\n")
    (folder / "memory/memory.stat").write_text(f"cache 5\ntotal_cache 9\ntotal_rss {memory}\n")
    return (str(folder / "memory"), str(folder))


def test_use_between_two_looks(tmp_path: Path) -> None:
    metrics = Metrics()
    target = Target(7, group(tmp_path, 1_000_000_000, 3 << 20))
    assert metrics.sample({"a": target}, 10_000_000_000) == {"a": Use(0, 3)}
    group(tmp_path, 2_000_000_000, (3 << 20) + 1)
    assert metrics.sample({"a": target}, 12_000_000_000) == {"a": Use(500, 4)}
    # Another process of the same replica begins anew.
    assert metrics.sample({"a": Target(8, target.groups)}, 13_000_000_000)["a"].cpu_milli == 0
    assert metrics.sample({}, 14_000_000_000) == {}


def test_version_2_groups(tmp_path: Path) -> None:
    (tmp_path / "cpu.stat").write_text("usage_usec 1500\nuser_usec 1\n")
    (tmp_path / "memory.stat").write_text("anon 4096\nfile 1\n")
    assert cgroup.use((str(tmp_path),)) == (1_500_000, 4096)
    assert cgroup.use((str(tmp_path / "gone"),)) is None


def test_use_of_this_session() -> None:
    leader = os.getsid(0)
    metrics = Metrics()
    first = metrics.sample({"me": Target(leader)}, 1)["me"]
    assert first.memory_mib >= 1
    assert metrics.sample({"me": Target(leader), "no": Target(2**22 + 1)}, 2)["no"] == Use(0, 0)


@pytest.mark.parametrize(
    ("line", "good"),
    [
        (b"HTTP/1.1 200 OK\r\n", True),
        (b"HTTP/1.0 399 X\r\n", True),
        (b"HTTP/1.1 404 Not Found\r\n", False),
        (b"HTTP/1.1 503\r\n", False),
        (b"220 mail ready\r\n", False),
        (b"HTTP/1.1 ok\r\n", False),
        (b"", False),
    ],
)
def test_verdict_of_an_answer(line: bytes, good: bool) -> None:
    assert (_verdict("/healthz", line) is None) is good
