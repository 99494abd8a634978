"""Goal 12, autoscaling: replica-hours and missed requests of R = f(D, H) beside the rules that others scale by.

Demand is replayed at 0.5 s at the trace's own times: a request is missed when it waits longer than a second, a replica
needs 30 s to start. A service is sized so that 40 replicas, always running, would just do (at most 1 % missed); so
that figures of different traces compare. The first quarter of a trace is for learning (every rule sees it, none is
judged by it). Ours decides every 5 s through lepton_ai.scheduler (peak, scale), with one setting for all traces and
only what the gateway of a cell would measure; every other rule is tuned on each trace in hindsight, over the grids in
bench/reactive.py. Bursty is a trace whose 40 replicas are busy less than a third of the time.

--data takes files or folders of requests (TIMESTAMP,ContextTokens,GeneratedTokens: Azure LLM inference 2023) and of
minutes (t,tps: BurstGPT); without it, seeded synthetic ones. The full run adds other start-up times, loads, the jumps
within minutes, and a burst on a real cell (see bench/burst.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import report
import traces
from reactive import RULES, Tuned, in_flight, tuned
from replay import MISSES, STEP_S, Array, Demand, Fleet, Result, demands, drive, minutes, oracle, sized, static

from lepton_ai.plots import lines
from lepton_ai.scheduler.forecast import Forecaster
from lepton_ai.scheduler.peak import TICK_S, Peak
from lepton_ai.scheduler.scale import Demand as Asked
from lepton_ai.scheduler.scale import scale
from lepton_ai.spec.workload import DeploymentSpec, Replicas, Template

START_S = 30.0
BURSTY = 3.0
MUST_SAVED, AIM_SAVED, MUST_MORE = 0.20, 0.35, 0.03
EACH = 10.0
SPEC = DeploymentSpec(template=Template(command=("replay",)), replicas=Replicas(min=1, max=1000), target_in_flight=EACH)
PROTOCOL = (
    "0.5 s steps, queue wait <= 1 s, start-up 30 s, sized to 40 replicas, first quarter for learning; ours: one "
    "setting; others: best of their grid in hindsight, trace by trace"
)


class Ours:
    """What a cell would do: the gateway's figures, second by second, and every 5 s a decision of the scheduler's."""

    def __init__(self, demand: Demand, start_s: float, ahead: Ahead | None = None) -> None:
        self.demand, self.start_s, self.ahead = demand, start_s, ahead
        self.peak, self.decided, self.figures = Peak(), 0, (Array, Array)
        self._second = int(1 / STEP_S)
        self._working = np.zeros((1, self._second))

    def __call__(self, fleet: Fleet, served: Array, queue: Array) -> Array:
        second, begin = self._second, self.decided * served.shape[1]
        self.decided += 1
        seen = np.concatenate([self._working, served], axis=1)
        self._working = served[:, -second:]
        loads = in_flight(fleet, seen, np.concatenate([np.zeros((1, second)), queue], axis=1))[0, second:]
        counts = self.demand.requests[begin : begin + served.shape[1]].reshape(-1, second).sum(axis=1)
        sampled = loads[second - 1 :: second]
        ahead = None if self.ahead is None else self.ahead(float(sampled.max()))
        plan = self.peak.tick(sampled, counts, self.start_s, ready=float(fleet.ready[0]), ahead=ahead)
        asked = Asked(peak=plan.replicas * EACH)
        return np.array([float(scale(SPEC, asked, nodes=1000).replicas)])


class Ahead:
    """The network's (or robust-naive's) upper quantile of the largest load within the next start-up time."""

    def __init__(self, start_s: float, *, network: bool) -> None:
        self._forecaster = Forecaster(network=network, horizons=(1, 2), quantile=0.9)
        self._ticks = max(1, round(start_s / TICK_S))
        self._recent: list[float] = []
        self._maxima: list[float] = []
        self._upper = 0.0

    def __call__(self, load: float) -> float:
        self._recent.append(load)
        if len(self._recent) == self._ticks:
            self._maxima = [*self._maxima[-47:], max(self._recent)]
            self._forecaster.observe(np.array(self._maxima[-1:]), ("load",))
            self._upper = float(self._forecaster.forecast(np.array([self._maxima]), ("load",)).upper.max())
            self._recent = []
        return self._upper


def ours(demand: Demand, start_s: float = START_S, ahead: Ahead | None = None) -> Result:
    return drive(demand, start_s, int(TICK_S / STEP_S), 1, Ours(demand, start_s, ahead))[0]


def main() -> int:
    options = report.arguments(__doc__ or "")
    asked = list(chosen(options.data, quick=options.quick))
    rows: list[dict[str, object]] = []
    savings: dict[str, dict[str, object]] = {}
    for demand in asked:
        measured = measure(demand, quick=options.quick)
        rows += measured
        savings[demand.name] = verdict(demand, measured)
    if not options.quick:
        for path in traces.files(options.data):
            rows += sensitivity([demands(path, jumps=True)] if traces.kind(path) == "minutes" else [], "jumps")
        rows += sensitivity(asked, "as replayed")
    turns = calm(hours=1 if options.quick else 6)
    rows += turns
    report.write(options.out, "autoscale", goals(savings, turns), rows)
    for demand in asked:
        draw(options.out, demand)
    return 0 if all(line["met"] for line in goals(savings, turns).values()) else 1


def chosen(paths: Sequence[Path], *, quick: bool) -> Iterable[Demand]:
    files = traces.files(paths)
    found = [demands(path) for path in files if traces.kind(path) in ("requests", "minutes")]
    yield from found or synthetic(days=1.0 if quick else 2.0)


def synthetic(days: float, seed: int = 7) -> list[Demand]:
    """Lumps that come and go with the hour, in minutes; and an even stream with a slow swing."""
    rng = np.random.default_rng(seed)
    count = int(days * 1440)
    hour = np.arange(count) / 60 + 9
    busy = 3.0 * np.clip(np.sin((hour % 24 - 6) / 24 * 2 * np.pi), 0.03, None)
    lumps = rng.poisson(busy)
    sizes = np.array([rng.lognormal(2.5, 0.8, size=number).sum() for number in lumps])
    seconds = np.arange(0, 3 * 3600, STEP_S)
    rate = 50 * (1 + 0.25 * np.sin(seconds / 1800))
    even = rng.poisson(rate * STEP_S)
    tokens = np.array([rng.lognormal(6.5, 0.9, size=number).sum() for number in even])
    return [sized("synthetic-lumpy", *minutes(sizes, seed)), sized("synthetic-even", tokens, even.astype(float))]


def measure(demand: Demand, *, quick: bool) -> list[dict[str, object]]:
    """Every rule on one trace; ours with nothing, with robust-naive and with the network's forecast as its level."""
    found: list[tuple[str, str, Result]] = [("static peak", "", static(demand))]
    for rule in RULES:
        best: Tuned = tuned(rule, demand, START_S, quick=quick)
        found.append((rule, f"{best.setting} (of {best.tried})", best.result))
    found.append(("policy only", "ships", ours(demand)))
    for label, network in (("with robust-naive", False), ("with the network", True)):
        found.append((label, "level from a forecast", ours(demand, ahead=Ahead(START_S, network=network))))
    found.append(("oracle", "knows the future", oracle(demand, START_S)))
    return [row(demand, *item) for item in found]


