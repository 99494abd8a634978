"""Goal 13, routing: tail latency beside Envoy's LEAST_REQUEST, live, and beside an oracle, simulated.

Live: 8 server processes behind two real Envoys of the shipped gateway, 2 of them slow (five times the service time; and
again with servers that compute, two of them under a cpu quota that a hog eats of), load 0.7, rounds in turns.
Simulated: 40 replicas with antagonists that come and go, load 0.7, each picker on the same days; the pickers of Envoy
are checked against the binary first, and the one that ships is its own C code. --data takes series of machines' use
(hosts, or any other known columns) as the antagonists instead of drawn ones.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import checked
import numpy as np
import pickers
import report
import throttled
import traces
from pickers import Base, Eager, Informed, Measured, Module, Setting
from replicas import Control, Day, Gateway, Scene, run

from lepton_ai.errors import Unavailable
from lepton_ai.plots import bars
from lepton_ai.scheduler.forecast import HISTORY, Forecaster

MUST_LIVE, MUST_SIMULATED, AIM_SIMULATED = 0.5, 2.2, 1.2
SEEDS, QUICK_SEEDS = 10, 2
SHIPPED, FALLBACK, PLAIN, ORACLE = "shipped", "shipped, no compiler", "LEAST_REQUEST", "oracle"
PROTOCOL = (
    "live: 8 servers, 2 of them 5 x slower, load 0.7, 2 Envoys, median of the rounds' p99 beside LEAST_REQUEST (two "
    "choices) in turns; simulated: 40 replicas with antagonists, load 0.7, mean over seeds of p99 beside the oracle's"
)
SLEEPING, HOG = "5 x slower", "cpu quota and hog"
DRAWN = 10
Maker = Callable[[Setting], Control]


def main() -> int:
    options = report.arguments(__doc__ or "")
    quick = bool(options.quick)
    with tempfile.TemporaryDirectory(prefix="lepton-bench-") as name:
        folder = Path(name)
        library = pickers.module(folder)
        if library is not None:
            Module.library = library
        compared = checked.check(folder, 1500 if quick else 3000)
        days = [Day(seed=seed, span_s=14.0 if quick else 60.0) for seed in range(QUICK_SEEDS if quick else SEEDS)]
        uses = [used(path) for path in traces.files(options.data)] if options.data else [None]
        simulated: list[dict[str, object]] = []
        for use in uses:
            simulated += simulate(days, quick=quick, use=use)
        live = measure(folder, quick=quick)
    goals = {"13": verdict(simulated, live, compared)}
    if any(row["servers"] == HOG for row in live):
        goals["13.hog"] = hogged(live)
    report.write(options.out, "routing", goals, [*compared, *simulated, *live])
    try:
        plot(options.out, simulated, live)
    except Unavailable as error:
        print(f"no plots: {error.message}", flush=True)
    return 0 if all(goal["met"] for goal in goals.values()) else 1


# ---------------------------------------------------------------------------------------------- simulated


def entrants(*, quick: bool) -> list[tuple[str, str, type[Base], dict[str, Any], Maker | None]]:
    """(column, name, picker, its settings, control)."""
    kinds: list[tuple[str, str, type[Base], dict[str, Any], Maker | None]] = [
        ("oracle", ORACLE, pickers.Oracle, {}, None),
        ("baseline", PLAIN, pickers.LeastRequest, {}, None),
        ("baseline", "LEAST_REQUEST, full scan", pickers.FullScan, {}, None),
        ("policy only", FALLBACK, pickers.FullScan, {}, Measured),
        ("baseline", "Prequal-like, 3 probes", pickers.Prequal, {}, None),
        ("policy only", "LEAST_REQUEST, weights, bias 4", pickers.Weighted, {"bias": 4.0, "power": 4.0}, Eager),
    ]
    if hasattr(Module, "library"):
        kinds += [
            ("policy only", "picker.c without control", Module, {"heeds": False}, None),
            ("policy only", SHIPPED, Module, {}, Measured),
            ("robust-naive", "shipped, robust-naive forecast", Module, {}, ahead(network=False)),
            ("with the network", "shipped, network's forecast", Module, {}, ahead(network=True)),
            ("true capacity", "shipped, true capacity", Module, {}, Informed),
        ]
    if quick:
        return kinds
    for bias, power in ((1.0, 1.0), (2.0, 2.0), (4.0, 2.0)):
        name = f"LEAST_REQUEST, weights ^ {power:g}, bias {bias:g}"
        kinds.append(("policy only", name, pickers.Weighted, {"bias": bias, "power": power}, Eager))
    for bias in (1.0, 2.0, 4.0):
        name = f"LEAST_REQUEST, true weights ^ {bias:g}, bias {bias:g}"
        kinds.append(("true capacity", name, pickers.Weighted, {"bias": bias, "power": bias}, Informed))
    kinds += [("baseline", f"Prequal-like, {n} probes", pickers.Prequal, {"probes": n}, None) for n in (2, 4, 5)]
    kinds += [
        ("baseline", "LEAST_REQUEST, 8 choices", pickers.LeastRequest, {"choices": 8}, None),
        ("baseline", "round robin", pickers.RoundRobin, {}, None),
        ("baseline", "random", pickers.Random, {}, None),
        ("policy only", "least of 8 candidates by capacity", pickers.Candidates, {}, Eager),
        ("true capacity", "least of 8 candidates by capacity", pickers.Candidates, {}, Informed),
    ]
    return kinds


def scenes(*, quick: bool) -> list[tuple[str, dict[str, Any], int]]:
    """(name, what is otherwise than in the goal's protocol, gateways). The first is the goal's."""
    found: list[tuple[str, dict[str, Any], int]] = [("goal 13", {}, 1)]
    if not quick:
        slow = {"work_s": 0.5, "span_s": 300.0, "quiet_s": 120.0, "busy_s": 60.0, "warm_s": 30.0}
        found += [
            ("two gateways", {}, 2),
            ("4 at a time", {"slots": 4}, 1),
            ("32 at a time", {"slots": 32}, 1),
            ("requests of 0.5 s", slow, 1),
            ("load 0.5", {"load": 0.5}, 1),
            ("load 0.85", {"load": 0.85}, 1),
            ("no antagonists", {"left": (1.0, 1.0)}, 1),
        ]
    return found


OTHER_SCENES = (ORACLE, PLAIN, "LEAST_REQUEST, full scan", FALLBACK, SHIPPED, "Prequal-like, 3 probes")


def simulate(days: Sequence[Day], *, quick: bool, use: tuple[str, Any] | None) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for scene_name, fields, gates in scenes(quick=quick):
        drawn = [Scene(replace(day, **fields), None if use is None else use[1]) for day in days]
        oracle: list[float] = []
        for column, name, kind, settings, control in entrants(quick=quick):
            if scene_name != "goal 13" and name not in OTHER_SCENES:
                continue
            if scene_name != "goal 13" and column == "true capacity":
                continue
            took = [once(scene, kind, settings, control, gates) for scene in drawn]
            p99 = [float(np.quantile(latency, 0.99)) for latency, _ in took]
            if name == ORACLE:
                oracle = p99
            ratios = [one / best for one, best in zip(p99, oracle, strict=True)]
            low, high = interval(ratios)
            rows.append(
                {
                    "what": "simulated",
                    "antagonists": "drawn" if use is None else use[0],
                    "scene": scene_name,
                    "column": column,
                    "picker": name,
                    "seeds": len(drawn),
                    "latency_ms_p50": round(
                        statistics.fmean(float(np.median(latency)) for latency, _ in took) * 1e3, 1
                    ),
                    "latency_ms_p99": round(statistics.fmean(p99) * 1e3, 1),
                    "beside_oracle": round(statistics.fmean(ratios), 3),
                    "beside_oracle_95": [round(low, 3), round(high, 3)],
                    "writes_per_minute": round(
                        statistics.fmean(
                            writes / scene.day.span_s * 60 for (_, writes), scene in zip(took, drawn, strict=True)
                        ),
                        1,
                    ),
                }
            )
            print(f"{scene_name}: {name}: {rows[-1]['beside_oracle']} x the oracle", flush=True)
    return rows


def once(
    scene: Scene, kind: type[Base], settings: Mapping[str, Any], control: Maker | None, gates: int
) -> tuple[Any, int]:
    """(latencies, how often control wrote)."""
    day = scene.day
    gateways = [Gateway(day.replicas) for _ in range(gates)]
    setting = Setting(gateways, scene.speeds, day.work_s * day.slots, day.slots)
    made = type(kind.__name__, (kind,), dict(settings))
    chosen = [made(setting, gate, day.seed) for gate in range(gates)]
    keeper = None if control is None else control(setting)
    latencies = run(scene, gateways, chosen, keeper)
    return latencies, getattr(keeper, "writes", 0)


def ahead(*, network: bool) -> Maker:
    """Control that tells pickers what each replica is forecast to be able to do a second from now."""

    def make(setting: Setting) -> Measured:
        forecaster, history = Forecaster(network=network, horizons=(1,)), []  # type: ignore[var-annotated]
        keys = [str(index) for index in range(setting.replicas)]

        def foresee(capacity: list[float]) -> list[float]:
            forecaster.observe(capacity, keys)
            history.append(capacity)
            del history[:-HISTORY]
            found = forecaster.forecast(np.array(history).T, keys).median[:, 0]
            return [float(value) for value in found]

        return Measured(setting, foresee)

    return make


def interval(values: Sequence[float]) -> tuple[float, float]:
    """95 % of the mean, by bootstrap."""
    rng = np.random.default_rng(0)
    means = rng.choice(np.array(values), (2000, len(values))).mean(axis=1)
    return float(np.quantile(means, 0.025)), float(np.quantile(means, 0.975))


def used(path: Path) -> tuple[str, Any]:
    """(name, the use of machines as shares, one row a machine) of a file with known columns."""
    found = []
    for one in traces.series(path):
        top = 100.0 if traces.kind(path) == "hosts" else float(np.nanmax(one.values))
        found.append(np.clip(np.nan_to_num(one.values / max(top, 1e-9)), 0.0, 0.9))
    length = min(part.shape[1] for part in found)
    return path.name, np.concatenate([part[:, :length] for part in found])


# ---------------------------------------------------------------------------------------------- live


def measure(folder: Path, *, quick: bool) -> list[dict[str, object]]:
    rounds, span_s, warm_s = (2, 1.5, 1.0) if quick else (5, 8.0, throttled.WARM_S)
    turns: dict[str, Any] = {"rounds": rounds, "span_s": span_s, "warm_s": warm_s}
    slow = [6, 7]
    rows = throttled.measure(folder, SLEEPING, [0.02] * 6 + [0.1] * 2, slow, 224.0, **turns)
    if not quick:
        rows += throttled.measure(folder, HOG, [0.002] * 8, slow, 120.0, **turns, quota=0.1)
    for row in rows:
        print(f"live: {row['servers']}: {row['picker']}: p99 {row['latency_ms_p99']} ms", flush=True)
    return rows


# ---------------------------------------------------------------------------------------------- result


def verdict(
    simulated: Sequence[Mapping[str, Any]], live: Sequence[Mapping[str, Any]], compared: Sequence[Mapping[str, Any]]
) -> dict[str, object]:
    ours = [row for row in simulated if row["scene"] == "goal 13"]
    by_name = {row["picker"]: row for row in ours}
    shipped = by_name.get(SHIPPED, by_name[FALLBACK])
    worst = max(row["beside_oracle"] for row in ours if row["picker"] == shipped["picker"])
    beside, apart = won(live, SLEEPING)
    agrees = all(row["agrees"] for row in compared)
    met = worst <= MUST_SIMULATED and apart and agrees and beside <= MUST_LIVE
    return report.goal(
        {"live_p99_beside_least_request": beside, "simulated_p99_beside_oracle": worst},
        "ratio, ratio",
        must={"live_p99_beside_least_request": MUST_LIVE, "simulated_p99_beside_oracle": MUST_SIMULATED},
        aim={"simulated_p99_beside_oracle": AIM_SIMULATED},
        met=met,
        protocol=PROTOCOL,
        interval_95=shipped["beside_oracle_95"],
        picker=shipped["picker"],
        checked_against_the_binary=agrees,
        share_of_the_network=share(by_name),
    )


def hogged(live: Sequence[Mapping[str, Any]]) -> dict[str, object]:
    beside, apart = won(live, HOG)
    return report.goal(
        beside,
        "ratio",
        must=MUST_LIVE,
        met=apart and beside <= MUST_LIVE,
        protocol="as 13 live, but servers compute, and two share a tenth of a core with a hog (cgroup quota)",
    )


def won(live: Sequence[Mapping[str, Any]], servers: str) -> tuple[float, bool]:
    """(p99 beside LEAST_REQUEST, whether no round of ours was as slow as one of its, and none of ours failed)."""
    by_way = {row["picker"]: row for row in live if row["servers"] == servers}
    ours, plain = by_way[throttled.OURS], by_way[throttled.PLAIN]
    apart = ours["latency_ms_p99_range"][1] < plain["latency_ms_p99_range"][0]
    return float(ours["beside_least_request"]), apart and ours["failed"] == 0


def share(by_name: Mapping[str, Mapping[str, Any]]) -> float | None:
    """Of the gain over plain LEAST_REQUEST, what the network's forecast adds to measured capacity."""
    network, ours = by_name.get("shipped, network's forecast"), by_name.get(SHIPPED)
    if network is None or ours is None:
        return None
    whole = by_name[PLAIN]["beside_oracle"] - network["beside_oracle"]
    return round((ours["beside_oracle"] - network["beside_oracle"]) / whole, 4) if whole > 0 else None


def plot(folder: Path, simulated: Sequence[Mapping[str, Any]], live: Sequence[Mapping[str, Any]]) -> None:
    first = [row for row in simulated if row["scene"] == "goal 13" and row["column"] != "robust-naive"]
    first = sorted(first, key=lambda row: float(row["beside_oracle"]))[:DRAWN]
    labels = [f"{row['picker']} ({row['column']})" for row in first]
    bars(
        folder / "routing-simulated.png",
        [""],
        {label: [row["beside_oracle"]] for label, row in zip(labels, first, strict=True)},
        title="40 replicas with antagonists, load 0.7",
        y="p99 beside the oracle's",
        ranges={label: [tuple(row["beside_oracle_95"])] for label, row in zip(labels, first, strict=True)},
        marks={"must": MUST_SIMULATED, "aim": AIM_SIMULATED},
    )
    groups = list(dict.fromkeys(str(row["servers"]) for row in live))
    names = list(dict.fromkeys(str(row["picker"]) for row in live))
    known = {(row["servers"], row["picker"]): row for row in live}
    bars(
        folder / "routing-live.png",
        groups,
        {name: [known[group, name]["latency_ms_p99"] for group in groups] for name in names},
        title="8 servers behind two Envoys, 2 of them slow",
        y="p99 (ms), median of the rounds",
        ranges={name: [tuple(known[group, name]["latency_ms_p99_range"]) for group in groups] for name in names},
    )


if __name__ == "__main__":
    raise SystemExit(main())
