"""What it costs to place a request on a node: room that becomes useless, then how much is left over.

    cost = worth lost + accelerators stranded + 20 x what stays free              (thousandths of an accelerator)

- *worth lost*: what the rest of the accelerator it shares loses in worth to the mix of requests (see `worth`);
- *stranded*: free accelerators that the processors and memory left on the node could not feed any more, at what the
  mix needs per accelerator on average: max(0, accelerators - min(cpu / cpu per one, memory / memory per one));
- *what stays free*: best fit (Johnson 1973), as a mean over processors, memory and accelerators, each relative to
  the largest node: it decides between nodes that are equally good otherwise, and everything where there are none.

The first two replace the fragmentation gradient of FGD (Weng et al., Beware of Fragmentation, USENIX ATC 2023),
which counts for each kind of request what it could not use of a node: they look at what fits together instead.
Where a node's load to plan for would pass its limit it costs more than anywhere else, and the more the fuller it is.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

REST = 20.0
"""Weight of what stays free: less than 2 % of an accelerator from an empty node to a full one."""
OVER, OVER_PLANNED = 1e12, 1e10
"""Added above the limit, and for each share of planned load there: more than any other cost can be."""
SPREAD = 1e6
"""Added for each replica of a spread group that stands there: they stand as evenly as the cell allows."""
LENT = 1e10
"""Added on nodes outside the reservation that is named, twice that on those of another one."""

Array = NDArray[np.float64]


class Rooms(NamedTuple):
    """Nodes, one row each: free amounts (accelerators in thousandths), and what else the cost needs of them.

    `stranded` is that of the node as it is; `cuts` has a column for each way to take accelerators and says the worth
    lost by it, infinite where it cannot be. `cpu_all` and `memory_all` are capacities (0: no such limit is looked at).
    """

    cpu: Array
    memory: Array
    accelerators: Array
    stranded: Array
    cuts: Array
    cpu_all: Array
    memory_all: Array
    planned: Array
    limits: Array


class Kinds(NamedTuple):
    """Kinds of request, one entry each; `cut` is the column of :class:`Rooms` `cuts`."""

    cpu: Array
    memory: Array
    accelerators: Array
    cut: NDArray[np.int64]


class Weights(NamedTuple):
    """`feed_cpu`: thousandths of an accelerator that one thousandth of a core feeds; `feed_memory`: that one MiB feeds.

    `rest_*`: cost of one free unit.
    """

    feed_cpu: float
    feed_memory: float
    rest_cpu: float
    rest_memory: float
    rest_accelerators: float


def score(rooms: Rooms, kinds: Kinds, weights: Weights, *, limited: bool) -> Array:
    """The cost of each kind (column) on each node (row), infinite where there is no room. Lower is better.

    Args:
        limited: whether any node has planned load; if not, that part is spared.
    """
    cpu = rooms.cpu[:, None] - kinds.cpu
    memory = rooms.memory[:, None] - kinds.memory
    left = rooms.accelerators[:, None] - kinds.accelerators
    cost: Array = left - np.minimum(cpu * weights.feed_cpu, memory * weights.feed_memory)
    np.maximum(cost, 0.0, out=cost)
    cost -= rooms.stranded[:, None]
    cost += rooms.cuts[:, kinds.cut]
    cost += cpu * weights.rest_cpu + memory * weights.rest_memory + left * weights.rest_accelerators
    if limited:
        share = np.maximum(kinds.cpu / rooms.cpu_all[:, None], kinds.memory / rooms.memory_all[:, None])
        planned = rooms.planned[:, None]
        cost += np.where(planned + share > rooms.limits[:, None], OVER + OVER_PLANNED * planned, 0.0)
    cost[np.minimum(cpu, memory) < 0] = np.inf
    return cost


def stranded(cpu: Array, memory: Array, accelerators: Array, weights: Weights) -> Array:
    """Of each node: thousandths of accelerators that its free processors and memory cannot feed."""
    fed = np.minimum(cpu * weights.feed_cpu, memory * weights.feed_memory)
    found: Array = np.maximum(accelerators - fed, 0.0)
    return found
