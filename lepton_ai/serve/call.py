"""One checked request on its way to the model. Owns no behaviour: codec makes it, batch runs it, codec answers it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(slots=True)
class Call:
    """Arrays in the order of the model's inputs, all checked against its signature.

    ``key`` holds the wanted outputs and the shapes without the first dimension: calls of equal key can run together.
    ``scalar`` marks a plain request without a batch dimension, whose answer has none either.
    """

    arrays: tuple[np.ndarray[Any, Any], ...]
    rows: int
    elements: int
    outputs: tuple[int, ...]
    key: tuple[object, ...]
    id: str | None = None
    scalar: bool = False
