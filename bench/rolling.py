"""Rolling-origin evaluation of forecasts, as a live cell runs them: forecast, time passes, learn what came true.

Not a measurement itself. From the 48th sample on, at every step, what each method says of 1, 5 and 15 steps ahead is
compared with what came. WAPE = sum of |error| over sum of what came; P90 pinball = the mean of the pinball loss of the
upper quantile over the mean of what came; both of a data set. Series of one file in one unit are added up as they are;
series of different units (one file each) are divided by their own mean first. Sums are kept in blocks of 48 steps of a
series, which the bootstrap draws.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import traces
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from lepton_ai.scheduler import learn
from lepton_ai.scheduler.forecast import HISTORY, Forecaster
from lepton_ai.scheduler.naive import among

Array = NDArray[np.float64]
Said = list[tuple[Array, Array]]
"""Of each row: what was said at each origin, (origins, horizons): medians and upper quantiles."""

HORIZONS = (1, 5, 15)
FAR = max(HORIZONS)
QUANTILE = 0.9
BLOCK = 48
BINS = 12
DAY_S = 86_400.0


@dataclass(frozen=True, slots=True)
class Row:
    """One series of a data set: its samples, what errors are divided by, its step, the file it is from."""

    values: Array
    level: float
    step_s: float = 0.0
    name: str = ""


@dataclass(frozen=True, slots=True)
class Losses:
    """Sums over blocks (blocks, horizons): |error|, pinball, outcomes not above the upper figure, outcomes, what came.
    `covered`, `counted`: (BINS,) the same over the time of the data set, all horizons."""

    error: Array
    pinball: Array
    under: Array
    count: Array
    came: Array
    covered: Array
    counted: Array

    def wape(self) -> Array:
        return self.error.sum(axis=0) / self.came.sum(axis=0)

    def loss(self) -> Array:
        return self.pinball.sum(axis=0) / self.came.sum(axis=0)

    def coverage(self) -> Array:
        return self.under.sum(axis=0) / self.count.sum(axis=0)


def rows(paths: Sequence[Path]) -> dict[str, list[Row]]:
    """The series in files of the documented columns, by data set."""
    held: dict[str, list[traces.Series]] = {}
    for path in traces.files(paths):
        for found in traces.series(path):
            held.setdefault(found.data, []).append(found)
    return {data: _rows(found) for data, found in held.items()}


def _rows(found: Sequence[traces.Series]) -> list[Row]:
    """Machines of one source share a unit and a level; anything else is divided by its own mean."""
    shared = [item.values for item in found if len(item.values) > 1]
    together = float(np.nanmean(np.concatenate([values.ravel() for values in shared]))) if shared else 0.0
    made = []
    for item in found:
        for measured in item.values:
            values = np.where(measured >= 0.0, measured, np.nan)  # no load is below nothing
            if not np.isfinite(values).any():
                continue
            level = together if len(item.values) > 1 else float(np.nanmean(values))
            if origins(values) and level > 0.0:
                made.append(Row(values, level, item.step_s, item.name))
    return made


def losses(rows: Sequence[Row], said: Said) -> Losses:
    """What `said` lost on `rows`; outcomes that were not measured do not count."""
    sums: list[list[Array]] = [[] for _ in range(5)]
    covered, counted = np.zeros(BINS), np.zeros(BINS)
    for row, (median, upper) in zip(rows, said, strict=True):
        came = outcomes(row.values)
        known = np.isfinite(came)
        off = came - upper
        pinball = np.maximum(QUANTILE * off, (QUANTILE - 1.0) * off)
        under = known & (came <= upper)
        parts = (np.abs(came - median) / row.level, pinball / row.level, under, known, came / row.level)
        cuts = np.arange(0, len(came), BLOCK)
        for held, part in zip(sums, parts, strict=True):
            held.append(np.add.reduceat(np.where(known, part, 0.0), cuts, axis=0))
        bins = np.arange(len(came)) * BINS // len(came)
        covered += np.bincount(bins, under.sum(axis=1), BINS)
        counted += np.bincount(bins, known.sum(axis=1), BINS)
    return Losses(*(np.concatenate(held) for held in sums), covered, counted)


def origins(values: Array) -> int:
    """How many steps of a series can be judged."""
    return max(0, len(values) - HISTORY - FAR + 1)


def outcomes(values: Array) -> Array:
    """(origins, horizons): what came."""
    count = origins(values)
    return np.stack([values[HISTORY - 1 + step :][:count] for step in HORIZONS], axis=1)


def windows(values: Array) -> Array:
    return sliding_window_view(values, HISTORY)[: origins(values)]


def plain(forecaster: Forecaster) -> Callable[[Sequence[Row]], Said]:
    """The forecaster without a memory: every window by itself."""

    def say(rows: Sequence[Row]) -> Said:
        found = []
        for row in rows:
            ahead = forecaster.forecast(windows(row.values))
            found.append((ahead.median, ahead.upper))
        return found

    return say


def live(make: Callable[[], Forecaster]) -> Callable[[Sequence[Row]], Said]:
    """As a cell runs it: all rows together, step by step, each outcome observed before the next forecast."""

    def say(rows: Sequence[Row]) -> Said:
        forecaster = make()
        lengths = np.array([origins(row.values) for row in rows])
        found = [(np.empty((count, len(HORIZONS))), np.empty((count, len(HORIZONS)))) for count in lengths]
        keys = [str(number) for number in range(len(rows))]
        for at in range(int(lengths.max(initial=0))):
            still = np.flatnonzero(lengths > at)
            history = np.stack([rows[index].values[at : at + HISTORY] for index in still])
            names = [keys[index] for index in still]
            forecaster.observe(history[:, -1], names)
            ahead = forecaster.forecast(history, names)
            for place, index in enumerate(still):
                found[index][0][at], found[index][1][at] = ahead.median[place], ahead.upper[place]
        return found

    return say


def _around(values: Array, points: Array) -> tuple[Array, Array]:
    """An upper figure for a rule that gives none: its point and the quantile of its last 48 errors at that horizon.

    `points`: (samples, horizons), what the rule says at each sample, known from the first sample on.
    """
    count = origins(values)
    uppers = np.empty((count, len(HORIZONS)))
    for column, step in enumerate(HORIZONS):
        errors = np.full(len(values), np.nan)
        errors[step:] = values[step:] - points[:-step, column]
        held = sliding_window_view(errors, HISTORY)[:count]
        known = np.isfinite(held).sum(axis=1)
        uppers[:, column] = among(np.sort(held, axis=1), known, QUANTILE)
    medians = points[HISTORY - 1 :][:count]
    return medians, np.maximum(medians, medians + uppers)


def _carried(values: Array) -> Array:
    """Missing samples take the last value known before them."""
    place = np.maximum.accumulate(np.where(np.isfinite(values), np.arange(len(values)), 0))
    return np.nan_to_num(values[place])


def last(rows: Sequence[Row]) -> Said:
    """What is now is what comes."""
    return [_around(row.values, np.repeat(_carried(row.values)[:, None], len(HORIZONS), axis=1)) for row in rows]


def smoothed(keep: float) -> Callable[[Sequence[Row]], Said]:
    """Exponentially weighted mean."""

    def say(rows: Sequence[Row]) -> Said:
        found = []
        for row in rows:
            values = _carried(row.values)
            mean, points = values[0], np.empty(len(values))
            for at, value in enumerate(values):
                mean = keep * mean + (1.0 - keep) * value
                points[at] = mean
            found.append(_around(row.values, np.repeat(points[:, None], len(HORIZONS), axis=1)))
        return found

    return say


def yesterday(rows: Sequence[Row]) -> Said | None:
    """What was a day ago at that time; None where the data are not longer than two days."""
    if any(row.step_s <= 0.0 or len(row.values) * row.step_s < 2.0 * DAY_S for row in rows):
        return None
    found = []
    for row in rows:
        values = _carried(row.values)
        day = round(DAY_S / row.step_s)
        points = np.stack([values[np.maximum(np.arange(len(values)) + step - day, 0)] for step in HORIZONS], axis=1)
        found.append(_around(row.values, points))
    return found


def gains(ours: Sequence[Losses], base: Sequence[Losses], draws: int, seed: int) -> tuple[Array, Array]:
    """The share by which WAPE and pinball fell, mean of horizons and of data sets, and the bootstrap's 95 % interval.

    Each draw takes as many blocks as there are, with replacement, within each data set. Returns (2,) and (2, 2).
    """
    random = np.random.default_rng(seed)
    mean = np.mean([gain(one, two) for one, two in zip(ours, base, strict=True)], axis=0)
    drawn = np.empty((draws, len(ours), 2))
    for index, (one, two) in enumerate(zip(ours, base, strict=True)):
        count = len(one.error)
        held = np.concatenate([one.error, one.pinball, two.error, two.pinball], axis=1)
        for draw in range(draws):
            took = np.bincount(random.integers(0, count, count), minlength=count)
            sums = (took @ held).reshape(4, -1)
            with np.errstate(all="ignore"):
                drawn[draw, index] = 1.0 - (sums[0] / sums[2]).mean(), 1.0 - (sums[1] / sums[3]).mean()
    return mean, np.nanquantile(drawn.mean(axis=1), (0.025, 0.975), axis=0).T


def gain(ours: Losses, base: Losses) -> Array:
    """(2,): the share by which WAPE and pinball fell on one data set, mean of horizons."""
    return np.array([(1.0 - ours.wape() / base.wape()).mean(), (1.0 - ours.loss() / base.loss()).mean()])


def adapting(rows: Sequence[Row], model: bytes) -> dict[str, object]:
    """`model` adapted to the first half of the rows' time, against itself on the second half, which it did not see."""
    halves = [len(row.values) // 2 for row in rows]
    before = [row.values[:half] for row, half in zip(rows, halves, strict=True)]
    started_s = time.thread_time()
    new = learn.adapt(model, before)
    found: dict[str, object] = {"used": new.used, "adapt_cpu_s": round(time.thread_time() - started_s, 3)}
    after = [Row(row.values[half - HISTORY :], row.level) for row, half in zip(rows, halves, strict=True)]
    after = [row for row in after if origins(row.values)]
    if new.used and after:
        old, ours = (losses(after, plain(Forecaster(model=which))(after)) for which in (model, new.model))
        wape, pinball = 100.0 * gain(ours, old)
        found |= {"wape_gain_over_old": round(float(wape), 2), "pinball_gain_over_old": round(float(pinball), 2)}
    return found
