"""What each replica of one deployment can do, in requests a second, from what gateways count. Remembers; no clock.

Answers per second that requests were in flight there, of the last moments: the inverse of the mean latency. A replica
that answers all it has at once looks the same whatever it has; one that works on one request at a time looks slower
the more waits, never faster: so what follows from it calms itself. The gateway's own picker (`gateway/picker.c`) looks
at every request, and comes nearer to the truth; from here it gets what to expect of each.

A replica that was not asked lately is expected to be as the others: so it is tried again, and its recovery noticed.
An error counts as a mean request's time without an answer: failing fast is not taken for being fast.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

PRIOR = 3.0
"""What is expected of a replica weighs as much as so many measured requests."""
MEMORY = 50.0
"""Requests' time that is remembered, between the two bounds below."""
MEMORY_S_LEAST, MEMORY_S_MOST = 10.0, 60.0
DOUBT = 2.0
"""Standard errors by which a replica must differ from the others to be told from them."""
GAP_S_MOST = 10.0
"""Of a longer silence nothing is known but its end."""


class Seen(NamedTuple):
    """Of one replica: answers and failures since it was made (they only grow), and requests in flight now."""

    answered: float
    failed: float
    in_flight: float


@dataclass(slots=True)
class _Known:
    """The last sample and the fading sums of one replica."""

    answered: float
    failed: float
    active: float
    flight: float = 0.0
    met: float = 0.0
    answers: float = 0.0
    busy_s: float = 0.0


class Capacity:
    """The replicas of one deployment. `observe` when they were measured, `estimate` when it is asked."""

    def __init__(self) -> None:
        self._known: dict[str, _Known] = {}
        self._at_ms = -1
        self._mean_s = 0.0

    def observe(self, at_ms: int, seen: Mapping[str, Seen]) -> None:
        """What was counted until `at_ms` (elapsed). Figures that are no amounts are passed over; counters that went
        back began anew."""
        passed_s = (at_ms - self._at_ms) / 1000 if self._at_ms >= 0 else 0.0
        if passed_s < 0 or passed_s > GAP_S_MOST:  # the clock went back, or nobody looked: begin here
            passed_s = 0.0
        self._at_ms = at_ms
        memory_s = min(max(MEMORY * self._mean_s, MEMORY_S_LEAST), MEMORY_S_MOST)
        kept = math.exp(-passed_s / memory_s)
        for name in [name for name in self._known if name not in seen]:
            del self._known[name]
        for name, sample in seen.items():
            if not all(math.isfinite(value) and value >= 0 for value in sample):
                continue
            one = self._known.get(name)
            if one is None or passed_s == 0.0:
                self._known[name] = _Known(*sample)
                if one is not None:  # only the counters are taken anew
                    self._known[name] = replace(
                        one, answered=sample.answered, failed=sample.failed, active=sample.in_flight
                    )
                continue
            answers = _grown(sample.answered, one.answered)
            errors = _grown(sample.failed, one.failed)
            busy_s = 0.5 * (one.active + sample.in_flight) * passed_s
            one.answered, one.failed, one.active = sample
            one.flight += (1 - kept) * (sample.in_flight - one.flight)
            one.met = one.met * kept + sample.in_flight
            one.answers = one.answers * kept + answers
            one.busy_s = one.busy_s * kept + busy_s * 0.5 * (1 + kept) + errors * self._mean_s
        answers = sum(one.answers for one in self._known.values())
        busy_s = sum(one.busy_s for one in self._known.values())
        self._mean_s = busy_s / answers if answers > 0 and busy_s > 0 else 0.0

    def estimate(self, doubt: float = DOUBT) -> dict[str, float]:
        """Requests a second of every replica; empty while nothing is known of any.

        As near to the typical as chance could explain: `doubt` standard errors, of few answers and of few requests met
        in flight, of which only moments are seen.
        """
        if self._mean_s <= 0:
            return {}
        likely = {
            name: (one.answers + PRIOR) / (one.busy_s + PRIOR * self._mean_s) for name, one in self._known.items()
        }
        typical, found = statistics.median(likely.values()), {}
        for name, value in likely.items():
            one = self._known[name]
            off = 1 + doubt * math.sqrt(1 / (one.answers + PRIOR) + 1 / (one.met + 1))
            found[name] = min(typical, value * off) if value < typical else max(typical, value / off)
        return found

    def ahead(self) -> float:
        """Requests that a new one finds in flight at a replica of the faster half."""
        able = self.estimate()
        if not able:
            return 0.0
        middle = statistics.median(able.values())
        return statistics.fmean(self._known[name].flight for name, value in able.items() if value >= middle)


def _grown(now: float, before: float) -> float:
    return now - before if now >= before else now
