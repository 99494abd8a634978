"""Control groups, version 1 or 2, where this process may make them: limits that hold, and exact use.

Owns one group a replica, under lepton_ai/. Memory is a hard limit; processor time is a share that counts only when
the machine is full, so that a start may be fast on an idle one.
"""

from __future__ import annotations

import contextlib
import os
import sys
from functools import cache
from pathlib import Path

from lepton_ai.spec.workload import Resources

ROOT = Path("/sys/fs/cgroup")
MAX_PROCESSES = 4096
"""Of one replica, threads included: a fork bomb leaves the machine to the others."""


def make(name: str, resources: Resources) -> tuple[str, ...]:
    """The folders a process joins to be limited; empty where groups cannot be made, and nothing half made is left."""
    folders: list[Path] = []
    try:
        for parent, files in _layout(resources):
            folder = parent / name
            folder.mkdir(exist_ok=True)
            folders.append(folder)
            for file, value in files.items():
                (folder / file).write_text(value)
    except OSError:
        remove(tuple(str(folder) for folder in folders))
        return ()
    return tuple(str(folder) for folder in folders)


def remove(folders: tuple[str, ...]) -> bool:
    """Remove groups without processes; whether all are gone."""
    for folder in folders:
        with contextlib.suppress(OSError):
            os.rmdir(folder)
    return not any(os.path.exists(folder) for folder in folders)


def use(folders: tuple[str, ...]) -> tuple[int, int] | None:
    """(processor time in ns since it was made, bytes of memory that are not cache); None when it cannot be read."""
    cpu_ns = memory = None
    for folder in folders:
        for file, field, factor in (("cpuacct.usage", None, 1), ("cpu.stat", "usage_usec", 1000)):
            cpu_ns = _read(f"{folder}/{file}", field, factor) if cpu_ns is None else cpu_ns
        for field in ("total_rss", "anon"):
            memory = _read(f"{folder}/memory.stat", field, 1) if memory is None else memory
    return None if cpu_ns is None or memory is None else (cpu_ns, memory)


def members(folders: tuple[str, ...]) -> list[int]:
    """The processes in the groups; empty when that cannot be read."""
    for folder in folders:
        with contextlib.suppress(OSError, ValueError), open(f"{folder}/cgroup.procs", encoding="ascii") as file:
            return [int(line) for line in file]
    return []


def _layout(resources: Resources) -> list[tuple[Path, dict[str, str]]]:
    memory = str(resources.memory_mib << 20)
    kind = _kind()
    if kind == 1:
        shares = str(max(2, resources.cpu_milli * 1024 // 1000))
        # Not every controller is mounted with every other: each is a tree of its own.
        layout: list[tuple[Path, dict[str, str]]] = [(_parent("memory"), {"memory.limit_in_bytes": memory})]
        _outweigh(_parent("cpu") / "cpu.shares", 1024)
        layout.append((_parent("cpu"), {"cpu.shares": shares}))
        if (ROOT / "cpuacct").resolve() != (ROOT / "cpu").resolve():
            layout.append((_parent("cpuacct"), {}))
        if os.access(ROOT / "pids" / "cgroup.procs", os.W_OK):
            layout.append((_parent("pids"), {"pids.max": str(MAX_PROCESSES)}))
        return layout
    if kind == 2:
        weight = str(min(10_000, max(1, resources.cpu_milli // 10)))
        parent = _parent("")
        for folder in (ROOT, parent):
            (folder / "cgroup.subtree_control").write_text("+memory +cpu +pids")
        _outweigh(parent / "cpu.weight", 100)
        files = {"memory.max": memory, "cpu.weight": weight, "pids.max": str(MAX_PROCESSES)}
        return [(parent, files)]
    raise OSError("no control groups")


def _parent(controller: str) -> Path:
    parent = ROOT / controller / "lepton_ai"
    parent.mkdir(exist_ok=True)
    return parent


def _outweigh(file: Path, one: int) -> None:
    """All replicas together weigh as much as the cores; by default they would share the weight of one process.

    (As Kubernetes weighs its pods: shares of the node's cores.)
    """
    wanted = str(one * (os.cpu_count() or 1))
    if file.read_text("ascii").strip() != wanted:
        file.write_text(wanted)


@cache
def _kind() -> int:
    if sys.platform != "linux":
        return 0
    if (ROOT / "cgroup.controllers").exists():
        return 2 if os.access(ROOT, os.W_OK) else 0
    names = ("memory", "cpu", "cpuacct")
    return 1 if all(os.access(ROOT / name / "cgroup.procs", os.W_OK) for name in names) else 0


def _read(path: str, field: str | None, factor: int) -> int | None:
    try:
        with open(path, encoding="ascii") as file:
            for line in file:
                if field is None:
                    return int(line) * factor
                if line.startswith(field + " "):
                    return int(line.split()[1]) * factor
    except (OSError, ValueError):
        return None
    return None
