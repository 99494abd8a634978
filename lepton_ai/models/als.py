"""Implicit ALS: matrix factorisation of who rated what (Hu, Koren, Volinsky, ICDM 2008; weights and frequency-scaled
regularisation as in Rendle et al., "Revisiting the Performance of iALS", RecSys 2022).

Owns the fit for catalogues too large for EASE^R: memory grows with users + items, not with items².
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lepton_ai.models.grid import snap

SOLVE_ROWS = 512


def als(
    indptr: NDArray[np.int64],
    indices: NDArray[np.int32],
    items: int,
    *,
    factors: int = 64,
    iterations: int = 16,
    unobserved: float = 0.1,
    l2: float = 0.02,
    seed: int = 42,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(user factors, item factors), rounded to grids on which each user · item is exact in single precision.

    Deterministic for one build of numpy and its BLAS on one kind of processor; another BLAS may differ in the last
    bits before rounding. Scores of the fitted factors do not depend on BLAS, batch size or thread count.
    """
    users = len(indptr) - 1
    rng = np.random.default_rng(seed)
    rows = np.repeat(np.arange(users, dtype=np.int32), np.diff(indptr))
    order = np.argsort(indices, kind="stable")
    item_indptr = np.concatenate([[0], np.cumsum(np.bincount(indices, minlength=items))]).astype(np.int64)
    item_indices = rows[order]
    scale = 0.1 / np.sqrt(factors)
    left = rng.normal(0, scale, (users, factors))
    right = rng.normal(0, scale, (items, factors))
    for _ in range(iterations):
        left = _solve(indptr, indices, right, unobserved, l2)
        right = _solve(item_indptr, item_indices, left, unobserved, l2)
    return _grids(left.astype(np.float32), right.astype(np.float32))


def _solve(
    indptr: NDArray[np.int64], indices: NDArray[np.int32], other: NDArray[np.float64], unobserved: float, l2: float
) -> NDArray[np.float64]:
    rows, factors = len(indptr) - 1, other.shape[1]
    out = np.zeros((rows, factors))
    base = unobserved * (other.T @ other)
    eye = np.eye(factors)
    for start in range(0, rows, SOLVE_ROWS):
        stop = min(start + SOLVE_ROWS, rows)
        left = np.empty((stop - start, factors, factors))
        right = np.zeros((stop - start, factors))
        for row in range(start, stop):
            chosen = other[indices[indptr[row] : indptr[row + 1]]]
            weight = l2 * (len(chosen) + unobserved * len(other))
            left[row - start] = base + chosen.T @ chosen + weight * eye
            right[row - start] = chosen.sum(axis=0)
        out[start:stop] = np.linalg.solve(left, right[:, :, None])[:, :, 0]
    return out


def _grids(left: NDArray[np.float32], right: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Both sides on grids of about 11 bits. |x·y| ≤ |x||y| bounds every partial sum of a dot product."""
    bounds = [float(np.sqrt((side.astype(np.float64) ** 2).sum(axis=1)).max(initial=0.0)) for side in (left, right)]
    return snap(left, bounds[0], 12), snap(right, bounds[1], 12)
