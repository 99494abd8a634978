"""The load to plan for: s = w * u for every node, and which nodes are idle, normal or overloaded.

Owns the formula s_i = w_i * u_i. u is measured utilisation, w the factor by which it will have grown at the upper
quantile of the forecast over the horizon that matters, so s is the load to plan for. Both are taken for each resource
and the node's value is that of the resource with the largest s. It measures and forecasts nothing itself.

Why u is floored at 1 %: w is a quotient, and of an idle node it would be anything. Where w = 1: nothing is forecast
(no forecast yet, a resource without one, a figure that is no number), or the node was not measured lately.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lepton_ai.errors import Invalid

FLOOR = 0.01
"""The smallest utilisation that is reckoned with, as a share of capacity."""
GROWN_LEAST = 0.5
"""The smallest w: a forecast of quiet never argues away more than half of what is measured."""
SHARE_MOST = 4.0
"""No share is taken for larger, measured or forecast: beyond, a figure says nothing more than "far too much"."""
BAND = 0.05
"""A node leaves a mark when s has come so far back over the bound, so that marks do not flap."""
RESOURCES = ("cpu", "memory")

Mark = Literal["idle", "normal", "overloaded"]


class Part(NamedTuple):
    """u, w and s of one resource of one node."""

    resource: str
    u: float
    w: float
    s: float


@dataclass(frozen=True, slots=True)
class Load:
    """What one node carries. All but `w` are shares of its capacity.

    `u` is measured utilisation of the resource named by `resource`, floored at :data:`FLOOR`; `w` the factor by which
    it will have grown (1 where nothing is known); `s` = w * u is the load to plan for. `network`: the network's part
    of the forecast was used, not only the robust-naive one. `stale`: not measured lately; then w = 1, u is what was
    last known or, if larger, what is reserved, the mark is "normal", and the node is neither a source nor a destination
    of moves. `parts` has every measured resource, `resource` first.
    """

    name: str
    u: float
    w: float
    s: float
    limit: float
    mark: Mark
    resource: str
    network: bool
    stale: bool
    parts: tuple[Part, ...] = ()


def load(
    names: Sequence[str],
    used: ArrayLike,
    upper: ArrayLike,
    *,
    limit: float = 0.85,
    idle: float = 0.3,
    resources: Sequence[str] = RESOURCES,
    network: ArrayLike = False,
    stale: Collection[str] = (),
    reserved: ArrayLike | None = None,
    before: Mapping[str, Mark] | None = None,
) -> tuple[Load, ...]:
    """The load of every node, in the order of `names`.

    Args:
        used: (nodes, resources) shares of capacity as measured; NaN: not measured.
        upper: the same, at the upper quantile of the forecast; NaN: nothing is known, so w = 1.
        limit: above it a node is overloaded.
        idle: below it a node is idle.
        resources: the names of the columns.
        network: (nodes, resources) or one value: whether the network had a part in `upper`.
        stale: nodes that were not measured lately; `used` is then what was last known. A node of which nothing at
            all is known is stale by itself.
        reserved: (nodes, resources) shares that are promised to work; counts for stale nodes only.
        before: the marks of last time, for hysteresis.

    Raises Invalid when the shapes or the bounds do not fit together.
    """
    shape = (len(names), len(resources))
    if idle < 0 or idle + BAND > limit - BAND:
        raise Invalid(f"idle {idle:g} and limit {limit:g} leave no room between", hint="set idle below limit - 0.1")
    share, ahead = _shares(used, shape, "used"), _shares(upper, shape, "upper")
    unknown = np.isnan(share).all(axis=1)
    old = unknown | np.fromiter((name in stale for name in names), bool, len(names))
    if reserved is not None:
        promised = _shares(reserved, shape, "reserved")
        share = np.where(old[:, None], np.fmax(share, promised), share)
    u = np.maximum(share, FLOOR)  # NaN stays NaN
    w_known = ~np.isnan(ahead) & ~old[:, None]
    with np.errstate(invalid="ignore"):
        w = np.where(w_known, np.maximum(ahead / u, GROWN_LEAST), 1.0)
    s = w * u
    ranked = np.where(np.isnan(s), -1.0, s)
    order = np.argsort(-ranked, axis=1, kind="stable")
    learned = np.broadcast_to(np.asarray(network, dtype=bool), shape)
    marks = before or {}
    # Lists, because reading an array one by one takes ten times as long.
    figures = np.stack([u, w, s], axis=2).tolist()
    told, decided = old.tolist(), (w_known & learned).tolist()
    found = []
    for row, (name, ranking) in enumerate(zip(names, order.tolist(), strict=True)):
        each = figures[row]
        known = [column for column in ranking if each[column][2] >= 0.0]
        parts = tuple([Part(resources[column], *each[column]) for column in known])
        first = parts[0] if parts else Part(resources[0], FLOOR, 1.0, FLOOR)
        is_old = told[row]
        mark: Mark = "normal" if is_old else _mark(first.s, limit, idle, marks.get(name, "normal"))
        found.append(
            Load(
                name=name,
                u=first.u,
                w=first.w,
                s=first.s,
                limit=limit,
                mark=mark,
                resource=first.resource,
                network=bool(known) and decided[row][known[0]],
                stale=is_old,
                parts=parts,
            )
        )
    return tuple(found)


def _mark(s: float, limit: float, idle: float, before: Mark) -> Mark:
    """A node becomes overloaded above `limit` and stays so until it is :data:`BAND` below; idle likewise."""
    if s > limit or (before == "overloaded" and s > limit - BAND):
        return "overloaded"
    if s < idle or (before == "idle" and s < idle + BAND):
        return "idle"
    return "normal"


def _shares(values: ArrayLike, shape: tuple[int, int], what: str) -> NDArray[np.float64]:
    """As an array with NaN for whatever is no share: not finite, or negative."""
    found = np.array(values, dtype=np.float64)
    if found.size == 0 and 0 in shape:
        found = found.reshape(shape)
    if found.shape != shape:
        raise Invalid(f"{what} is {found.shape}, not (nodes, resources) = {shape}", hint="give one row a node")
    found[~np.isfinite(found) | (found < 0.0)] = np.nan
    return np.minimum(found, SHARE_MOST)
