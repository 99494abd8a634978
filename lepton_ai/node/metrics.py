"""What replicas do: processors, memory, waiting, disk and network, read from the system every few seconds.

Owns the differences between two looks. Reads control groups where a replica has one, else /proc by session; on a
system without /proc it asks psutil. What the whole machine does is `gauges`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import NamedTuple

from lepton_ai.node import cgroup, shim
from lepton_ai.node.gauges import traffic
from lepton_ai.spec.replica import ReplicaGauges

MIB = 1 << 20
CORES_MILLI = 1000 * (os.cpu_count() or 1)
TASKS = 64
"""Threads of one replica that are looked at for waiting and disk; and of all of a node at one look, :data:`TASKS_ALL`:
a look stays cheap however many there are. A replica beyond has no such figures."""
TASKS_ALL = 1024


class Target(NamedTuple):
    """A replica to measure: its first process and its control groups."""

    pid: int
    groups: tuple[str, ...] = ()


class Use(NamedTuple):
    """Use between the last two looks (thousandths of a core), and memory at the last (MiB)."""

    cpu_milli: int = 0
    memory_mib: int = 0
    gauges: ReplicaGauges | None = None


class Metrics:
    """Measures; call `sample` at intervals."""

    def __init__(self, proc: str = "/proc") -> None:
        self._proc = proc
        self._before: dict[str, tuple[int, int, int]] = {}
        self._tasks: dict[str, dict[str, tuple[float, ...]]] = {}

    def sample(self, targets: Mapping[str, Target], now_ns: int) -> dict[str, Use]:
        """Use of each target since the last call, by uid. `now_ns` is a monotonic time; cheap with no targets."""
        plain = {uid: target.pid for uid, target in targets.items() if not target.groups}
        measured = _by_session(set(plain.values())) if plain else {}
        result, after, tasks, left = {}, {}, dict[str, dict[str, tuple[float, ...]]](), TASKS_ALL
        for uid, target in targets.items():
            if target.groups:
                (cpu_ns, memory), pids = cgroup.use(target.groups) or (0, 0), cgroup.members(target.groups)
            else:
                cpu_ns, memory, pids = measured.get(target.pid, (0, 0, []))
            after[uid] = (target.pid, cpu_ns, now_ns)
            pid, cpu_before_ns, before_ns = self._before.get(uid, (0, 0, 0))
            elapsed_ns = now_ns - before_ns
            same = pid == target.pid and elapsed_ns > 0
            # The time of an ended child comes all at once: no replica used more than there is.
            cpu_milli = min(CORES_MILLI, max(0, (cpu_ns - cpu_before_ns) * 1000 // elapsed_ns)) if same else 0
            tasks[uid] = _counters(self._proc, pids, min(TASKS, left))
            left = max(0, left - len(tasks[uid]))
            gauges = _gauges(self._tasks.get(uid, {}), tasks[uid], elapsed_ns / 1e9) if same else None
            result[uid] = Use(cpu_milli, -(-memory // MIB), gauges)
        self._before, self._tasks = after, tasks
        return result


def _gauges(
    before: Mapping[str, tuple[float, ...]], now: Mapping[str, tuple[float, ...]], elapsed_s: float
) -> ReplicaGauges | None:
    """Rates of what both looks saw; a thread or process that came or went between them is left out."""
    grown: dict[str, list[float]] = {}
    for name, counts in now.items():
        earlier = before.get(name)
        if earlier is not None:
            sums = grown.setdefault(name.partition(":")[0], [0.0, 0.0])
            for index, count in enumerate(counts):
                sums[index] += max(0.0, count - earlier[index])
    if not grown:
        return None
    waited, disk, network = (grown.get(kind) for kind in ("wait", "disk", "network"))
    return ReplicaGauges(
        cpu_stall=None if waited is None else round(min(1.0, waited[0] / elapsed_s), 4),
        disk_read_bytes_s=None if disk is None else round(disk[0] / elapsed_s),
        disk_write_bytes_s=None if disk is None else round(disk[1] / elapsed_s),
        network_in_bytes_s=None if network is None else round(network[0] / elapsed_s),
        network_out_bytes_s=None if network is None else round(network[1] / elapsed_s),
    )


def _counters(proc: str, pids: list[int], most: int) -> dict[str, tuple[float, ...]]:
    """Counters by "wait:THREAD" (seconds), "disk:PROCESS" (bytes read, written) and "network:" (bytes in, out)."""
    found: dict[str, tuple[float, ...]] = {}
    for pid in pids[:most]:
        try:
            with open(f"{proc}/{pid}/io", encoding="ascii") as file:
                counts = dict(line.split(": ") for line in file.read().splitlines())
            found[f"disk:{pid}"] = (float(counts["read_bytes"]), float(counts["write_bytes"]))
        except (OSError, ValueError, KeyError):
            pass  # it ended, or it is somebody else's
        try:
            threads = os.listdir(f"{proc}/{pid}/task")
        except OSError:
            continue
        for thread in threads[: most - len(found)]:
            try:
                with open(f"{proc}/{pid}/task/{thread}/schedstat", encoding="ascii") as file:
                    found[f"wait:{thread}"] = (int(file.read().split()[1]) / 1e9,)
            except (OSError, ValueError, IndexError):
                continue
        if len(found) >= most:
            break
    if most and pids and _apart(proc, pids[0]) and (bytes_ := traffic(f"{proc}/{pids[0]}/net/dev")):
        found["network:"] = (bytes_["network_in_bytes"], bytes_["network_out_bytes"])
    return found


def _apart(proc: str, pid: int) -> bool:
    """Whether a process has a network of its own: else its figures would be everybody's."""
    try:
        return os.stat(f"{proc}/{pid}/ns/net").st_ino != os.stat(f"{proc}/self/ns/net").st_ino
    except OSError:
        return False


def _by_session(leaders: set[int]) -> dict[int, tuple[int, int, list[int]]]:
    """(processor ns, bytes, processes) of each leader's session; an ended child's time counts with its parent's."""
    if not os.path.isdir("/proc/self"):
        return _by_family(leaders)
    tick_ns = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
    page = os.sysconf("SC_PAGE_SIZE")
    total: dict[int, tuple[int, int, list[int]]] = {leader: (0, 0, []) for leader in leaders}
    for name in os.listdir("/proc"):
        fields = shim.stat_fields(int(name)) if name.isdigit() else None
        if fields is None or (session := int(fields[3])) not in total:
            continue
        cpu, memory, pids = total[session]
        pids.append(int(name))
        total[session] = (cpu + sum(map(int, fields[11:15])) * tick_ns, memory + int(fields[21]) * page, pids)
    return total


def _by_family(leaders: set[int]) -> dict[int, tuple[int, int, list[int]]]:
    import psutil  # only where there is no /proc: it costs the agent some MiB

    result: dict[int, tuple[int, int, list[int]]] = {}
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
        result[leader] = (cpu, memory, [])
    return result
