"""Goals 6, 7 and 8, staying up: what is killed, changed and taken away under load, and what callers notice of it.

Protocol: a real cell of three nodes (agents, Envoys, control plane as processes of their own) on one machine; the
recommender, 2 replicas on 2 nodes, survive = {node = 1}. Capacity is what a closed loop of 32 connections reaches
while generator, gateways and replicas share the machine's cores; an open loop (Poisson) then offers 70 % of it, at
most 64 requests on the wire, latency from the moment a request was due. Every answer is checked against numpy's. The
generator repeats nothing, except where an Envoy is killed: there it sends a broken request once more, and both
figures are given. Since all share the same cores, one replica fewer does not halve what the machine can answer. Each
trial begins when every replica has been ready for 11 s (not with --quick): one that dies younger counts as a crash,
which is not started again at once.
"""

from __future__ import annotations

import math
import statistics
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import changes
import report
from stand import NAME, Stand, stand, trained

from lepton_ai.demo import shoot
from lepton_ai.demo.load import Result, quantile
from lepton_ai.demo.outage import control_back, envoy_killed, without_control
from lepton_ai.demo.trial import Offer, Trial, fields, figures, ready, trial, until

PROTOCOL = "open loop at 70 % of capacity, 3 nodes on one machine, survive = {node = 1}"
LONGEST_S = 3600.0
AGE_S = 11.0
Goals = dict[str, dict[str, object]]


def main() -> int:
    options = report.arguments(__doc__ or "")
    quick = options.quick
    name, model = trained(options.data[0] if options.data else None)
    goals: Goals = {}
    with stand(model) as cell:
        url = cell.deploy(cell.form(low=2))
        offer = cell.offer(url)
        age_s = 0.0 if quick else AGE_S
        replicas(cell, offer, goals, 1 if quick else 20, age_s)
        nodes(cell, offer, goals, 1 if quick else 20, age_s)
        without_retries(cell, goals, 1 if quick else 5, age_s)
        scaling(cell, offer, goals, 1 if quick else 100)
        outage(cell, offer, goals, 3.0 if quick else 60.0, 1 if quick else 20)
        releases(cell, offer, goals, 1 if quick else 5)
        rows = cell.rows
    goals.update(changes.measure(model, rows, 10 if quick else 200))
    for row in rows:
        row.setdefault("data", name)
    report.write(options.out, "failover", goals, rows)
    plot(options.out / "failover.png", rows)
    return 0 if all(goal["met"] for goal in goals.values()) else 1


def replicas(cell: Stand, offer: Offer, goals: Goals, count: int, age_s: float) -> None:
    """SIGKILL of one replica's process, again and again."""
    trials = []
    for number in range(count):
        on = cell.settle(NAME, 2, on=2, age_s=age_s)
        uid = sorted(on)[number % 2]
        done = trial(cell.client, NAME, offer, lambda uid=uid: shoot.replica(cell.cell, uid), lambda _, uid=uid: {uid})
        trials.append(note(cell, "replica killed", done))
    goals["6.replica"] = killed(trials, "SIGKILL of a replica")


def nodes(cell: Stand, offer: Offer, goals: Goals, count: int, age_s: float) -> None:
    """SIGKILL of a node's agent and everything on it; the node comes back before the next trial."""
    trials = []
    for number in range(count):
        on = cell.settle(NAME, 2, on=2, age_s=age_s)
        node = sorted(set(on.values()))[number % 2]
        done = trial(
            cell.client, NAME, offer, lambda node=node: shoot.node(cell.cell, node),
            lambda before, node=node: {uid for uid, where in before.items() if where == node},
        )  # fmt: skip
        trials.append(note(cell, "node killed", done))
        cell.start()
    goals["6.node"] = killed(trials, "SIGKILL of a node's agent with all replicas on it")


