"""EASE^R: a linear item-to-item model in closed form (Steck, "Embarrassingly Shallow Autoencoders", WWW 2019).

Owns the fit; scores of a user are the sum of the weight rows of the items in the user's history.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lepton_ai.models.grid import snap

DENSE_USERS = 2_048
"""users whose histories are held as a dense matrix at once while the item-to-item counts are added up"""
DOUBLE_ITEMS_MAX = 8_000
"""up to here the inverse is taken in double precision; above, in single, to stay at 4 bytes a weight"""


def ease(indptr: NDArray[np.int64], indices: NDArray[np.int32], items: int, l2: float) -> NDArray[np.float32]:
    """Weights (items, items) with a zero diagonal: B = I − P · diag(1 ÷ diag P), P = (XᵀX + l2·I)⁻¹.

    The weights are rounded to a binary grid on which every sum of a history's rows is exact in single precision,
    whatever the order of the sum: numpy, ONNX Runtime and any batch size give the same bits (see `grid.snap`).
    """
    kind = np.float64 if items <= DOUBLE_ITEMS_MAX else np.float32
    gram = np.zeros((items, items), dtype=kind)
    for start in range(0, len(indptr) - 1, DENSE_USERS):
        stop = min(start + DENSE_USERS, len(indptr) - 1)
        rows = np.repeat(np.arange(stop - start), np.diff(indptr[start : stop + 1]))
        block = np.zeros((stop - start, items), dtype=np.float32)
        block[rows, indices[indptr[start] : indptr[stop]]] = 1
        gram += block.T @ block  # counts: exact in single precision up to 2^24 users a block
    diagonal = np.arange(items)
    gram[diagonal, diagonal] += l2
    inverse = np.linalg.inv(gram)
    del gram
    inverse /= -np.diag(inverse)
    inverse[diagonal, diagonal] = 0
    weights: NDArray[np.float32] = inverse.astype(np.float32)
    del inverse
    sums = np.zeros(items)
    for start in range(0, items, DENSE_USERS):
        sums += np.abs(weights[start : start + DENSE_USERS]).sum(axis=0, dtype=np.float64)
    bound = float(sums.max(initial=0.0))
    return snap(weights, bound)
