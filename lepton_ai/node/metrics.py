"""What replicas use of their node: processor time and memory, read from the system every few seconds.

Owns the differences between two looks. Reads control groups where a replica has one, else /proc by session; on a
system without /proc it asks psutil.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import NamedTuple

from lepton_ai.node import cgroup, shim

MIB = 1 << 20


class Target(NamedTuple):
    """A replica to measure: its first process and its control groups."""

    pid: int
    groups: tuple[str, ...] = ()


class Use(NamedTuple):
    """Use between the last two looks (thousandths of a core), and memory at the last (MiB)."""

    cpu_milli: int = 0
    memory_mib: int = 0


class Metrics:
    """Measures; call `sample` at intervals."""

    def __init__(self) -> None:
        self._before: dict[str, tuple[int, int, int]] = {}

    def sample(self, targets: Mapping[str, Target], now_ns: int) -> dict[str, Use]:
        """Use of each target since the last call, by uid. `now_ns` is a monotonic time; cheap with no targets."""
        plain = {uid: target.pid for uid, target in targets.items() if not target.groups}
        measured = _by_session(set(plain.values())) if plain else {}
        result, after = {}, {}
        for uid, target in targets.items():
            found = cgroup.use(target.groups) if target.groups else measured.get(target.pid)
            cpu_ns, memory = found or (0, 0)
            after[uid] = (target.pid, cpu_ns, now_ns)
            pid, cpu_before_ns, before_ns = self._before.get(uid, (0, 0, 0))
            elapsed_ns = now_ns - before_ns
            same = pid == target.pid and elapsed_ns > 0
            cpu_milli = max(0, (cpu_ns - cpu_before_ns) * 1000 // elapsed_ns) if same else 0
            result[uid] = Use(cpu_milli, -(-memory // MIB))
        self._before = after
        return result


def _by_session(leaders: set[int]) -> dict[int, tuple[int, int]]:
    """(processor ns, bytes) of each leader's session; a child's time counts with its parent's once it has ended."""
    if not os.path.isdir("/proc/self"):
        return _by_family(leaders)
    tick_ns = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
    page = os.sysconf("SC_PAGE_SIZE")
    total = dict.fromkeys(leaders, (0, 0))
    for name in os.listdir("/proc"):
        fields = shim.stat_fields(int(name)) if name.isdigit() else None
        if fields is None or (session := int(fields[3])) not in total:
            continue
        cpu, memory = total[session]
        total[session] = (cpu + sum(map(int, fields[11:15])) * tick_ns, memory + int(fields[21]) * page)
    return total


def _by_family(leaders: set[int]) -> dict[int, tuple[int, int]]:
    import psutil  # only where there is no /proc: it costs the agent some MiB

    result = {}
    for leader in leaders:
        cpu, memory = 0, 0
        try:
            first = psutil.Process(leader)
            for process in (first, *first.children(recursive=True)):
                times = process.cpu_times()
                cpu += int((times.user + times.system) * 1e9)
                memory += process.memory_info().rss
        except psutil.Error:
            continue
        result[leader] = (cpu, memory)
    return result
