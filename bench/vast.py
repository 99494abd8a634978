"""Placing on very many nodes: how the cost of a decision grows, and 100 new pods among 50,000 replicas.

Not a measurement itself: read by placement.py.
"""

from __future__ import annotations

import random
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import inflation
import report
from packers import Shipped

from lepton_ai.scheduler.place import place
from lepton_ai.scheduler.snapshot import Node, Request, Snapshot
from lepton_ai.spec.workload import Resources

MUST_S, MUST_MIB = 1.0, 1024
NEW = 100


def growth(counts: tuple[int, ...], decisions: int) -> list[dict[str, object]]:
    """The mean cost of a decision on clusters of different sizes, all decisions of a run taken together."""
    rows: list[dict[str, object]] = []
    for count in counts:
        data = inflation.synthetic(count)
        rng = random.Random(1)
        arrivals = [rng.choice(data.workloads[0].pods) for _ in range(decisions)]
        times_s = []
        for _ in range(3):
            cell = Shipped(data.machines, data.workloads[0].pods)
            begun_s = time.perf_counter()
            for pod in arrivals:
                cell.place(pod)
            times_s.append(time.perf_counter() - begun_s)
        rows.append({"nodes": count, "decisions": decisions, "decision_us": round(1e6 * min(times_s) / decisions, 1)})
        print(f"{count} nodes: {rows[-1]['decision_us']} us a decision", flush=True)
    return rows


def large(nodes: int, replicas: int) -> dict[str, object]:
    """Goal 10's large cell, in a process of its own so that its memory is its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        found = pool.submit(measure, nodes, replicas).result()
    return report.goal(
        found["plan_s"], f"s from snapshot to plan of {NEW} new pods", must=f"< {MUST_S} s, < {MUST_MIB} MiB",
        met=found["plan_s"] < MUST_S and found["memory_mib"] < MUST_MIB and found["placed"] == NEW,
        protocol=f"{nodes} nodes, {replicas} replicas; slowest of 5; peak memory {found['memory_mib']} MiB",
        **found,
    )  # fmt: skip


def measure(nodes: int, replicas: int) -> dict[str, Any]:
    import resource

    rng = random.Random(1)
    sizes = [Resources(cpu_milli=cpu, memory_mib=2 * cpu, accelerator_milli=milli) for cpu, milli in SIZES]
    used = [[0, 0, 0] for _ in range(nodes)]
    groups: dict[str, dict[str, int]] = {}
    for number in range(replicas):
        node, own = rng.randrange(nodes), rng.choice(sizes)
        for column, amount in enumerate((own.cpu_milli, own.memory_mib, own.accelerator_milli)):
            used[node][column] += amount
        beside = groups.setdefault(f"app-{number // 5}", {})
        beside[f"node-{node:05}"] = beside.get(f"node-{node:05}", 0) + 1
    capacity = Resources(cpu_milli=96_000, memory_mib=393_216, accelerator_milli=8000)
    cell = [Node(f"node-{index:05}", capacity, (c, m, min(a, 8000))) for index, (c, m, a) in enumerate(used)]
    asked = [
        Request(f"new-{index}", sizes[index % len(sizes)], f"app-{index}", 2 if index % 3 == 0 else None)
        for index in range(NEW)
    ]
    times_s, placed = [], 0
    for _ in range(5):
        begun_s = time.perf_counter()
        plan = place(Snapshot.of(cell, groups), asked)
        times_s.append(time.perf_counter() - begun_s)
        placed = sum(item.node is not None for item in plan)
    unit = 1 << 20 if sys.platform == "darwin" else 1 << 10
    memory_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // unit
    return {"plan_s": round(max(times_s), 3), "memory_mib": memory_mib, "placed": placed}


SIZES = ((1000, 0), (2000, 0), (3152, 810), (8000, 470), (4000, 320), (2000, 160), (11_300, 1000), (500, 0))
