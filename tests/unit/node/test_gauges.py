"""What a machine does is a difference between two looks at its counters; what cannot be read is no figure."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lepton_ai.node.gauges import Gauges
from lepton_ai.node.gpu import Gpus
from lepton_ai.node.metrics import TASKS, Metrics, Target
from lepton_ai.spec.replica import NodeGauges

SECOND = 1_000_000_000
FIRST = {
    "stat": "cpu  1000 0 500 8000 100 0 0 50 0 0\ncpu0 600 0 300 3000 50 0 0 25 0 0\ncpu1 400 0 200 5000 50 0 0 25\n",
    "meminfo": "MemTotal:       8388608 kB\nMemFree:        1048576 kB\nMemAvailable:   6291456 kB\n",
    "pressure/cpu": "some avg10=1.00 avg60=2.00 avg300=3.00 total=1000000\nfull avg10=0 avg60=0 avg300=0 total=7\n",
    "pressure/memory": "some avg10=0.00 avg60=0.00 avg300=0.00 total=9\nfull avg10=0.00 avg60=0 avg300=0 total=0\n",
    "pressure/io": "some avg10=0.00 avg60=0.00 avg300=0.00 total=9\nfull avg10=0.00 avg60=0 avg300=0 total=500000\n",
    "diskstats": "   8  0 sda 10 0 1000 5 20 0 2000 9 0 1000 14\n   8  1 sda1 1 0 10 5 2 0 20 9 0 10 14\n",
    "net/dev": (
        "Inter-|   Receive                |  Transmit\n"
        " face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls\n"
        "    lo: 9999 1 0 0 0 0 0 0 9999 1 0 0 0 0 0 0\n  eth0: 1000 1 0 0 0 0 0 0 500 1 0 0 0 0 0 0\n"
        "laiabc: 7777 1 0 0 0 0 0 0 7777 1 0 0 0 0 0 0\n"
    ),
}
SECOND_LOOK = {
    "stat": "cpu  1250 0 600 8100 200 0 0 60 0 0\ncpu0 600 0 300 3000 50 0 0 25 0 0\ncpu1 700 0 300 5100 150 0 0 35\n",
    "pressure/cpu": "some avg10=1.00 avg60=2.00 avg300=3.00 total=2000000\n",
    "pressure/memory": "some avg10=0 avg60=0 avg300=0 total=9\nfull avg10=0 avg60=0 avg300=0 total=400000\n",
    "diskstats": "   8  0 sda 10 0 1200 5 20 0 2400 9 0 2000 14\n",
    "net/dev": FIRST["net/dev"].replace("eth0: 1000", "eth0: 5000").replace(" 500 1", " 700 1"),
}


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def made(folder: Path, cores: int = 2, gpus: Any = None) -> Gauges:
    gauges = Gauges(
        folder,
        proc=folder / "proc",
        groups=folder / "groups",
        cores=lambda: set(range(cores)),
        gpus=gpus or Gpus(SimpleNamespace(NVMLError=OSError, nvmlInit=int, nvmlDeviceGetCount=int)),
    )
    gauges._device = ("8", "0")
    return gauges


def two_looks(folder: Path, gauges: Gauges, seconds: int = 2) -> NodeGauges:
    write(folder / "proc", FIRST)
    gauges.look(10 * SECOND)
    write(folder / "proc", SECOND_LOOK)
    return gauges.look((10 + seconds) * SECOND)


def test_rates_are_what_counters_grew_by(tmp_path: Path) -> None:
    found = two_looks(tmp_path, made(tmp_path))
    # user 250, system 100 and stolen 10 of the ticks of two seconds on two processors; waiting for a disk is idle.
    assert found.cpu_milli == pytest.approx(3.60 / 2 * 1000)
    assert (found.cores_milli, found.memory_mib, found.memory_used_mib) == (2000, 8192, 2048)
    assert (found.cpu_stall, found.memory_stall, found.io_stall) == (0.5, 0.2, 0.0)
    assert (found.disk_read_bytes_s, found.disk_write_bytes_s, found.disk_busy) == (51200, 102400, 0.5)
    assert (found.network_in_bytes_s, found.network_out_bytes_s) == (2000, 100)
    assert (found.samples, found.gpus, found.gpu_used) == (2, 0, None)


def test_the_first_look_knows_no_rates(tmp_path: Path) -> None:
    write(tmp_path / "proc", FIRST)
    found = made(tmp_path).look(10 * SECOND)
    rates = ("cpu_milli", "cpu_stall", "io_stall", "disk_busy", "network_in_bytes_s")
    assert [getattr(found, name) for name in rates] == [None] * 5
    assert found.memory_used_mib == 2048


def test_processors_that_are_not_ours_are_not_counted(tmp_path: Path) -> None:
    found = two_looks(tmp_path, made(tmp_path, cores=1))
    assert (found.cores_milli, found.cpu_milli) == (1000, 0)


def test_a_counter_that_falls_began_anew_and_time_that_stands_still_gives_no_rate(tmp_path: Path) -> None:
    gauges = made(tmp_path)
    write(tmp_path / "proc", {**FIRST, **SECOND_LOOK})
    gauges.look(10 * SECOND)
    write(tmp_path / "proc", FIRST)
    found = gauges.look(12 * SECOND)
    assert (found.cpu_milli, found.cpu_stall, found.network_in_bytes_s) == (None, None, None)
    assert gauges.look(12 * SECOND).cpu_milli is None


@pytest.mark.parametrize(
    ("files", "again"),
    [
        (
            {"cpu.max": "50000 100000\n", "cpu.stat": "usage_usec 1000000\n", "memory.max": "1073741824\n",
             "memory.current": "536870912\n", "memory.stat": "anon 5\ninactive_file 268435456\n"},
            {"cpu.stat": "usage_usec 1900000\n"},
        ),
        (
            {"cpu/cpu.cfs_quota_us": "50000\n", "cpu/cpu.cfs_period_us": "100000\n",
             "cpuacct/cpuacct.usage": "1000000000\n", "memory/memory.limit_in_bytes": "1073741824\n",
             "memory/memory.usage_in_bytes": "536870912\n", "memory/memory.stat": "total_inactive_file 268435456\n"},
            {"cpuacct/cpuacct.usage": "1900000000\n"},
        ),
    ],
)  # fmt: skip
def test_within_a_group_with_limits_the_group_is_the_machine(
    tmp_path: Path, files: dict[str, str], again: dict[str, str]
) -> None:
    """A throttled node shows: 0.45 cores of the half core that it may use, whatever the host's processors do."""
    gauges = made(tmp_path)
    write(tmp_path / "proc", FIRST)
    write(tmp_path / "groups", files)
    gauges.look(10 * SECOND)
    write(tmp_path / "groups", again)
    found = gauges.look(12 * SECOND)
    assert (found.cores_milli, found.cpu_milli) == (500, 450)
    assert (found.memory_mib, found.memory_used_mib) == (1024, 256)


