"""Goals 9 and 10, placing: how much of the accelerators is given out, and how many decisions a second.

Protocol of 9: inflation (all pods of a workload in random order, then clones, until 130 % of the accelerators are
requested; no retries, no departures), % of accelerators given out at the end, mean over the seeds, interval 95 %
(t over the seeds). Ours takes its statistics from pods that have arrived only. The baselines are our own, FGD with the
statistics of the whole workload as in its simulator; that they land near the published figures says that the simulator
is right. Every run of ours is checked by `inflation.check`. A workload without published figures is held against our
own FGD. Further workloads are derived from the one called default as the paper describes; in the dynamic replay
pods leave after their recorded times, with more of them than there is room for. --data takes node lists, pod lists and
FGD's published results.
"""

from __future__ import annotations

import math
import random
import statistics
import time
from collections.abc import Sequence
from heapq import heappop, heappush
from pathlib import Path

import inflation
import report
from durable import durable
from inflation import Data, Machine, Pod, Workload
from packers import BestFit, DotProd, Fgd, Shipped
from vast import growth, large

from lepton_ai import plots
from lepton_ai.errors import LeptonError

SLACK = 0.5
AIM_DEFAULT, AIM_MEAN = 96.0, 95.0
MUST_RATE, AIM_RATE, MUST_DURABLE = 5000, 20_000, 1000
T95 = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78, 10: 2.26}
"""Student's t for 95 %, by the number of seeds."""
PUBLISHED = {"FGD": "FGD", "BestFit": "BestFit", "DotProd": "DotProd"}
Runs = dict[str, list[list[float]]]
Policy = type[Shipped] | type[BestFit] | type[DotProd] | type[Fgd]


