"""Which share of a deployment's requests each replica should get, from what it can do. Pure.

Two answers for one question, because pickers differ in what they can use. `weight` is the replica's capacity beside
its peers': what a picker that weighs load against capacity starts from. `spare` is for a picker that only compares
requests in flight: a replica much slower than its peers takes requests only when the others cannot carry the load.

Nothing flaps: shares change as one set, and only when some replica's has changed enough. Replicas that are alike get
equal weights.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from typing import NamedTuple

TYPICAL = 100
"""The weight of a replica that can do what the median of them can."""
WEIGHT_LEAST, WEIGHT_MOST = 5, 400
"""No replica is out of sight, and none drowns the others."""
ALIKE = 1.25
"""Capacities within this factor of the typical one are taken for equal."""
CHANGED = 1.25
"""A weight that changed by less than this factor is no reason to write."""
BACK = 1.25
"""A spare replica is one no longer when it could do so many times what would make it one."""
SLOW_MOST = 0.75
"""No replica that can do more than this share of the typical capacity is a spare one."""


class Share(NamedTuple):
    """Of one replica. `weight`: beside :data:`TYPICAL`; `spare`: only asked when the others cannot carry the load."""

    weight: int = TYPICAL
    spare: bool = False


def route(
    capacity: Mapping[str, float],
    ahead: float = 0.0,
    before: Mapping[str, Share] | None = None,
    *,
    crowded: Mapping[str, float] | None = None,
) -> dict[str, Share]:
    """The share of every replica in `capacity`.

    Args:
        capacity: requests a second of each (measured, or forecast); what is no positive number counts as typical.
        ahead: requests that a new one finds in flight at a typical replica.
        before: the shares until now. They are returned as they are while nothing has changed enough.
        crowded: replicas on overloaded nodes, and what was measured of them: they get that at most, without the
            benefit of the doubt that there is in `capacity`.
    """
    known = dict(before or {})
    able = {name: value for name, value in capacity.items() if math.isfinite(value) and value > 0}
    if not able:
        return {name: Share() for name in capacity}
    typical = statistics.median(able.values())
    spare = _spares({name: able.get(name, typical) for name in capacity}, typical, ahead, known)
    wanted = {}
    for name in capacity:
        value, bound = able.get(name, typical), (crowded or {}).get(name, math.inf)
        weight = _weight(min(value, bound if bound > 0 else value) / typical)
        wanted[name] = Share(weight, name in spare)
    same = wanted.keys() == known.keys() and not any(_changed(known[name], wanted[name]) for name in wanted)
    return known if same else wanted


def _weight(share: float) -> int:
    if 1 / ALIKE < share < ALIKE:
        return TYPICAL
    return max(WEIGHT_LEAST, min(WEIGHT_MOST, round(TYPICAL * share)))


def _spares(able: Mapping[str, float], typical: float, ahead: float, known: Mapping[str, Share]) -> set[str]:
    """Those where a request takes longer, though nothing is ahead of it, than at a typical one behind `ahead` others.

    So the more there is to do, the fewer are spare. A typical replica never is, so they are never all.
    """
    line = math.isfinite(ahead) and ahead > 0
    bound = min(SLOW_MOST, 1 / (1 + (ahead if line else 0.0))) * typical
    found = set()
    for name, value in able.items():
        if value < bound * (BACK if known.get(name, Share()).spare else 1.0) and value < typical:
            found.add(name)
    return found


def _changed(before: Share, after: Share) -> bool:
    if before.spare != after.spare:
        return True
    low, high = sorted((before.weight, after.weight))
    return high > low * CHANGED
