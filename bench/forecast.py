"""Goal 11, the forecast: WAPE and P90 pinball against robust-naive (median of 12, P90 of 48), coverage, time, adapting.

Protocol: bench/rolling.py's, rolling origin at every step from the 48th sample on, horizons 1, 5 and 15, through
lepton_ai.scheduler. A gain is the share by which the loss fell, mean of the horizons; then of the data sets. Columns:
*policy only* (the naive rule), *naive corrected* (the same with its upper quantile corrected online), *network*
(without a memory), *live* (network, dropped per series where it loses, and corrected: what ships). Simpler rules
beside them get the quantile of their own last 48 errors as upper figure; the smoothing that is best in hindsight is
shown. Seeds: networks trained alike with other seeds (bench/monitors), judged live. Coverage is judged as the mean
of the data sets; sets outside of 88-92 % are named (`coverage_outside`). Intervals: 95 %, bootstrap of
blocks of 48 steps.
Series that the network was trained on are marked so (bench/monitors/train.json has their sha256): their figures flatter
it, those of other files do not; `folds` in that file has figures of networks that did not see what they judge.

Without --data: synthetic series of six kinds, with a seed that training does not use.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import report
import rolling
import traces
from rolling import Losses, Row, Said
from synthetic import synthetic

from lepton_ai.errors import LeptonError
from lepton_ai.plots import bars, lines
from lepton_ai.scheduler.forecast import HISTORY, Forecaster
from lepton_ai.scheduler.network import shipped

MONITORS = Path(__file__).parent / "monitors"
MUST = {"wape_gain": 3.0, "pinball_gain": 4.0, "worst_gain": -1.0, "coverage": (88.0, 92.0), "ms_1000_nodes": 10.0}
AIM = {"wape_gain": 5.0, "pinball_gain": 6.0}
PROTOCOL = "rolling origin, horizons 1, 5, 15, live, mean over data sets; gains in % of robust-naive's losses"
SMOOTHINGS = (0.5, 0.8, 0.9)
SYNTHETIC_SEED = 90_000
DRAWS = 1000
QUICK_ROWS, QUICK_SAMPLES = 40, 700
NODES, NODES_STEPS = 1000, 150

Line = dict[str, object]


def main() -> int:
    options = report.arguments(__doc__ or "")
    data = rolling.rows(options.data) if options.data else invented(8 if options.quick else 60)
    if options.quick:
        data = {name: smaller(rows) for name, rows in data.items()}
    taught = known(options.data)
    table: list[Line] = []
    live: dict[str, Losses] = {}
    without: dict[str, Losses] = {}
    base: dict[str, Losses] = {}
    over_time: dict[str, tuple[list[float], list[float]]] = {}
    for name, rows in data.items():
        found = compared(name, rows, quick=options.quick)
        base[name], live[name] = found["policy only"], found["live"]
        without[name] = found["naive corrected"]
        for label, losses in found.items():
            table.append(line(name, label, losses, base[name], seen=name in taught))
        for label in ("policy only", "live"):
            share = 100.0 * found[label].covered / np.maximum(found[label].counted, 1.0)
            over_time[f"{name}, {label}"] = (list(np.arange(1.0, rolling.BINS + 1)), [float(part) for part in share])
        print("\n".join(shown(row) for row in table if row["set"] == name), flush=True)
    seeds = [] if options.quick else other_seeds(data, base)
    adapted = [adapting(name, rows) for name, rows in data.items()]
    timing = speed()
    value = scored(list(live.values()), list(base.values()), 100 if options.quick else DRAWS)
    rest, _ = rolling.gains(list(without.values()), list(base.values()), 1, seed=0)
    value["without_network"] = {
        "wape_gain": round(100.0 * float(rest[0]), 2),
        "pinball_gain": round(100.0 * float(rest[1]), 2),
    }
    value["ms_1000_nodes"] = timing["cpu_ms_p50"]
    value["seeds"] = seeds
    each = {str(row["set"]): number(row["coverage"]) for row in table if row["column"] == "live"}
    low, high = MUST["coverage"]  # type: ignore[misc]
    value["coverage_outside"] = {name: share for name, share in each.items() if not low <= share <= high}
    met = (
        number(value["wape_gain"]) >= number(MUST["wape_gain"])
        and number(value["pinball_gain"]) >= number(MUST["pinball_gain"])
        and number(value["worst_gain"]) >= number(MUST["worst_gain"])
        and low <= number(value["coverage"]) <= high
        and number(timing["cpu_ms_p50"]) < number(MUST["ms_1000_nodes"])
    )
    more = {"aim_met": all(number(value[key]) >= number(AIM[key]) for key in AIM), "taught_on": sorted(taught)}
    goal = report.goal(value, "%, ms", must=MUST, aim=AIM, met=met, protocol=PROTOCOL, **more)
    report.write(options.out, "forecast", {"11": goal}, [*table, *adapted, timing])
    plot(options.out, table, over_time)
    return 0 if met else 1


def number(value: object) -> float:
    return float(str(value))


def invented(count: int) -> dict[str, list[Row]]:
    made = synthetic(SYNTHETIC_SEED, count)
    return {name: [Row(values, float(values.mean())) for values in held] for name, held in made.items()}


def smaller(rows: list[Row]) -> list[Row]:
    few = rows[:: max(1, len(rows) // QUICK_ROWS)][:QUICK_ROWS]
    return [Row(row.values[:QUICK_SAMPLES], row.level, row.step_s, row.name) for row in few]


def known(paths: Sequence[Path]) -> set[str]:
    """The data sets of which a file is one that the shipped network was trained on."""
    try:
        digests = set(json.loads((MONITORS / "train.json").read_text("utf-8"))["data"].values())
    except (OSError, KeyError, ValueError):
        return set()
    found = set()
    for path in traces.files(paths):
        if hashlib.sha256(path.read_bytes()).hexdigest() in digests:
            found |= {item.data for item in traces.series(path)}
    return found


def compared(name: str, rows: list[Row], *, quick: bool) -> dict[str, Losses]:
    """Every method on one data set; the first is what all are compared with."""
    methods: dict[str, Callable[[Sequence[Row]], Said | None]] = {
        "policy only": rolling.plain(Forecaster(network=False)),
        "naive corrected": rolling.live(lambda: Forecaster(network=False)),
        "network": rolling.plain(Forecaster()),
        "live": rolling.live(Forecaster),
        "last value": rolling.last,
        "yesterday": rolling.yesterday,
    }
    found = {}
    for label, say in methods.items():
        said = say(rows)
        if said is not None:
            found[label] = rolling.losses(rows, said)
    smoothed = [
        rolling.losses(rows, rolling.smoothed(keep)(rows))
        for keep in SMOOTHINGS[1 if quick else 0 : 2 if quick else None]
    ]
    found["smoothed (best)"] = min(smoothed, key=lambda losses: float(losses.wape().mean() + losses.loss().mean()))
    return found


def line(name: str, column: str, losses: Losses, base: Losses, *, seen: bool) -> Line:
    wape, pinball = 100.0 * rolling.gain(losses, base)
    each = {f"h{step}": round(float(value), 4) for step, value in zip(rolling.HORIZONS, losses.wape(), strict=True)}
    return {
        "set": name,
        "column": column,
        "wape_gain": round(float(wape), 2),
        "pinball_gain": round(float(pinball), 2),
        "coverage": round(100.0 * float(losses.coverage().mean()), 2),
        "wape": each,
        "pinball": [round(float(value), 4) for value in losses.loss()],
        "coverage_each": [round(100.0 * float(value), 2) for value in losses.coverage()],
        "outcomes": int(losses.count.sum()),
        "in_training": seen,
    }


def shown(row: Line) -> str:
    return (
        f"{row['set']!s:12} {row['column']!s:16} WAPE {number(row['wape_gain']):+6.2f} %"
        f"  pinball {number(row['pinball_gain']):+6.2f} %  coverage {number(row['coverage']):5.1f} %"
    )


def scored(ours: list[Losses], base: list[Losses], draws: int) -> dict[str, object]:
    """The figures of the goal, with their intervals."""
    mean, interval = rolling.gains(ours, base, draws, seed=0)
    each = 100.0 * np.array([rolling.gain(one, two) for one, two in zip(ours, base, strict=True)])
    return {
        "wape_gain": round(100.0 * float(mean[0]), 2),
        "wape_interval": [round(100.0 * float(end), 2) for end in interval[0]],
        "pinball_gain": round(100.0 * float(mean[1]), 2),
        "pinball_interval": [round(100.0 * float(end), 2) for end in interval[1]],
        "worst_gain": round(float(each.min()), 2),
        "coverage": round(100.0 * float(np.mean([losses.coverage().mean() for losses in ours])), 2),
    }


def other_seeds(data: dict[str, list[Row]], base: dict[str, Losses]) -> list[Line]:
    """The same figures of networks that were trained with other seeds."""
    found = []
    for path in sorted(MONITORS.glob("*.onnx")):
        model = path.read_bytes()
        say = rolling.live(lambda model=model: Forecaster(model=model))  # type: ignore[misc]
        mean, _ = rolling.gains([rolling.losses(rows, say(rows)) for rows in data.values()], list(base.values()), 1, 0)
        wape, pinball = (round(100.0 * float(value), 2) for value in mean)
        found.append({"network": path.stem, "wape_gain": wape, "pinball_gain": pinball})
        print(found[-1], flush=True)
    return found


def adapting(name: str, rows: list[Row]) -> Line:
    """The network adapted to the first half of the data set's time, judged against the shipped one on the second."""
    found: Line = {"set": name, "column": "adapted", **rolling.adapting(rows, shipped())}
    print(found, flush=True)
    return found