def test_pressure_of_a_group_where_the_system_shows_none(tmp_path: Path) -> None:
    gauges = made(tmp_path)
    write(tmp_path / "groups", {"cpu.pressure": FIRST["pressure/cpu"]})
    gauges.look(10 * SECOND)
    write(tmp_path / "groups", {"cpu.pressure": SECOND_LOOK["pressure/cpu"]})
    assert gauges.look(14 * SECOND).cpu_stall == 0.25


@pytest.mark.parametrize(
    "text",
    ["", "\0\0", "cpu\n", "cpu a b c d e\n", "MemTotal:\n", "some total=\n", "8 0 sda a b c d e f g h i j k l\n"],
)
def test_what_cannot_be_read_is_no_figure(tmp_path: Path, text: str) -> None:
    gauges = made(tmp_path)
    write(tmp_path / "proc", dict.fromkeys(FIRST, text))
    for second in (10, 12):
        found = gauges.look(second * SECOND)
    figures = found.model_dump(exclude={"samples", "cores_milli", "gpus"})
    assert set(figures.values()) == {None}


def test_this_machine_can_be_measured(tmp_path: Path) -> None:
    gauges = Gauges(tmp_path)
    gauges.look(1)
    found = gauges.look(SECOND)
    assert found.cores_milli
    assert found.cores_milli >= 100
    if Path("/proc/meminfo").exists():
        assert found.memory_mib
        assert found.memory_used_mib
        assert 0 < found.memory_used_mib < found.memory_mib


