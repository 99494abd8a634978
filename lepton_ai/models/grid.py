"""Numbers rounded to a binary grid, so that sums in single precision are exact in any order.

Owns one function. Floating-point addition is not associative: the same scores computed by another library, batch
size or thread count differ in their last bits, and near-ties change place. When every term is a multiple of a step
and no partial sum exceeds 2^24 steps, every partial sum is a float32, nothing is rounded, and order cannot matter.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

MANTISSA_BITS = 24
PIECE_ROWS = 1_024


def snap(values: NDArray[np.float32], bound: float, bits: int = MANTISSA_BITS) -> NDArray[np.float32]:
    """`values` rounded to multiples of the smallest power of two with which `bound` is at most 2^bits − n steps.

    `bound` is the largest possible sum of absolute values; one spare bit covers what rounding adds to it.
    """
    if bound <= 0 or not math.isfinite(bound):
        return values
    step_log2 = math.ceil(math.log2(bound)) + 1 - bits
    result = np.empty(values.shape, dtype=np.float32)
    # In pieces: the double-precision copies must not be as large as the matrix itself.
    for start in range(0, len(values), PIECE_ROWS):
        part = slice(start, start + PIECE_ROWS)
        result[part] = np.ldexp(np.rint(np.ldexp(values[part].astype(np.float64), -step_log2)), step_log2)
    result += np.float32(0)  # −0 becomes 0
    return result