def killed(trials: Sequence[Trial], what: str, protocol: str = PROTOCOL) -> dict[str, object]:
    failed = sum(done.load.failed for done in trials)
    full_s = [done.full_s for done in trials]
    p95_s = quantile(full_s, 0.95)
    value = {
        "failed": failed,
        "full_capacity_s_p95": round(p95_s, 2),
        "full_capacity_s_p50": round(statistics.median(full_s), 2),
    }
    sent = sum(done.load.sent for done in trials)
    return report.goal(
        value, "requests, s, s", must="0 failed, p95 <= 3 s", met=failed == 0 and p95_s <= 3.0,
        protocol=f"{what}, {len(trials)} trials, {sent} requests; {protocol}", trials=len(trials), sent=sent,
    )  # fmt: skip


def without_retries(cell: Stand, goals: Goals, count: int, age_s: float) -> None:
    """The same kill of a replica where the gateway may not repeat a request: whose merit the zero is."""
    url = cell.deploy(cell.form("plain", low=2, template={"idempotent": False}))
    offer = cell.offer(url)
    trials = []
    for _ in range(count):
        uid = sorted(cell.settle("plain", 2, on=2, age_s=age_s))[0]
        done = trial(
            cell.client, "plain", offer, lambda uid=uid: shoot.replica(cell.cell, uid), lambda _, uid=uid: {uid}
        )
        trials.append(note(cell, "replica killed, retries off", done))
    cell.client.delete("plain")
    failed = [done.load.failed for done in trials]
    goals["6.retries_off"] = report.goal(
        {"failed_per_kill": failed}, "requests", must=None, met=True,
        protocol=f"as 6.replica with idempotent = false (the gateway repeats only what was never sent), {count} trials",
    )  # fmt: skip


def scaling(cell: Stand, offer: Offer, goals: Goals, count: int) -> None:
    """Up to three replicas and down to two again, all under one load."""
    cell.settle(NAME, 2, on=2)
    downs = 0
    with replace(offer, longest_s=LONGEST_S).traffic() as traffic:
        for _ in range(count):
            cell.client.deploy(cell.form(low=3), wait=True)
            cell.settle(NAME, 3, on=2)
            cell.client.deploy(cell.form(low=2), wait=True)
            downs += math.isfinite(until(lambda: _running(cell) == 2, since_s=time.monotonic(), timeout_s=60))
        load = traffic.stop()
    cell.rows.append({"what": "scaling", "downs": downs, **figures(load)})
    goals["6.scaling"] = report.goal(
        load.failed, "failed requests", must=0, met=load.failed == 0 and downs == count,
        protocol=f"{downs} times from 2 replicas up to 3 and down again, {load.sent} requests; {PROTOCOL}",
    )  # fmt: skip


def _running(cell: Stand) -> int:
    """Replicas whose process lives, those that drain included."""
    return sum(item["phase"] != "exited" for item in map(fields, cell.client.replicas(NAME)))


def outage(cell: Stand, offer: Offer, goals: Goals, seconds: float, count: int) -> None:
    """The control plane away for long, with a job that ends meanwhile; then one Envoy after the other."""
    cell.settle(NAME, 2, on=2)
    jobs = {code: _job(cell, seconds / 2, code) for code in (0, 3)}
    before = shoot.alive(cell.cell)
    served = {pid for uid, pid in before.items() if uid in ready(cell.client, NAME)}
    down, _ = without_control(cell.cell, offer, seconds)
    envoys = [envoy_killed(cell.cell, replace(offer, retry=True), 1 + number % 2) for number in range(count)]
    usable_s, back = control_back(offer, cell.start, lambda: len(ready(cell.client, NAME)) == 2)
    restarted = len(served - set(shoot.alive(cell.cell).values()))
    ended = {code: _code(cell, job) for code, job in jobs.items()}
    known = all(found == code for code, found in ended.items())
    failed = down.failed + back.failed
    cell.rows.append({"what": "control killed", "down_s": seconds, **figures(down)})
    cell.rows.append({"what": "control back", "usable_s": usable_s, "exit_codes": ended, **figures(back)})
    cell.rows += [{"what": "envoy killed", "back_s": back_s, **figures(load)} for back_s, load in envoys]
    goals["7.control"] = report.goal(
        {"failed": failed, "restarted": restarted, "exit_codes_known": known, "usable_s": round(usable_s, 2)},
        "requests, replicas, bool, s", must="0, 0, true, <= 5", protocol=f"SIGKILL of shim and process; {seconds:g} s "
        f"without control, {down.sent + back.sent} requests, two jobs ended meanwhile; {PROTOCOL}",
        met=failed == 0 and restarted == 0 and known and usable_s <= 5.0,
    )  # fmt: skip
    slowest_s = max(back_s for back_s, _ in envoys)
    loads = [load for _, load in envoys]
    goals["7.envoy"] = report.goal(
        {"back_s_max": round(slowest_s, 3), "broken": sum(load.broken for load in loads),
         "failed_after_one_retry": sum(load.failed for load in loads), "sent": sum(load.sent for load in loads)},
        "s, requests", must="back <= 1 s", met=slowest_s <= 1.0,
        protocol=f"SIGKILL of one of two Envoys on one port while control is down, {count} trials; broken: requests on "
        f"its connections, which the generator sends once more; {PROTOCOL}",
    )  # fmt: skip


