"""The monitor: samples nodes and replicas, forecasts them, and says what load to plan for on each node (s = w * u).

Owns the windows of samples, the forecaster, and the file in the cell's folder by which a new leader knows what the
last one had measured. It decides nothing: `scheduler.load` makes a `Load` of each node, and `Context.loads` carries
them to whoever places, moves and scales. A pass that is not due costs nothing.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lepton_ai.control import memo
from lepton_ai.control.clock import Clock
from lepton_ai.control.context import Context
from lepton_ai.control.measured import RESOURCES, WORK, measured, work
from lepton_ai.control.options import Options
from lepton_ai.errors import LeptonError, StaleEpoch
from lepton_ai.scheduler.forecast import HISTORY, Forecaster
from lepton_ai.scheduler.load import FLOOR, Load, Mark, load
from lepton_ai.scheduler.window import Ring
from lepton_ai.spec.replica import NodeReport, ReplicaReport
from lepton_ai.spec.route import RouteStats

HORIZONS = (1, 5, 15)
QUIET = 0.05
"""A series that stayed below this share all through its window is not forecast: w = 1. It costs nothing, and no node
is chosen or spared for what it says."""
RETRY_S = 1.0
STARTUPS = 64
STARTUPS_LEAST = 4
STARTUP_MOST_S = 3600.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Shown:
    """What the monitor saw last, for people and programs that ask. `measured_ms` is UTC, 0 before the first look.

    `reports`: what connected nodes said; `endpoints`: by (workspace, name), what the gateway counted and the requests
    a second since the look before.
    """

    measured_ms: int = 0
    loads: Mapping[str, Load] = field(default_factory=dict)
    reports: Mapping[str, NodeReport] = field(default_factory=dict)
    endpoints: Mapping[tuple[str, str], tuple[RouteStats, float]] = field(default_factory=dict)
    startup_s: float = 0.0

    def replicas(self) -> dict[str, tuple[str, ReplicaReport]]:
        """By uid, the node and what it says of the replica."""
        return {copy.uid: (name, copy) for name, report in self.reports.items() for copy in report.replicas}


class Monitor:
    """One leader's measurements. `nodes` has :data:`RESOURCES` as shares; `work`, by uid, cores and GiB in use.

    Args:
        file: where they are kept over a restart; None keeps them nowhere.
    """

    def __init__(self, clock: Clock, options: Options, file: Path | None = None) -> None:
        self._clock, self._options, self._file = clock, options, file
        self._spacing_ms = max(1, round(options.monitor_s * 1000))
        self.nodes = Ring(RESOURCES, options.monitor_samples, self._spacing_ms)
        self.work = Ring(WORK, options.monitor_samples, self._spacing_ms)
        self._forecaster: Forecaster | None = None
        self._learned: Mapping[str, object] = {}
        self._startups: deque[float] = deque(maxlen=STARTUPS)
        self._ready: set[str] = set()
        self._marks: dict[str, Mark] = {}
        self._samples: dict[str, tuple[str, int]] = {}
        self._lied: set[tuple[str, tuple[str, ...]]] = set()
        self._looked_ms: int | None = None
        self._complete, self._step = False, -1
        self._saved_ms = clock.elapsed_ms()
        self._counted: tuple[int, Mapping[tuple[str, str], RouteStats]] = (-1, {})
        self.loads: dict[str, Load] = {}
        self.shown = Shown()

    def look(self, ctx: Context) -> None:
        """Sample and forecast when it is due, and hand the loads to the pass."""
        if self._looked_ms is None:
            self._restore()
        if self._due(ctx.tick_ms):
            self._looked_ms = ctx.tick_ms
            try:
                self._look(ctx)
            except StaleEpoch:
                raise
            except Exception:  # noqa: BLE001 - whatever measuring met, a pass places by what was known before
                _log.exception("measuring")
        ctx.loads = self.loads
        if ctx.tick_ms - self._saved_ms >= self._options.monitor_save_s * 1000:
            self._saved_ms = ctx.tick_ms
            self.save()

    @property
    def startup_s(self) -> float:
        """How long a replica takes to start: nine of ten of the last ones took no longer."""
        if len(self._startups) < STARTUPS_LEAST:
            return self._options.startup_s
        return float(np.quantile(np.array(self._startups), 0.9))

    def save(self) -> None:
        """Write down what was measured; a failure is only logged."""
        if self._file is None or self._looked_ms is None:
            return
        learned = self._learned if self._forecaster is None else self._forecaster.state()
        about = {"startups_s": [round(value, 3) for value in self._startups], "forecaster": learned}
        age_ms = self._clock.elapsed_ms() - self._looked_ms
        rings = {"nodes": self.nodes.snapshot(), "work": self.work.snapshot()}
        try:
            memo.write(self._file, memo.Memo(self._clock.now_ms() - age_ms, about, rings))
        except OSError as error:
            _log.warning("what was measured is not written down: %s", error)

    # -- within

    def _due(self, now_ms: int) -> bool:
        """Once in every step of the grid; while a node was not measured yet, soon: nothing is known to place by."""
        if self._looked_ms is None or now_ms // self._spacing_ms != self._looked_ms // self._spacing_ms:
            return True
        return not self._complete and now_ms - self._looked_ms >= RETRY_S * 1000

    def _look(self, ctx: Context) -> None:
        views = {name: view for name, view in ctx.views.items() if name in ctx.nodes and view.connected}
        reports = {name: view.report for name, view in views.items() if view.report is not None}
        found = measured(reports)
        self._tell(ctx, found.lies)
        values = np.where(self._old(reports, found.names)[:, None], np.nan, found.shares)
        self.nodes.keep(ctx.nodes.keys())
        self.nodes.add(ctx.tick_ms, found.names, values)
        uids, used = work(reports)
        self.work.keep(set(uids))
        self.work.add(ctx.tick_ms, uids, used)
        self._learn_startups(reports)
        names = tuple(sorted(ctx.nodes))
        self._complete = ctx.all_settled and not np.isnan(self.nodes.last(sorted(reports), 1)[:, 0]).any()
        self.loads = {one.name: one for one in self._loads(ctx, names)}
        self._marks = {name: one.mark for name, one in self.loads.items()}
        self._show(ctx, reports)

    def _loads(self, ctx: Context, names: tuple[str, ...]) -> tuple[Load, ...]:
        options, now_ms = self._options, ctx.tick_ms
        used = recent(self.nodes.history(names, options.monitor_stale, now_ms))
        frozen = self.nodes.frozen(names)[:, 0] & (used[:, 0] > FLOOR)
        old = np.isnan(used).all(axis=1) | frozen
        if old.any():
            used = np.where(old[:, None], self.nodes.last(names, options.monitor_samples), used)
        upper, network = self._upper(names, now_ms)
        return load(
            names,
            used,
            upper,
            limit=options.load_limit,
            idle=options.load_idle,
            resources=RESOURCES,
            network=network,
            stale={name for name, is_old in zip(names, old, strict=True) if is_old},
            reserved=_reserved(ctx, names) if old.any() else None,
            before=self._marks,
        )

    def _upper(self, names: tuple[str, ...], now_ms: int) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """(nodes, resources): the upper quantile at the horizon that matters, NaN where nothing is forecast."""
        history = self.nodes.history(names, min(HISTORY, self._options.monitor_samples), now_ms)
        upper, network = np.full(history.shape[:2], np.nan), np.zeros(history.shape[:2], dtype=bool)
        known = (~np.isnan(history)).sum(axis=2)
        most, least = np.fmax.reduce(history, axis=2), np.fmin.reduce(history, axis=2)
        # What stands still is its own forecast.
        wanted = (known >= self._options.monitor_known) & (most >= QUIET) & (most > least)
        if not wanted.any():
            return upper, network
        if self._forecaster is None:
            self._forecaster = self._begin()
        rows, columns = np.nonzero(wanted)
        keys = [
            f"{names[row]}/{RESOURCES[column]}" for row, column in zip(rows.tolist(), columns.tolist(), strict=True)
        ]
        series = history[rows, columns]
        if self._step != now_ms // self._spacing_ms:
            self._step = now_ms // self._spacing_ms
            self._forecaster.observe(series[:, -1], keys)
        ahead = self._forecaster.forecast(series, keys)
        at = self._horizon(ahead.horizons)
        upper[rows, columns], network[rows, columns] = ahead.upper[:, at], ahead.network
        return upper, network

    def _begin(self) -> Forecaster:
        try:
            forecaster = Forecaster(network=self._options.monitor_network, horizons=HORIZONS)
        except (LeptonError, OSError) as error:
            _log.warning("the network cannot be used, forecasts are robust-naive: %s", error)
            forecaster = Forecaster(network=False, horizons=HORIZONS)
        forecaster.restore(self._learned)
        return forecaster

    def _horizon(self, horizons: tuple[int, ...]) -> int:
        """The index of the first horizon that is not shorter than a replica's start."""
        steps = math.ceil(self.startup_s * 1000 / self._spacing_ms)
        return next((index for index, ahead in enumerate(horizons) if ahead >= steps), len(horizons) - 1)

    def _old(self, reports: Mapping[str, NodeReport], names: tuple[str, ...]) -> NDArray[np.bool_]:
        """Whether a node's agent has not measured since the last look, or not twice yet: rates are differences."""
        old, after = np.zeros(len(names), dtype=bool), {}
        for row, name in enumerate(names):
            report = reports[name]
            if report.gauges is not None:
                count = (report.agent_uid, report.gauges.samples)
                old[row] = report.gauges.samples < 2 or self._samples.get(name) == count
                after[name] = count
        self._samples = after
        return old

    def _learn_startups(self, reports: Mapping[str, NodeReport]) -> None:
        known, copies = self._ready, [copy for report in reports.values() for copy in report.replicas if copy.ready_ms]
        for copy in copies:
            if copy.uid not in known:
                took_s = (copy.ready_ms - copy.started_ms) / 1000
                if copy.started_ms and 0 < took_s < STARTUP_MOST_S:
                    self._startups.append(took_s)
        self._ready = {copy.uid for copy in copies}

    def _tell(self, ctx: Context, lies: Mapping[str, tuple[str, ...]]) -> None:
        """Say once what a node says that cannot be."""
        for name, figures in lies.items():
            if (name, figures) not in self._lied and len(self._lied) < 1000:
                self._lied.add((name, figures))
                text = f"what it says it measured cannot be ({', '.join(figures)}); it is not relied on meanwhile"
                _log.warning("node %s: %s", name, text)
                ctx.event(ctx.nodes[name], "Lies", text, warning=True)

    def _show(self, ctx: Context, reports: Mapping[str, NodeReport]) -> None:
        at_ms, stats = ctx.measured
        before_ms, before = self._counted
        if at_ms != before_ms:
            self._counted = at_ms, stats
        elapsed_s = (at_ms - before_ms) / 1000
        endpoints = {}
        for key, item in stats.items():
            known = before.get(key) if before_ms >= 0 else None
            grown = 0 if known is None else max(0, item.requests - known.requests)
            earlier = self.shown.endpoints.get(key)
            same = 0.0 if earlier is None else earlier[1]
            endpoints[key] = (item, grown / elapsed_s if elapsed_s > 0 else same)
        self.shown = Shown(
            measured_ms=ctx.now_ms,
            loads=self.loads,
            reports=reports,
            endpoints=endpoints,
            startup_s=self.startup_s,
        )

    def _restore(self) -> None:
        """Take up what the last leader had measured; what cannot be read is left, with one warning."""
        if self._file is None or not self._file.exists():
            return
        try:
            found = memo.read(self._file)
            age_ms = max(0, self._clock.now_ms() - found.newest_ms)  # a clock that was set back: as if just now
            newest_ms = self._clock.elapsed_ms() - age_ms
            nodes, copies = (Ring.restore(found.rings[name], newest_ms) for name in ("nodes", "work"))
            startups = [float(value) for value in found.about.get("startups_s", ())]
        except (LeptonError, OSError, KeyError, TypeError, ValueError) as error:
            _log.warning("%s is not used, what was measured before is forgotten: %s", self._file, error)
            return
        for mine, theirs in ((self.nodes, nodes), (self.work, copies)):
            if (mine.fields, mine.length, mine.spacing_ms) != (theirs.fields, theirs.length, theirs.spacing_ms):
                _log.info("%s was written with other settings and is not used", self._file)
                return
        self.nodes, self.work = nodes, copies
        self._startups.extend(value for value in startups[-STARTUPS:] if 0 < value < STARTUP_MOST_S)
        learned = found.about.get("forecaster")
        self._learned = learned if isinstance(learned, dict) else {}


def recent(history: NDArray[np.float64]) -> NDArray[np.float64]:
    """The middle one of the known last samples, the larger of two: one sample alone decides nothing."""
    ordered = np.sort(history, axis=2)  # NaN last
    count = (~np.isnan(history)).sum(axis=2)
    value: NDArray[np.float64] = np.take_along_axis(ordered, (count // 2)[:, :, None], axis=2)[:, :, 0]
    return np.where(count > 0, value, np.nan)


def _reserved(ctx: Context, names: tuple[str, ...]) -> NDArray[np.float64]:
    """(nodes, resources): what is promised to work of cpu, memory and gpu; NaN for what nobody reserves."""
    found = np.full((len(names), len(RESOURCES)), np.nan)
    for row, name in enumerate(names):
        used, has = ctx.reserved.get(name, (0, 0, 0)), ctx.capacity(ctx.nodes[name])
        for column, amount, whole in ((0, used[0], has.cpu_milli), (1, used[1], has.memory_mib)):
            found[row, column] = amount / whole if whole else math.nan
        if has.accelerator_milli:
            found[row, 3] = used[2] / has.accelerator_milli
    return found