def main() -> int:
    options = report.arguments(__doc__ or "")
    quick = options.quick
    data = inflation.read(options.data) if options.data else inflation.synthetic(60 if quick else 400)
    if quick:
        data.machines = data.machines[:: max(1, len(data.machines) // 60)]
    seeds = range(42, 44 if quick else 52)
    few = seeds[: 1 if quick else 3]
    rows: list[dict[str, object]] = []
    goals: dict[str, dict[str, object]] = {}
    curves: dict[str, Runs] = {}
    for workload in data.workloads:
        plan: dict[Policy, Sequence[int]] = {Shipped: seeds, BestFit: seeds, DotProd: seeds, Fgd: few}
        curves[workload.name] = {policy.name: compare(data, workload, policy, plan[policy]) for policy in plan}
        rows += summary(data, workload, curves[workload.name])
        print(*(f"{row['policy']} {row['mean']}" for row in rows[-4:]), workload.name, flush=True)
    goals |= quality(data, data.workloads, curves, "9")
    base = next((item for item in data.workloads if item.name == "default"), None)
    if base is not None and not quick:
        derived = added(data, base)
        for workload in derived:
            curves[workload.name] = {Shipped.name: compare(data, workload, Shipped, seeds)}
            rows += summary(data, workload, curves[workload.name])
        goals |= quality(data, [*data.workloads, *derived], curves, "9.derived")
    for workload in data.workloads:
        rows += departures(data.machines, workload, quick=quick)
    goals["10"] = decisions(data, base or data.workloads[0], rows, rounds=2 if quick else 5)
    steps = growth((250, 500, 1000) if quick else (600, 1200, 2500, 5000, 10_000), 1000 if quick else 6000)
    rows += steps
    goals["10.growth"] = grown(steps)
    goals["10.large"] = large(500 if quick else 5000, 5000 if quick else 50_000)
    goals["10.durable"] = stored(rows, quick=quick)
    report.write(options.out, "placement", goals, rows)
    try:
        draw(options.out, data, curves, steps)
    except LeptonError as error:
        print(f"no plot: {error.message}", flush=True)
    return 0 if all(line["met"] for line in goals.values()) else 1


# -- goal 9


def compare(data: Data, workload: Workload, policy: Policy, seeds: Sequence[int]) -> list[list[float]]:
    """Of each seed: % of accelerators given out when 0, 1, ... 130 % were requested. Raises when a run is not valid."""
    capacity = sum(machine.gpus for machine in data.machines) * 1000
    found = []
    for seed in seeds:
        cell = policy(data.machines, workload.pods)
        asked = given = 0
        curve, taken = [0.0], []
        for pod in inflation.inflated(workload.pods, capacity, seed):
            node, devices = cell.place(pod)
            asked += pod.asked
            given += pod.asked if node is not None else 0
            taken.append((pod, node, devices))
            while asked * 100 >= len(curve) * capacity and len(curve) <= 130:
                curve.append(100 * given / capacity)
        # Whether one was refused that fitted is looked at for the first seed: it takes longer than the run.
        wrong = inflation.check(data.machines, taken, refused=policy is Shipped and seed == seeds[0])
        if wrong:
            raise AssertionError(f"{policy.name} on {workload.name}, seed {seed}: {wrong}")
        found.append(curve)
    return found


def summary(data: Data, workload: Workload, runs: Runs) -> list[dict[str, object]]:
    rows = []
    for policy, curves in runs.items():
        ends = [curve[-1] for curve in curves]
        known = [curve[-1] for curve in data.published.get((workload.name, PUBLISHED.get(policy, "FGD")), ())]
        rows.append({
            "workload": workload.name, "derived": workload.derived, "policy": policy, "seeds": len(ends),
            "mean": round(statistics.fmean(ends), 3), "interval_95": round(_half(ends), 3),
            "published" if policy in PUBLISHED else "published_fgd": _mean(known), "pods": len(workload.pods),
        })  # fmt: skip
    return rows


def quality(
    data: Data, workloads: Sequence[Workload], curves: dict[str, Runs], key: str
) -> dict[str, dict[str, object]]:
    """The worst difference to FGD, and the difference of the means."""
    ours, theirs, source = {}, {}, "published"
    for workload in workloads:
        known = _mean([curve[-1] for curve in data.published.get((workload.name, "FGD"), ())])
        if known is None:
            own = curves[workload.name].get(Fgd.name)
            if own is None:
                continue
            known, source = statistics.fmean(curve[-1] for curve in own), "our own"
        theirs[workload.name] = known
        ours[workload.name] = statistics.fmean(curve[-1] for curve in curves[workload.name][Shipped.name])
    if not ours:
        return {}
    worst, name = min((ours[name] - theirs[name], name) for name in ours)
    mean, bar = statistics.fmean(ours.values()), statistics.fmean(theirs.values())
    made = sum(workload.derived for workload in workloads)
    on = f"{len(ours)} workloads" + (f", {made} of them derived here from the default one" if made else "")
    protocol = f"inflation to 130 %, {len(curves[name][Shipped.name])} seeds, arrived-only statistics; {on}"
    return {
        key: report.goal(
            round(worst, 3), f"% of accelerators against {source} FGD, worst workload ({name})", must=f">= -{SLACK}",
            met=worst >= -SLACK, protocol=protocol, each={name: round(value, 3) for name, value in ours.items()},
            fgd={name: round(value, 3) for name, value in theirs.items()}, aim_default=AIM_DEFAULT,
        ),
        f"{key}.mean": report.goal(
            round(mean, 3), "% of accelerators given out, mean of workloads", must=f">= {bar:.3f} ({source} FGD)",
            met=mean >= bar, aim=AIM_MEAN, protocol=protocol,
        ),
    }  # fmt: skip


def added(data: Data, base: Workload) -> list[Workload]:
    """The published workloads that were not given."""
    specs = [pod.types for workload in data.workloads for pod in workload.pods if pod.types]
    given = {workload.name for workload in data.workloads}
    return [item for item in inflation.derive(base.pods, specs) if item.name not in given]


# -- departures


def departures(machines: Sequence[Machine], workload: Workload, *, quick: bool) -> list[dict[str, object]]:
    """Accelerator time given out when pods leave after the times they were recorded to run: a tenth of the machines.

    Arrivals are drawn from the list, at random moments, so close that together they ask for 110 % of the time there is.
    """
    timed = [pod for pod in workload.pods if pod.created_s is not None and (pod.deleted_s or 0) > pod.created_s]
    if len(timed) < len(workload.pods) // 2:
        return []
    some = sorted(machines, key=lambda item: (item.type, item.gpus, item.name))[:: 1 if quick else 10]
    found: dict[str, list[float]] = {}
    for policy in (Shipped, BestFit, DotProd, Fgd):
        for seed in range(42, 43 if quick else 44 if policy is Fgd else 47):
            found.setdefault(policy.name, []).append(
                100 * replayed(policy, some, timed, seed, 1000 if quick else 10_000)
            )
    rows: list[dict[str, object]] = []
    for name, parts in found.items():
        # On the same arrivals: what differs between seeds is the same for all.
        apart = [part - base for part, base in zip(parts, found[BestFit.name], strict=False)]
        rows.append({
            "departures": workload.name, "policy": name, "seeds": len(parts), "machines": len(some),
            "accelerator_time_percent": round(statistics.fmean(parts), 3), "each": [round(part, 2) for part in parts],
            "against_best_fit": round(statistics.fmean(apart), 3), "interval_95": round(_half(apart), 3),
        })  # fmt: skip
        print(name, rows[-1]["accelerator_time_percent"], rows[-1]["against_best_fit"], "with departures", flush=True)
    return rows


def replayed(policy: Policy, machines: Sequence[Machine], pods: Sequence[Pod], seed: int, count: int) -> float:
    """The share of the machines' accelerator time that was given out in the second half: the first fills them."""
    rng = random.Random(seed)
    arrivals = rng.choices(pods, k=count)
    capacity = 1000 * sum(machine.gpus for machine in machines)
    last_s = _span_s(arrivals, capacity)
    moments = sorted(rng.uniform(0, last_s) for _ in arrivals)
    cell = policy(machines, pods)
    ends: list[tuple[float, int, str, tuple[int, ...]]] = []
    given = 0.0
    for number, (pod, now_s) in enumerate(zip(arrivals, moments, strict=True)):
        while ends and ends[0][0] <= now_s:
            _, left, node, devices = heappop(ends)
            cell.leave(arrivals[left], node, devices)
        found, devices = cell.place(pod)
        if found is not None:
            begin_s, end_s = max(now_s, last_s / 2), min(now_s + _ran_s(pod), last_s)
            given += pod.asked * max(0.0, end_s - begin_s)
            heappush(ends, (now_s + _ran_s(pod), number, found, devices))
    return given / (capacity * last_s / 2)


def _span_s(arrivals: Sequence[Pod], capacity: int) -> float:
    """How long the arrivals are spread over: of what they ask for in it, on average 110 % of what there is."""
    low, high = 1.0, float(sum(_ran_s(pod) for pod in arrivals))
    for _ in range(60):
        middle = math.sqrt(low * high)
        asked = 0.0
        for pod in arrivals:  # one that runs on beyond the end counts until then
            ran_s = min(float(_ran_s(pod)), middle)
            asked += pod.asked * (ran_s - ran_s * ran_s / (2 * middle))
        low, high = (middle, high) if asked > 1.1 * capacity * middle else (low, middle)
    return high


def _ran_s(pod: Pod) -> int:
    return (pod.deleted_s or 0) - (pod.created_s or 0)


# -- goal 10


def decisions(data: Data, workload: Workload, rows: list[dict[str, object]], rounds: int) -> dict[str, object]:
    """Decisions a second of the run of goal 9 itself: every arrival counts, also one that finds no node."""
    capacity = sum(machine.gpus for machine in data.machines) * 1000
    rates, ends = [], []
    for number in range(rounds):
        arrivals = inflation.inflated(workload.pods, capacity, 42 + number)
        cell = Shipped(data.machines, workload.pods)
        begun_s = time.perf_counter()
        found = [cell.place(pod)[0] for pod in arrivals]
        rates.append(len(arrivals) / (time.perf_counter() - begun_s))
        given = sum(pod.asked for pod, node in zip(arrivals, found, strict=True) if node is not None)
        ends.append(100 * given / capacity)
    rows.append({"rate": [round(rate) for rate in rates], "given_percent": [round(end, 2) for end in ends]})
    rate = statistics.median(rates)
    return report.goal(
        round(rate), "decisions/s in process", must=MUST_RATE, aim=AIM_RATE, met=rate >= MUST_RATE,
        protocol=f"{workload.name}, {len(data.machines)} nodes, {rounds} rounds, one thread, statistics included",
        range=[round(min(rates)), round(max(rates))], given_percent=round(statistics.fmean(ends), 2),
    )  # fmt: skip


def grown(steps: Sequence[dict[str, object]]) -> dict[str, object]:
    """The exponent of the cost of a decision over the number of nodes, by least squares of the logarithms."""
    xs = [math.log(float(str(step["nodes"]))) for step in steps]
    ys = [math.log(float(str(step["decision_us"]))) for step in steps]
    slope = statistics.linear_regression(xs, ys).slope
    text = ", ".join(f"{step['nodes']}: {step['decision_us']} us" for step in steps)
    return report.goal(
        round(slope, 3), "exponent of cost per decision over nodes", must="< 1", met=slope < 1, protocol=text
    )


def stored(rows: list[dict[str, object]], *, quick: bool) -> dict[str, object]:
    nodes, rounds = (500, 1) if quick else (5000, 3)
    found = [durable(nodes, 400 if quick else 10_000) for _ in range(rounds)]
    rows += found
    rate = statistics.median(float(str(row["durable_per_s"])) for row in found)
    return report.goal(
        round(rate), "replicas/s placed and recorded", must=MUST_DURABLE, met=rate >= MUST_DURABLE,
        protocol=f"{nodes} nodes, {found[0]['replicas']} replicas, SQLite (WAL) file, whole passes of the loop's "
        f"deployments and replicas, {rounds} rounds",
        per_cpu_s=[row["per_cpu_s"] for row in found], each=[row["durable_per_s"] for row in found],
    )  # fmt: skip


# -- figures


def draw(out: Path, data: Data, curves: dict[str, Runs], steps: Sequence[dict[str, object]]) -> None:
    name = "default" if "default" in curves else next(iter(curves))
    lines = {policy: _curve(runs) for policy, runs in curves[name].items()}
    for (workload, policy), known in data.published.items():
        if workload == name and policy in PUBLISHED.values():
            lines[f"{policy} (published)"] = _curve(known)
    plots.lines(
        out / "placement.png", lines, title=f"Accelerators given out, {name}", x="requested, %", y="given out, %"
    )
    names = [name for name in curves if Fgd.name in curves[name]]
    bars = {
        policy: [statistics.fmean(curve[-1] for curve in curves[name][policy]) for name in names]
        for policy in curves[names[0]]
    }
    plots.bars(
        out / "placement-workloads.png", names, bars, title="Given out at 130 % requested", y="% of accelerators"
    )
    nodes = [float(str(step["nodes"])) for step in steps]
    costs: dict[str, tuple[Sequence[float], Sequence[float]]] = {
        "measured": (nodes, [float(str(step["decision_us"])) for step in steps]),
    }
    costs["as fast as the nodes"] = (nodes, [costs["measured"][1][0] * count / nodes[0] for count in nodes])
    plots.lines(
        out / "placement-growth.png", costs, title="Cost of one decision", x="nodes", y="microseconds", log=True
    )


def _curve(runs: Sequence[Sequence[float]]) -> tuple[list[float], list[float]]:
    length = min(map(len, runs))
    return [float(x) for x in range(length)], [statistics.fmean(run[x] for run in runs) for x in range(length)]


def _mean(values: Sequence[float]) -> float | None:
    return round(statistics.fmean(values), 3) if values else None


def _half(values: Sequence[float]) -> float:
    count = len(values)
    return statistics.stdev(values) / math.sqrt(count) * T95.get(count, 2.0) if count > 1 else 0.0


if __name__ == "__main__":
    raise SystemExit(main())
