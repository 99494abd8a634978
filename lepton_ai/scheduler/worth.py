"""What the free rest of an accelerator is still worth to the requests that come: the values of cutting stock.

Shares of accelerators are cut from whole ones as paper is cut from rolls: which sets of sizes share one accelerator,
and how often, so that the fewest are used, is the linear programme of Gilmore and Gomory (A linear programming
approach to the cutting-stock problem, Operations Research 1961). Its dual values say what a request of each size is
worth, in whole accelerators: 810 thousandths beside which nothing fits are worth a whole one, two of 470 half of one
each. A rest is worth the most valuable set that still fits into it, so placing costs what the rest loses.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from lepton_ai.scheduler.snapshot import DEVICE_MILLI

GRID_MILLI = 10
"""Sizes are rounded up to it and rests down, so that no set is counted on that does not fit."""
LEVELS = DEVICE_MILLI // GRID_MILLI
_ROUNDS_MOST = 500
_EXACT = 1e-9


def worth(rates: Mapping[int, float]) -> NDArray[np.float64]:
    """Worth of a rest of 0..1000 thousandths (1001 values within 0..1, never falling), a whole accelerator being 1.

    Args:
        rates: how often each size (thousandths below 1000) is asked for; only the proportions matter.
    """
    total = sum(rate for rate in rates.values() if rate > 0)
    merged: dict[int, float] = {}
    for milli, rate in rates.items():
        if 0 < milli < DEVICE_MILLI and rate > 0:
            size = -(-milli // GRID_MILLI)
            merged[size] = merged.get(size, 0.0) + rate / total
    # Rounded: what is the same in all but its last digits has the same values.
    return _worth(tuple((size, round(rate, 9)) for size, rate in sorted(merged.items())))


@lru_cache(maxsize=16)
def _worth(rates: tuple[tuple[int, float], ...]) -> NDArray[np.float64]:
    sizes = [size for size, _ in rates]
    value, _ = _best(sizes, _duals(sizes, [rate for _, rate in rates]))
    most = max(1.0, value[LEVELS])
    levels = np.array(value) / most
    levels[LEVELS] = 1.0
    found = levels[np.arange(DEVICE_MILLI + 1) // GRID_MILLI]
    found.setflags(write=False)
    return found


def _duals(sizes: list[int], rates: list[float]) -> list[float]:
    """The dual values, by generating patterns: the simplex method, where the next pattern is a knapsack's best one."""
    count = len(sizes)
    if not count:
        return []
    patterns = np.diag([float(LEVELS // size) for size in sizes])
    costs = np.ones(count)
    # Never twice the same amount: equal ones can make the method go round in circles.
    wanted = np.array([max(rate, 1e-9) * (1 + 1e-6 * number) for number, rate in enumerate(rates)])
    duals: NDArray[np.float64] = np.zeros(count)
    for _ in range(_ROUNDS_MOST):
        duals = np.asarray(np.linalg.solve(patterns.T, costs), dtype=np.float64)
        column, cost = np.zeros(count), 1.0
        if duals.min() < -_EXACT:  # more than is wanted may be cut
            column[int(duals.argmin())], cost = -1.0, 0.0
        else:
            value, chosen = _best(sizes, duals.tolist())
            if value[LEVELS] <= 1 + _EXACT:
                break
            level = LEVELS
            while level > 0:
                item = chosen[level]
                level -= 1 if item < 0 else sizes[item]
                if item >= 0:
                    column[item] += 1
        step = np.linalg.solve(patterns, column)
        have = np.linalg.solve(patterns, wanted)
        ratio = np.divide(have, step, out=np.full(count, np.inf), where=step > _EXACT)
        leaves = int(ratio.argmin())
        if not np.isfinite(ratio[leaves]):
            break
        patterns[:, leaves], costs[leaves] = column, cost
    return [max(0.0, dual) for dual in duals.tolist()]


def _best(sizes: list[int], duals: list[float]) -> tuple[list[float], list[int]]:
    """The most valuable set of items in a rest of each level, and the item that is put in last (-1: none)."""
    items = [(size, dual, number) for number, (size, dual) in enumerate(zip(sizes, duals, strict=True)) if dual > 0]
    value, chosen = [0.0] * (LEVELS + 1), [-1] * (LEVELS + 1)
    for level in range(1, LEVELS + 1):
        best, item = value[level - 1], -1
        for size, dual, number in items:
            if size > level:
                break
            if value[level - size] + dual > best + 1e-12:
                best, item = value[level - size] + dual, number
        value[level], chosen[level] = best, item
    return value, chosen
