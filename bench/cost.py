"""Goal 26, the bill: what the replicas of goal 12's replays cost with catalogue prices, and metered twice.

Every replica of a replay is a segment (replica, start, end, shape, price), as metering has it. The shape is the
cheapest of the catalogue that meets the need of one replica (4 vCPU and 16 GiB here), the same for every rule; a rule
pays for the seconds from the order of a replica to its end. The bill is added up from the segments, and again from
how many were wanted at each moment: two ways that share nothing but the replay. The cell has no meter yet, so this is
the bench's own sum, not a tenant's invoice.

--data takes traces as bench/autoscale.py does, and catalogue files (columns instance_type,vcpus,memory_gib,region,
price_usd_hour); without traces seeded synthetic ones, without a catalogue a short list of public on-demand prices.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import report
import traces
from autoscale import START_S, Ours, synthetic
from reactive import RULES, tuned
from replay import MISSES, STEP_S, Array, Demand, Fleet, demands, drive, static

from lepton_ai.errors import Invalid
from lepton_ai.plots import bars
from lepton_ai.scheduler.peak import TICK_S

VCPUS, MEMORY_GIB = 4.0, 16.0
REGION = "us-east-1"
MUST_STATIC, MUST_HPA, MUST_EQUAL = 0.30, 0.15, 0.001
LIST = (
    ("m5.xlarge", 4.0, 16.0, 0.192), ("m6i.xlarge", 4.0, 16.0, 0.192), ("m6a.xlarge", 4.0, 16.0, 0.1728),
    ("c5.2xlarge", 8.0, 16.0, 0.34), ("r5.xlarge", 4.0, 32.0, 0.252), ("m5.2xlarge", 8.0, 32.0, 0.384),
)  # fmt: skip
"""A few public on-demand prices of AWS in us-east-1, March 2025."""


@dataclass(frozen=True)
class Shape:
    name: str
    vcpus: float
    memory_gib: float
    hour: float


@dataclass(frozen=True)
class Segment:
    """A replica from its order to its end, in seconds."""

    replica: int
    start_s: float
    end_s: float
    shape: Shape

    @property
    def cost(self) -> float:
        return (self.end_s - self.start_s) / 3600 * self.shape.hour


def main() -> int:
    options = report.arguments(__doc__ or "")
    paths = traces.files(options.data)
    catalogues = [path for path in paths if shapes(path)]
    shape = cheapest([item for path in catalogues for item in shapes(path)] or [Shape(*item) for item in LIST])
    found = [demands(path) for path in paths if path not in catalogues and traces.kind(path) in ("requests", "minutes")]
    rows: list[dict[str, object]] = []
    each: dict[str, dict[str, object]] = {}
    for demand in found or synthetic(days=1.0 if options.quick else 2.0):
        bill, each[demand.name] = billed(demand, shape, quick=options.quick)
        rows += bill
    goals = {"26": total(rows, each, shape)}
    report.write(options.out, "cost", goals, rows)
    names = list(dict.fromkeys(str(row["trace"]) for row in rows))
    rules = list(dict.fromkeys(str(row["rule"]) for row in rows))
    usd = {(str(row["trace"]), str(row["rule"])): float(str(row["usd"])) for row in rows}
    relative = {rule: [usd[name, rule] / usd[name, "static peak"] for name in names] for rule in rules}
    bars(options.out / "cost.png", names, relative, title="Bill against a fixed peak", y="share")
    return 0 if all(line["met"] for line in goals.values()) else 1


def total(rows: list[dict[str, object]], each: dict[str, dict[str, object]], shape: Shape) -> dict[str, object]:
    """The one bill for all that was replayed; what each trace has in it is beside it."""
    usd: dict[str, float] = {}
    for row in rows:
        usd[str(row["rule"])] = usd.get(str(row["rule"]), 0.0) + float(str(row["usd"]))
    value = {
        "under_static": round(1 - usd["policy only"] / usd["static peak"], 4),
        "under_hpa": round(1 - usd["policy only"] / usd["hpa"], 4),
        "missed": max(float(str(item["missed"])) for item in each.values()),
        "apart": max(float(str(item["apart"])) for item in each.values()),
        "usd": round(usd["policy only"], 2),
    }
    return report.goal(
        value, "shares of the bill; the most that any trace missed", each=each,
        must={"under_static": MUST_STATIC, "under_hpa": MUST_HPA, "missed": MISSES, "apart": MUST_EQUAL},
        met=value["under_static"] >= MUST_STATIC and value["under_hpa"] >= MUST_HPA
        and value["missed"] <= MISSES and value["apart"] <= MUST_EQUAL,
        protocol=f"{shape.name} at {shape.hour} USD/h in {REGION}; tuning as in bench/autoscale.py; one bill "
        f"for {len(each)} traces, each sized to 40 replicas and paid for its own length",
    )  # fmt: skip


def shapes(path: Path) -> list[Shape]:
    """The shapes of a catalogue file in REGION; empty when it is no such file."""
    if path.suffix != ".csv":
        return []
    with path.open(encoding="utf-8", newline="") as stream:
        table = csv.DictReader(stream)
        if not {"instance_type", "vcpus", "memory_gib", "price_usd_hour"} <= set(table.fieldnames or ()):
            return []
        return [
            Shape(row["instance_type"], float(row["vcpus"]), float(row["memory_gib"]), float(row["price_usd_hour"]))
            for row in table
            if row.get("region") == REGION and not row.get("gpu_name") and row.get("arch") != "arm64"
        ]


def cheapest(offers: Sequence[Shape], vcpus: float = VCPUS, memory_gib: float = MEMORY_GIB) -> Shape:
    """The cheapest shape with at least so much, of equal prices the larger one. Raises Invalid when there is none."""
    fit = [item for item in offers if item.vcpus >= vcpus and item.memory_gib >= memory_gib and item.hour > 0]
    if not fit:
        raise Invalid(f"no shape with {vcpus:g} vCPU and {memory_gib:g} GiB", hint="give a larger catalogue to --data")
    return min(fit, key=lambda item: (item.hour, -item.vcpus, -item.memory_gib, item.name))


def billed(demand: Demand, shape: Shape, *, quick: bool) -> tuple[list[dict[str, object]], dict[str, object]]:
    wanted: list[float] = []
    rule = Ours(demand, START_S)

    def decide(fleet: Fleet, served: Array, queue: Array) -> Array:
        wanted.append(float(fleet.wanted[0]))
        return rule(fleet, served, queue)

    result = drive(demand, START_S, int(TICK_S / STEP_S), 1, decide)[0]
    judged = np.array(wanted[int(np.ceil(demand.judged * STEP_S / TICK_S)) :])
    metered = sum(item.cost for item in segments(judged, shape))
    again = float(judged.sum()) * TICK_S / 3600 * shape.hour
    fixed = static(demand)
    bills = {"static peak": fixed.hours * shape.hour, "policy only": metered}
    for name in RULES:
        best = tuned(name, demand, START_S, quick=quick).result
        bills[name] = best.hours * shape.hour
    rows = [{"trace": demand.name, "rule": name, "usd": round(value, 4)} for name, value in bills.items()]
    value = {
        "under_static": round(1 - metered / bills["static peak"], 4),
        "under_hpa": round(1 - metered / bills["hpa"], 4),
        "missed": round(result.missed, 5),
        "apart": round(abs(metered - again) / again, 6),
        "usd": round(metered, 2),
    }
    return rows, value


def segments(wanted: Array, shape: Shape) -> list[Segment]:
    """One segment for every replica that ran: the youngest ends first, so the n-th runs while n are wanted."""
    found: list[Segment] = []
    open_: list[float] = []
    number = 0
    for tick, count in enumerate([*wanted.astype(int), 0]):
        now_s = tick * TICK_S
        while len(open_) > count:
            number += 1
            found.append(Segment(number, open_.pop(), now_s, shape))
        open_ += [now_s] * (count - len(open_))
    return found


if __name__ == "__main__":
    raise SystemExit(main())
