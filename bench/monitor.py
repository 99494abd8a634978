"""What measuring costs: a look of the monitor at all nodes of a cell, its file, and an agent's look at its machine.

Protocol: agents' reports of synthetic nodes (seeded; their processors, memory and pressure move), at 5 s a sample, go
through the shipped `control.monitor` as a pass hands them over, until every window is full and the network forecasts.
Processor time of one thread, the median of the last looks; then what is written down for the next leader, and how
long it takes to write it and to take it up. An agent's look is the shipped `node.gauges` on this machine.
"""

from __future__ import annotations

import gc
import statistics
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import report

from lepton_ai import plots
from lepton_ai.control.monitor import Monitor
from lepton_ai.control.options import Options
from lepton_ai.control.ports import NodeView
from lepton_ai.node.gauges import Gauges
from lepton_ai.spec.replica import Machine, NodeGauges, NodeReport, ReplicaReport
from lepton_ai.spec.workload import Resources

NODES = 1000
MUST_MS = 20.0
CAPACITY = Resources(cpu_milli=16_000, memory_mib=65_536)


class Clock:
    """A clock that the measurement moves."""

    ms = 0

    def now_ms(self) -> int:
        return 1_700_000_000_000 + self.ms

    def elapsed_ms(self) -> int:
        return self.ms


def main() -> int:
    options = report.arguments(__doc__ or "")
    looks = 16 if options.quick else 60
    sizes = (100, NODES) if options.quick else (100, 300, NODES, 3000, 5000)
    rows: list[dict[str, object]] = []
    for copies in (1, 10):
        for nodes in sizes:
            rows.append(measure(nodes, copies, looks))
            print(rows[-1], flush=True)
    agent = agents_look(50 if options.quick else 500)
    rows.append({"what": "an agent's look at its machine", "ms": agent})
    plot(options.out, rows)
    at = next(row for row in rows if row.get("nodes") == NODES and row.get("replicas") == NODES)
    look = float(str(at["look_ms"]))
    protocol = f"median processor time of one look at {NODES} nodes with a replica each, forecasts included"
    written = (
        f"what a leader of {NODES} nodes writes once a minute; {at['save_ms']} ms to write, {at['restore_ms']} to read"
    )
    goals = {
        "monitor.look": report.goal(look, "ms", must=f"< {MUST_MS:g}", met=look < MUST_MS, protocol=protocol),
        "monitor.file": report.goal(at["file_kib"], "KiB", must="-", met=True, protocol=written),
        "monitor.agent": report.goal(agent, "ms", must="-", met=True, protocol="one look of an agent, every 2 s"),
    }
    report.write(options.out, "monitor", goals, rows)
    return 0 if all(line["met"] for line in goals.values()) else 1


def measure(nodes: int, copies: int, looks: int) -> dict[str, object]:
    rng, clock, took_ms = np.random.default_rng(0), Clock(), []
    with tempfile.TemporaryDirectory(prefix="monitor-") as folder:
        file = Path(folder, "monitor")
        # Written down only when this says so.
        monitor = Monitor(clock, Options(monitor_save_s=1e9), file)
        for step in range(looks):
            clock.ms = step * 5000
            ctx: Any = context(clock, views(rng, nodes, copies, step))
            gc.collect()
            gc.disable()
            begun = time.process_time()
            monitor.look(ctx)
            took_ms.append((time.process_time() - begun) * 1000)
            gc.enable()
        begun = time.process_time()
        monitor.save()
        saved = time.process_time()
        after = Monitor(clock, Options(), file)
        after._restore()
        return {
            "nodes": nodes,
            "replicas": nodes * copies,
            "look_ms": round(statistics.median(took_ms[-max(3, looks // 5) :]), 2),
            "save_ms": round((saved - begun) * 1000, 1),
            "restore_ms": round((time.process_time() - saved) * 1000, 1),
            "file_kib": round(file.stat().st_size / 1024, 1),
            "forecast_by_the_network": sum(load.network for load in monitor.loads.values()),
        }


def context(clock: Clock, seen: dict[str, NodeView]) -> SimpleNamespace:
    """What of a pass the monitor looks at."""
    return SimpleNamespace(
        tick_ms=clock.ms,
        now_ms=clock.now_ms(),
        views=seen,
        nodes=dict.fromkeys(seen),
        reserved={},
        measured=(clock.ms, {}),
        all_settled=True,
        capacity=lambda _: CAPACITY,
        event=lambda *_, **__: None,
    )


def views(rng: np.random.Generator, nodes: int, copies: int, step: int) -> dict[str, NodeView]:
    """What the nodes' agents say at one step."""
    use, found = rng.random((nodes, copies)), {}
    for node in range(nodes):
        name = f"node-{node}"
        running = tuple(
            ReplicaReport.model_construct(
                uid=f"{name}-{copy}", phase="ready", pid=5, cpu_milli=int(use[node, copy] * 1000), memory_mib=500,
                started_ms=1, ready_ms=2000,
            )
            for copy in range(copies)
        )  # fmt: skip
        gauges = NodeGauges.model_construct(
            samples=step + 2, cores_milli=16_000, cpu_milli=float(4000 + 8000 * use[node, 0]), memory_mib=65_536,
            memory_used_mib=30_000, cpu_stall=0.1, memory_stall=0.0, io_stall=0.01,
        )  # fmt: skip
        said = NodeReport.model_construct(
            node=name, agent_uid=name, boot_id="", capacity=CAPACITY, machine=Machine(id=name), replicas=running,
            cpu_used_milli=sum(copy.cpu_milli for copy in running), memory_used_mib=5000, gauges=gauges,
        )  # fmt: skip
        found[name] = NodeView(name, True, said)
    return found


def agents_look(looks: int) -> float:
    with tempfile.TemporaryDirectory(prefix="monitor-") as folder:
        gauges = Gauges(Path(folder))
        gauges.look(time.monotonic_ns())
        begun = time.process_time()
        for _ in range(looks):
            gauges.look(time.monotonic_ns())
        return round((time.process_time() - begun) * 1000 / looks, 3)


def plot(out_dir: Path, rows: list[dict[str, object]]) -> None:
    out_dir.mkdir(parents=True, exist_ok=True)
    series = {}
    for copies in (1, 10):
        picked = [
            row for row in rows if row.get("replicas") == int(str(row.get("nodes", 0))) * copies and "nodes" in row
        ]
        label = f"{copies} replica{'s' if copies > 1 else ''} a node"
        xs, ys = [float(str(row["nodes"])) for row in picked], [float(str(row["look_ms"])) for row in picked]
        series[label] = (xs, ys)
    plots.lines(
        out_dir / "monitor.png", series, title="One look of the monitor", x="nodes", y="ms of processor time", log=True,
        marks={f"{MUST_MS:g} ms": MUST_MS},
    )  # fmt: skip


if __name__ == "__main__":
    raise SystemExit(main())