def row(demand: Demand, rule: str, setting: str, result: Result, **more: object) -> dict[str, object]:
    return {
        "trace": demand.name,
        "rule": rule,
        "setting": setting,
        "replica_hours": round(result.hours, 2),
        "mean_replicas": round(result.mean, 2),
        "missed": round(result.missed, 5),
        "turns_per_hour": round(result.turns, 2),
        "bursty": demand.lumpiness > BURSTY,
        **more,
    }


def verdict(demand: Demand, rows: Sequence[dict[str, object]]) -> dict[str, object]:
    """How ours compares on one trace: with the best HPA where it is bursty, with the best reactive rule where not."""
    hours = {str(item["rule"]): float(str(item["replica_hours"])) for item in rows}
    misses = {str(item["rule"]): float(str(item["missed"])) for item in rows}
    fit = {rule: hours[rule] for rule in RULES if misses[rule] <= MISSES} or {"static peak": hours["static peak"]}
    best = min(fit, key=lambda rule: fit[rule])
    rival = fit.get("hpa", hours["static peak"]) if demand.lumpiness > BURSTY else fit[best]
    share = (hours["with the network"], hours["policy only"], hours["hpa"])
    return {
        "bursty": demand.lumpiness > BURSTY,
        "saved": round(1 - hours["policy only"] / rival, 4),
        "missed": misses["policy only"],
        "saved_against_static": round(1 - hours["policy only"] / hours["static peak"], 4),
        "saved_against_best_reactive": round(1 - hours["policy only"] / fit[best], 4),
        "best_reactive": best,
        "with_the_network": round(1 - share[0] / rival, 4) if misses["with the network"] <= MISSES else "misses more",
        "oracle": round(1 - hours["oracle"] / rival, 4),
    }