class Driver:
    """What NVIDIA's library answers on a machine with two GPUs, of which one may fail."""

    NVMLError = OSError

    def __init__(self) -> None:
        self.broken: set[int] = set()

    def nvmlInit(self) -> None:
        pass

    def nvmlDeviceGetCount(self) -> int:
        return 2

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetUtilizationRates(self, handle: int) -> SimpleNamespace:
        if handle in self.broken:
            raise self.NVMLError("GPU is lost")
        return SimpleNamespace(gpu=(30, 90)[handle])

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> SimpleNamespace:
        return SimpleNamespace(total=8 << 30, used=(2 << 30, 4 << 30)[handle])


def test_gpus_are_measured_together_and_a_lost_one_is_left_out(tmp_path: Path) -> None:
    driver = Driver()
    gauges = made(tmp_path, gpus=Gpus(driver))
    found = gauges.look(SECOND)
    assert (found.gpus, found.gpu_used) == (2, pytest.approx(0.6))
    assert (found.gpu_memory_mib, found.gpu_memory_used_mib) == (16384, 6144)
    driver.broken = {0}
    found = gauges.look(2 * SECOND)
    assert (found.gpus, found.gpu_used, found.gpu_memory_mib) == (1, 0.9, 8192)
    driver.broken = {0, 1}
    assert gauges.look(3 * SECOND).gpus == 0


def replica(proc: Path, pid: int, waited_ns: int, read: int, received: int, threads: int = 1) -> None:
    write(
        proc / str(pid),
        {
            "io": f"rchar: 1\nread_bytes: {read}\nwrite_bytes: 0\n",
            "net/dev": f"a\nb\n  lo: 5 0 0 0 0 0 0 0 5\neth0: {received} 0 0 0 0 0 0 0 7\n",
            "ns/net": str(pid),
            **{f"task/{pid + n}/schedstat": f"100 {waited_ns} 1\n" for n in range(threads)},
        },
    )


def test_what_a_replica_waits_reads_and_receives(tmp_path: Path) -> None:
    proc, group = tmp_path / "proc", tmp_path / "group"
    write(proc / "self", {"ns/net": ""})
    write(group, {"cpu.stat": "usage_usec 0\n", "memory.stat": "anon 0\n", "cgroup.procs": "7\n"})
    metrics, targets = Metrics(str(proc)), {"a": Target(5, (str(group),))}
    replica(proc, 7, 0, 1000, 10)
    assert metrics.sample(targets, 10 * SECOND)["a"].gauges is None
    replica(proc, 7, SECOND // 2, 3000, 30)
    found = metrics.sample(targets, 12 * SECOND)["a"].gauges
    assert found is not None
    assert (found.cpu_stall, found.disk_read_bytes_s, found.disk_write_bytes_s) == (0.25, 1000, 0)
    assert (found.network_in_bytes_s, found.network_out_bytes_s) == (10, 0)
    replica(proc, 7, 100 * SECOND, 3000, 30)
    found = metrics.sample(targets, 14 * SECOND)["a"].gauges
    assert found is not None
    assert found.cpu_stall == 1.0


def test_a_replica_of_very_many_threads_costs_no_more(tmp_path: Path) -> None:
    proc, group = tmp_path / "proc", tmp_path / "group"
    write(group, {"cgroup.procs": "7\n", "cpu.stat": "usage_usec 0\n", "memory.stat": "anon 0\n"})
    replica(proc, 7, 0, 0, 0, threads=300)
    metrics = Metrics(str(proc))
    metrics.sample({"a": Target(7, (str(group),))}, SECOND)
    assert len(metrics._tasks["a"]) <= TASKS + 1
