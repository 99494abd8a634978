"""What the whole machine does, as one node's agent sees it: processors, memory, pressure, disk, network, GPUs.

Owns the differences between two looks at the system's counters. Everybody's use counts, not only that of the node's
replicas (that is `metrics`): nodes that share a machine all see the same, and control tells whose it is. Reads /proc
and /sys/fs/cgroup; where something cannot be read, nobody is told a figure.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

from lepton_ai.node.gpu import Gpus
from lepton_ai.spec.replica import NodeGauges

MIB = 1 << 20
SECTOR = 512
INNER = ("lo", "veth", "lai", "docker", "br-", "virbr", "ifb", "tun", "tap", "cni", "flannel", "dummy")
"""Interfaces that carry nothing from or to the outside, or what another one carries again."""


class Gauges:
    """Measures the machine; call `look` at intervals. `proc` and `groups` are where the system says it.

    Args:
        folder: the node's; its disk is the one that is measured.
        cores: the processors that this process may use, by number.
    """

    def __init__(
        self,
        folder: Path,
        *,
        proc: Path = Path("/proc"),
        groups: Path = Path("/sys/fs/cgroup"),
        cores: Callable[[], set[int]] | None = None,
        gpus: Gpus | None = None,
    ) -> None:
        self._proc, self._groups = str(proc), str(groups)
        self._cores = cores or _allowed
        self._gpus = gpus or Gpus()
        self._device = _device(folder)
        self._before: dict[str, float] = {}
        self._before_ns = 0
        self._samples = 0

    def look(self, now_ns: int) -> NodeGauges:
        """The machine now, rates since the last look (None at the first). `now_ns` is a monotonic time."""
        self._samples += 1
        cores, limited = self._quota(len(self._cores()))
        counters: dict[str, float] = {}
        parts = (partial(self._processors, limited), self._pressure, self._disk, self._network)
        for part in parts:
            with contextlib.suppress(ValueError, IndexError):  # a line in another form is no figure
                counters |= part()
        elapsed_s = (now_ns - self._before_ns) / 1e9
        before, self._before, self._before_ns = self._before, counters, now_ns

        def rate(name: str) -> float | None:
            # A counter that fell began anew: what it grew by is not known.
            if elapsed_s <= 0 or name not in before or name not in counters or counters[name] < before[name]:
                return None
            return (counters[name] - before[name]) / elapsed_s

        def share(name: str) -> float | None:
            value = rate(name)
            return None if value is None else round(min(1.0, value), 4)

        busy, gpu, memory = rate("busy_s"), self._gpus.look(), None
        with contextlib.suppress(ValueError, IndexError):
            memory = self._memory()
        return NodeGauges(
            samples=self._samples,
            cores_milli=cores * 1000,
            cpu_milli=None if busy is None else round(min(busy, cores) * 1000, 2),
            memory_mib=memory and memory[0],
            memory_used_mib=memory and memory[1],
            cpu_stall=share("cpu_stall_s"),
            memory_stall=share("memory_stall_s"),
            io_stall=share("io_stall_s"),
            disk_busy=share("disk_busy_s"),
            disk_read_bytes_s=_whole(rate("disk_read_bytes")),
            disk_write_bytes_s=_whole(rate("disk_write_bytes")),
            network_in_bytes_s=_whole(rate("network_in_bytes")),
            network_out_bytes_s=_whole(rate("network_out_bytes")),
            gpus=0 if gpu is None else gpu.cards,
            gpu_used=gpu and round(gpu.used, 4),
            gpu_memory_mib=gpu and round(gpu.memory_mib),
            gpu_memory_used_mib=gpu and round(gpu.memory_used_mib, 1),
        )

    # -- processors and memory

    def _quota(self, cores: int) -> tuple[float, bool]:
        """How many processors may be used, and whether a quota of our group allows fewer than there are."""
        both = _text(f"{self._groups}/cpu.max").split()
        if len(both) != 2:
            both = [_text(f"{self._groups}/cpu/cpu.cfs_{name}_us").strip() for name in ("quota", "period")]
        quota, period = _number(both[0]), _number(both[1])
        if quota is None or not period or quota <= 0 or quota / period >= cores:
            return float(cores), False
        return quota / period, True

    def _processors(self, limited: bool) -> dict[str, float]:
        """Seconds of processor time that were used; under a quota those of our group, else of the machine.

        What a hypervisor gave to others is used up too; waiting for a disk is not.
        """
        if limited:
            for path, field, unit_s in (("cpu.stat", "usage_usec", 1e-6), ("cpuacct/cpuacct.usage", "", 1e-9)):
                value = _field(_text(f"{self._groups}/{path}"), field)
                if value is not None:
                    return {"busy_s": value * unit_s}
        tick_s = 1 / os.sysconf("SC_CLK_TCK")
        lines = [line.split() for line in _text(f"{self._proc}/stat").splitlines() if line.startswith("cpu")]
        each = {int(parts[0][3:]): parts for parts in lines if parts[0] != "cpu" and parts[0][3:].isdigit()}
        ours = self._cores()
        lines = [parts for core, parts in each.items() if core in ours] if ours != each.keys() else lines[:1]
        ticks = [[int(text) for text in parts[1:9]] for parts in lines if len(parts) >= 5]
        if not ticks:
            return {}
        # user nice system idle iowait irq softirq steal: a guest's time is in the user's already.
        return {"busy_s": sum(sum(counts) - counts[3] - (counts[4:5] or [0])[0] for counts in ticks) * tick_s}

    def _memory(self) -> tuple[float, float] | None:
        """(what may be used, what is used and could not be given back) in MiB."""
        found = {}
        for line in _text(f"{self._proc}/meminfo").splitlines():
            name, _, rest = line.partition(":")
            if name in ("MemTotal", "MemAvailable"):
                found[name] = int(rest.split()[0]) / 1024
        if len(found) < 2:
            return None
        total, used = found["MemTotal"], found["MemTotal"] - found["MemAvailable"]
        for limit, use, stat, cache in (
            ("memory.max", "memory.current", "memory.stat", "inactive_file"),
            (
                "memory/memory.limit_in_bytes",
                "memory/memory.usage_in_bytes",
                "memory/memory.stat",
                "total_inactive_file",
            ),
        ):
            most = _number(_text(f"{self._groups}/{limit}").strip())
            held = _number(_text(f"{self._groups}/{use}").strip())
            if most is not None and held is not None and most / MIB < total:
                back = _field(_text(f"{self._groups}/{stat}"), cache) or 0.0
                total, used = most / MIB, max(0.0, held - back) / MIB
        return round(total, 1), round(used, 1)

    # -- pressure, disk, network

    def _pressure(self) -> dict[str, float]:
        """Seconds in which somebody waited for a processor, all for memory or a disk (pressure stall information)."""
        found = {}
        for name, kind in (("cpu", "some"), ("memory", "full"), ("io", "full")):
            text = _text(f"{self._proc}/pressure/{name}") or _text(f"{self._groups}/{name}.pressure")
            for line in text.splitlines():
                if line.startswith(kind) and (value := _number(line.rpartition("total=")[2])) is not None:
                    found[f"{name}_stall_s"] = value / 1e6
        return found

    def _disk(self) -> dict[str, float]:
        if not self._device:
            return {}
        for line in _text(f"{self._proc}/diskstats").splitlines():
            parts = line.split()
            if len(parts) >= 14 and (parts[0], parts[1]) == self._device:
                return {
                    "disk_read_bytes": float(parts[5]) * SECTOR,
                    "disk_write_bytes": float(parts[9]) * SECTOR,
                    "disk_busy_s": float(parts[12]) / 1000,
                }
        return {}

    def _network(self) -> dict[str, float]:
        return traffic(f"{self._proc}/net/dev", INNER)


def traffic(path: str, without: tuple[str, ...] = ("lo",)) -> dict[str, float]:
    """Bytes in and out of all interfaces of a network, but those whose names begin like `without`."""
    into = out = 0
    seen = False
    for line in _text(path).splitlines()[2:]:
        name, _, rest = line.partition(":")
        counts = rest.split()
        if len(counts) >= 9 and not name.strip().startswith(without):
            into, out, seen = into + int(counts[0]), out + int(counts[8]), True
    return {"network_in_bytes": float(into), "network_out_bytes": float(out)} if seen else {}


def _allowed() -> set[int]:
    if hasattr(os, "sched_getaffinity"):
        return set(os.sched_getaffinity(0))
    return set(range(os.cpu_count() or 1))


def _device(folder: Path) -> tuple[str, str] | None:
    """The numbers of the disk below `folder`; None where it lies on none (an overlay, memory)."""
    try:
        device = os.stat(folder).st_dev
    except OSError:
        return None
    return (str(os.major(device)), str(os.minor(device))) if os.major(device) else None


def _text(path: str) -> str:
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def _number(text: str) -> float | None:
    try:
        return float(int(text))
    except ValueError:
        return None


def _field(text: str, name: str) -> float | None:
    """The number after `name` at the start of a line; without a name, the first line's."""
    for line in text.splitlines():
        parts = line.split()
        if not name and len(parts) == 1:
            return _number(parts[0])
        if name and len(parts) == 2 and parts[0] == name:
            return _number(parts[1])
    return None


def _whole(value: float | None) -> float | None:
    return None if value is None else round(value)
