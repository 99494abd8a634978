"""Goal 14 live: an overloaded node gives work away under load; the imbalance falls and no request fails.

Protocol: a real cell of three nodes on one machine (agents, Envoys, control plane as processes of their own), the
recommender with 8 replicas, all of them on one node at first, and a processor hog (a job without a checkpoint, which
does not move) on the same node. An open loop (Poisson) of checked requests runs all the while; the generator repeats
nothing. Each node's u is what the cell measured of it (`lepton node ls`), looked at every second; imbalance = largest
u / mean u, the mean over the time from which the node is marked overloaded until its first replica has left, and over
the last 20 s. With --quick the cell decides every 2 s instead of every 30 s. --data takes any CSV or Parquet of (user,
item, rating).
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import report
from stand import NAME, Stand, stand, trained

from lepton_ai import plots
from lepton_ai.demo.load import Result
from lepton_ai.demo.traffic import SHARE
from lepton_ai.demo.trial import fields, figures, ready, until
from lepton_ai.errors import LeptonError

REPLICAS = 8
FULL = "node-1"
OFFERED = 0.3
"""of the capacity: what the open loop offers"""
HOG = 0.35
"""Share of one core that the hog burns."""
WINDOW_S = 20.0
BUSY = 0.6
"""Where empty nodes are so full with what runs beside the cell, none of them takes work: it would gain nothing."""
SMALL = {"cpu_milli": 50, "memory_mib": 128}
BURN = """
import time
while True:
    end = time.perf_counter() + {busy}
    while time.perf_counter() < end: pass
    time.sleep({rest})
"""


@dataclass(frozen=True)
class Look:
    """`here`: replicas on the full node, of `all` that are ready."""

    at_s: float
    uses: dict[str, float]
    verdict: str
    here: int
    all: int


def main() -> int:
    options = report.arguments(__doc__ or "")
    name, model = trained(options.data[0] if options.data else None)
    decide_s, run_s = (2.0, 45.0) if options.quick else (30.0, 240.0)
    with stand(model, rebalance_s=decide_s) as cell:
        seen, load = measure(cell, run_s)
        events = [fields(item) for item in cell.client.events(name=NAME)]
        there = ready(cell.client, NAME)
        rows = cell.rows
    crowded = [item for item in seen if item.verdict == "overloaded" and item.here == REPLICAS]
    before, after = imbalance(crowded), imbalance([item for item in seen if item.at_s > run_s - WINDOW_S])
    moved = [item for item in events if item["reason"] == "Moved"]
    counts = {node: list(there.values()).count(node) for node in sorted(set(there.values()))}
    empty = [use for item in crowded for node, use in item.uses.items() if node != FULL]
    taken = statistics.median(empty) if empty else 0.0
    if taken > BUSY:
        print(
            f"the machine is busy with other work: u of an empty node is {taken:.2f}, so there is no room", flush=True
        )
    value = {
        "max_over_mean_before": round(before, 3), "max_over_mean_after": round(after, 3),
        "failed_requests": load.failed, "moves": len(moved),
        "empty_node_u_before": round(taken, 2),
    }  # fmt: skip
    goals = {
        "14 live": report.goal(
            value, "ratio, ratio, requests, moves, share", must="after < before, 0 failed, at least 1 move",
            met=after < before and load.failed == 0 and len(moved) >= 1 and len(there) == REPLICAS,
            protocol=f"{REPLICAS} replicas and a hog of {HOG} cores on one of 3 nodes, {load.sent} requests in an open "
            f"loop, decisions every {decide_s:g} s",
            replicas_after=counts, latency_ms_p99=round(load.latency_ms_p99, 1),
        )
    }  # fmt: skip
    rows += [{"what": "load", **figures(load)}, *({"what": "moved", "why": item["message"]} for item in moved)]
    rows += [{"what": "use", **asdict(item)} for item in seen]
    for row in rows:
        row.setdefault("data", name)
    report.write(options.out, "moves", goals, rows)
    plot(options.out / "moves.png", seen)
    # With --quick the command is only to be seen working: no node has room on a machine that does something else.
    shown = options.quick and taken > BUSY and load.failed == 0
    return 0 if shown or all(goal["met"] for goal in goals.values()) else 1


def measure(cell: Stand, run_s: float) -> tuple[list[Look], Result]:
    """What was seen of every node over time, while requests come."""
    others = [str(fields(node)["name"]) for node in cell.client.nodes() if fields(node)["name"] != FULL]
    for node in others:
        cell.client.drain(node)
    url = cell.deploy(cell.form(low=REPLICAS, survive={"node": 0}, template={"resources": SMALL}))
    until(lambda: set(ready(cell.client, NAME).values()) == {FULL}, since_s=time.monotonic())
    for node in others:
        cell.client.undrain(node)
    offer = cell.offer(url)
    burn = BURN.format(busy=HOG * 0.1, rest=(1 - HOG) * 0.1)
    cell.client.run([sys.executable, "-I", "-S", "-c", burn], name="hog", nodes=[FULL], resources=SMALL)
    seen: list[Look] = []
    begun_s = time.monotonic()
    with replace(offer, rate_per_s=offer.rate_per_s / SHARE * OFFERED, longest_s=3600.0).traffic() as traffic:
        while time.monotonic() - begun_s < run_s:
            time.sleep(1.0)
            seen.append(look(cell, time.monotonic() - begun_s))
        return seen, traffic.stop()


def look(cell: Stand, at_s: float) -> Look:
    nodes = [fields(node) for node in cell.client.nodes()]
    loads = {str(node["name"]): node.get("load") or {} for node in nodes}
    uses = {name: float(load.get("u") or 0.0) for name, load in loads.items()}
    here = [node == FULL for node in ready(cell.client, NAME).values()]
    return Look(at_s, uses, str(loads[FULL].get("mark") or ""), sum(here), len(here))


def imbalance(looks: Sequence[Look]) -> float:
    """The mean of the largest u over the mean u; 0 of no look."""
    found = [max(item.uses.values()) / (statistics.mean(item.uses.values()) or 1.0) for item in looks]
    return statistics.mean(found) if found else 0.0


def plot(path: Path, seen: Sequence[Look]) -> None:
    """Use of every node over time."""
    names = sorted(seen[0].uses)
    times = [item.at_s for item in seen]
    curves = {name: (times, [item.uses[name] for item in seen]) for name in names}
    curves["replicas on the first, of 8"] = (times, [item.here / REPLICAS for item in seen])
    try:
        plots.lines(path, curves, title="An overloaded node gives work away", x="seconds", y="u of the node")
    except LeptonError as error:
        print(f"no plot: {error.message}", flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