def _job(cell: Stand, seconds: float, code: int) -> str:
    command = [sys.executable, "-I", "-S", "-c", f"import time; time.sleep({seconds}); raise SystemExit({code})"]
    job = str(fields(cell.client.run(command, name=f"ends-{code}"))["name"])
    until(lambda: fields(cell.client.job(job))["state"] == "running", since_s=time.monotonic())
    return job


def _code(cell: Stand, job: str) -> int | None:
    ended = ("succeeded", "failed")
    until(lambda: fields(cell.client.job(job))["state"] in ended, since_s=time.monotonic())
    ends = [fields(item)["exit"] for item in cell.client.replicas(job)]
    return next((end["code"] for end in ends if end), None)


def releases(cell: Stand, offer: Offer, goals: Goals, count: int) -> None:
    """A new release and back again, under one load."""
    cell.settle(NAME, 2, on=2)
    with replace(offer, longest_s=LONGEST_S).traffic() as traffic:
        for number in range(count):
            cell.client.deploy(cell.form(low=2, template={"env": {"TRIAL": str(number)}}), wait=True)
            cell.client.rollback(NAME, None)
            cell.settle(NAME, 2, on=2)
        load = traffic.stop()
    cell.rows.append({"what": "rolling update and rollback", "times": count, **figures(load)})
    goals["8.releases"] = report.goal(
        load.failed, "failed requests", must=0, met=load.failed == 0,
        protocol=f"{count} rolling updates, each rolled back, {load.sent} requests; {PROTOCOL}",
    )  # fmt: skip


def note(cell: Stand, what: str, done: Trial) -> Trial:
    full_s = round(done.full_s, 3) if math.isfinite(done.full_s) else None
    row = {"what": what, "full_capacity_s": full_s, "killed": len(done.shot.pids), **figures(done.load)}
    cell.rows.append(row)
    load = done.load
    print(
        f"{what}: {load.failed} failed of {load.sent}, full capacity after {done.full_s:.2f} s, {_why(load)}",
        flush=True,
    )
    return done


def _why(load: Result) -> str:
    reasons = "; ".join(f"{count} x {why}" for why, count in Counter(load.reasons).most_common(3))
    return f"p99 {load.latency_ms_p99:.0f} ms" + (f" ({reasons})" if reasons else "")


def plot(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Times to full capacity, where matplotlib is there to draw them."""
    try:
        import matplotlib
    except ImportError:
        print("no plot: matplotlib is not installed", flush=True)
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot

    kinds = [kind for kind in ("replica killed", "node killed") if any(row["what"] == kind for row in rows)]
    figure, axes = pyplot.subplots(figsize=(7, 4))
    for kind in kinds:
        times = sorted(float(row["full_capacity_s"] or math.inf) for row in rows if row["what"] == kind)
        axes.step(times, [(index + 1) / len(times) for index in range(len(times))], where="post", label=kind)
    axes.axvline(3.0, linestyle=":", color="black", label="must (p95)")
    axes.set_xlabel("seconds from SIGKILL to full capacity")
    axes.set_ylabel("share of trials")
    axes.set_title("Open loop at 70 % of capacity, three nodes on one machine")
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    raise SystemExit(main())