def speed() -> Line:
    """One step of a cell: NODES outcomes observed, NODES forecasts made; one thread, so its own time is judged (a busy
    machine adds waiting to the wall clock, which is shown beside)."""
    random = np.random.default_rng(0)
    series = random.gamma(2.0, 10.0, (NODES, HISTORY + NODES_STEPS))
    keys = [f"node-{number}/cpu" for number in range(NODES)]
    forecaster = Forecaster()
    times_ms, work_ms = [], []
    for at in range(NODES_STEPS):
        history = series[:, at : at + HISTORY]
        started_s, worked_s = time.perf_counter(), time.thread_time()
        forecaster.observe(history[:, -1], keys)
        forecaster.forecast(history, keys)
        times_ms.append(1000.0 * (time.perf_counter() - started_s))
        work_ms.append(1000.0 * (time.thread_time() - worked_s))
    return {
        "column": "speed",
        "nodes": NODES,
        "cpu_ms_p50": round(float(np.median(work_ms)), 3),
        "ms_p50": round(float(np.median(times_ms)), 3),
        "ms_p99": round(float(np.quantile(times_ms, 0.99)), 3),
        "network_bytes": len(shipped()),
    }


def plot(out: Path, table: list[Line], over_time: dict[str, tuple[list[float], list[float]]]) -> None:
    names = list(dict.fromkeys(str(row["set"]) for row in table))
    columns = ("naive corrected", "network", "live", "smoothed (best)")
    try:
        for key, label in (("wape_gain", "WAPE"), ("pinball_gain", "P90 pinball")):
            held = {
                column: [
                    number(row[key]) for name in names for row in table if (row["set"], row["column"]) == (name, column)
                ]
                for column in columns
            }
            title = f"Forecast: {label} below robust-naive, mean of horizons 1, 5, 15"
            must = {f"must (mean) {MUST[key]} %": number(MUST[key])}
            bars(out / f"forecast_{key}.png", names, held, title=title, y="% lower", marks=must)
        bounds = {"88 %": 88.0, "92 %": 92.0}
        lines(
            out / "forecast_coverage.png",
            {label: series for label, series in over_time.items() if label.endswith("live")},
            title="Coverage of the P90 over time, as a cell runs it",
            x="twelfths of the data set's time",
            y="% of outcomes not above",
            marks=bounds,
        )
    except LeptonError as error:
        print(f"no plot: {error}", flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
