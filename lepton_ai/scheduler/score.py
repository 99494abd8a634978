"""How good each feasible node is. Best fit: the fuller a node is afterwards, the better.

Packing leaves whole nodes free for large requests (best-fit bin packing, Johnson 1973). For a spread group the
number of its replicas on the node comes first, so that they stand as evenly as the cell allows.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lepton_ai.scheduler.snapshot import Request, Snapshot, amounts


def score(snapshot: Snapshot, request: Request) -> NDArray[np.float64]:
    """One figure a node, higher is better; only meaningful where `feasible` holds.

    Within 0..1 it is the mean share of the node that is used afterwards, over the resources that it has; each
    replica of a spread group that stands there already costs one.
    """
    wanted = np.array(amounts(request.resources), dtype=np.int64)
    has = snapshot.capacity > 0
    share = np.divide(snapshot.used + wanted, snapshot.capacity, out=np.zeros(has.shape), where=has)
    fullness: NDArray[np.float64] = np.clip(share, 0.0, 1.0).sum(axis=1) / np.maximum(1, has.sum(axis=1))
    if request.per_node is not None:
        beside = snapshot.groups.get(request.group, {})
        fullness -= np.array([beside.get(name, 0) for name in snapshot.names], dtype=np.float64)
    return fullness