def goals(savings: dict[str, dict[str, object]], turns: Sequence[dict[str, object]]) -> dict[str, dict[str, object]]:
    found: dict[str, dict[str, object]] = {}
    bursty = {name: value for name, value in savings.items() if value["bursty"]}
    smooth = {name: value for name, value in savings.items() if not value["bursty"]}

    def fits(values: dict[str, dict[str, object]], least: float) -> bool:
        return all(float(str(v["saved"])) >= least and float(str(v["missed"])) <= MISSES for v in values.values())

    if bursty:
        found["12 bursty"] = report.goal(
            bursty, "share of replica-hours saved against the best-tuned HPA", must=MUST_SAVED, aim=AIM_SAVED,
            met=fits(bursty, MUST_SAVED), protocol=PROTOCOL,
        )  # fmt: skip
    if smooth:
        found["12 smooth"] = report.goal(
            smooth, "share saved against the best reactive rule", must=-MUST_MORE,
            met=fits(smooth, -MUST_MORE), protocol=PROTOCOL,
        )  # fmt: skip
    most = max(int(str(item["most_in_5_minutes"])) for item in turns)
    found["12 calm"] = report.goal(
        most, "changes of direction within 5 minutes", must=1, met=most <= 1,
        protocol="constant Poisson load of 0.5-40 replicas, 10 requests/s a replica, after 12 minutes",
    )  # fmt: skip
    return found


def calm(hours: float, seeds: int = 2) -> list[dict[str, object]]:
    """How often ours turns at a constant load."""
    rows: list[dict[str, object]] = []
    for replicas in (0.5, 3.0, 10.0, 40.0):
        most = 0
        for seed in range(seeds):
            count = int(hours * 3600)
            arrivals = np.random.default_rng(seed).poisson(replicas * EACH, count).reshape(-1, 5) / EACH
            peak = Peak()
            plans = np.array([peak.tick(loads, loads * EACH, START_S).replicas for loads in arrivals])
            most = max(most, turns_within(plans[144:]))
        rows.append({"what": "constant load", "replicas": replicas, "hours": hours, "most_in_5_minutes": most})
    return rows


def turns_within(plans: Array, ticks: int = 60) -> int:
    """The most changes of direction in any `ticks` ticks."""
    moves = [(index, np.sign(move)) for index, move in enumerate(np.diff(plans)) if move]
    turns = [moves[at][0] for at in range(1, len(moves)) if moves[at][1] != moves[at - 1][1]]
    return max((sum(begin <= other < begin + ticks for other in turns) for begin in turns), default=0)


def sensitivity(asked: Sequence[Demand], label: str) -> list[dict[str, object]]:
    """The same setting at other start-up times and sizes, beside an HPA tuned for each."""
    rows: list[dict[str, object]] = []
    for demand in asked:
        cases = [
            (f"start-up {start_s:g} s", demand, start_s)
            for start_s in ((START_S,) if label == "jumps" else (10.0, 120.0))
        ]
        if label != "jumps":
            cases.append(("10 replicas", sized(demand.name, demand.work, demand.requests, 10), START_S))
        for what, changed, start_s in cases:
            best, result = tuned("hpa", changed, start_s), ours(changed, start_s)
            saved = round(1 - result.hours / best.result.hours, 4)
            rows.append(row(changed, "policy only", f"{label}, {what}", result, saved_against_hpa=saved))
            rows.append(row(changed, "hpa", f"{label}, {what}: {best.setting}", best.result))
    return rows


def draw(folder: Path, demand: Demand) -> None:
    """Need and replicas over the first hours that count."""
    kept: list[tuple[float, float, float]] = []
    rule = Ours(demand, START_S)

    def decide(fleet: Fleet, served: Array, queue: Array) -> Array:
        wanted = rule(fleet, served, queue)
        kept.append((rule.decided * TICK_S / 60, float(rule.peak.plan.now), float(wanted[0])))
        return wanted

    drive(demand, START_S, int(TICK_S / STEP_S), 1, decide)
    begin = len(kept) // 4
    minutes_, need, wanted = zip(*kept[begin : begin + 2160], strict=True)
    lines(
        folder / f"autoscale-{demand.name}.png",
        {"needed (maximum of the last minute)": (minutes_, need), "replicas": (minutes_, wanted)},
        title=f"R = f(D, H): {demand.name}",
        x="minutes",
        y="replicas",
    )


if __name__ == "__main__":
    raise SystemExit(main())
