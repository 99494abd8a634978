"""Envoy's histograms of how long upstreams took -> quantiles of the last moments, for each deployment.

Envoy's own "interval" is whatever passed since its last flush; here every reading adds what its counters grew by, and
what is older counts half as much every 10 s. Between the bounds of two buckets values are taken as evenly spread.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

HALF_MS = 10_000
_BUCKET = re.compile(r"B([0-9.]+)\((\d+),(\d+)\)")

Buckets = dict[float, int]


def read(text: str) -> Buckets:
    """Upper bound in ms -> how many were below it since the start; empty for anything else."""
    return {float(bound): int(count) for bound, _, count in _BUCKET.findall(text)}


class Latency:
    """What one deployment's answers took. Times are UTC milliseconds; a clock that is set back ages nothing."""

    def __init__(self) -> None:
        self._counts: dict[float, float] = {}
        self._total = 0.0
        self._ms = 0

    def age(self, now_ms: int) -> None:
        """Time has passed."""
        if now_ms > self._ms:
            fade = 0.5 ** ((now_ms - self._ms) / HALF_MS) if self._ms else 1.0
            self._counts = {bound: count * fade for bound, count in self._counts.items()}
            self._total *= fade
            self._ms = now_ms

    def add(self, before: Buckets, after: Buckets) -> None:
        """The counters of one Envoy grew from `before` (which began anew when it is larger) to `after`."""
        if not after:
            return
        last = max(after)
        began = any(after.get(bound, 0) < count for bound, count in before.items() if bound in after)
        for bound, count in after.items():
            grown = count if began else count - before.get(bound, 0)
            self._counts[bound] = self._counts.get(bound, 0.0) + grown
        self._total += after[last] if began else after[last] - before.get(last, 0)

    def quantiles_ms(self, shares: Sequence[float]) -> list[float] | None:
        """The quantiles, in milliseconds; None when nobody was answered lately (less than half an answer counts)."""
        if self._total < 0.5:
            return None
        bounds = sorted(self._counts)
        return [self._quantile(bounds, share * self._total) for share in shares]

    def _quantile(self, bounds: Sequence[float], rank: float) -> float:
        low, under = 0.0, 0.0
        for bound in bounds:
            count = self._counts[bound]
            if count >= rank:
                inside = (rank - under) / (count - under) if count > under else 1.0
                found = low + (bound - low) * min(1.0, max(0.0, inside))
                return found if math.isfinite(found) else low
            low, under = bound, count
        return low
