"""Which ratings are held out: the protocol "per-user random", named so that figures can be compared.

Owns one function. Order of rows matters and is part of the protocol: the same rows in the same order, the same
fraction and the same seed give the same split everywhere.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lepton_ai.errors import Invalid


def split(users: NDArray[np.int64], holdout: float, seed: int) -> NDArray[np.bool_]:
    """For each row, whether it is held out: round(holdout × n) random rows of each user with n rows.

    Users (codes 0, 1, …) are visited in order, each one's rows in file order are permuted by one
    `numpy.random.default_rng(seed)` (PCG64), and the first ones are held out. Raises Invalid unless 0 ≤ holdout < 1.
    """
    if not 0 <= holdout < 1:
        raise Invalid(f"holdout = {holdout} is not a fraction", hint="use holdout=0.2, or 0 to train on all rows")
    held = np.zeros(len(users), dtype=np.bool_)
    if holdout == 0 or not len(users):
        return held
    rng = np.random.default_rng(seed)
    order = np.argsort(users, kind="stable")
    bounds = np.concatenate([[0], np.cumsum(np.bincount(users))])
    for start, end in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        count = end - start
        chosen = rng.permutation(count)[: min(round(count * holdout), count - 1) if count else 0]
        held[order[start + chosen]] = True
    return held
