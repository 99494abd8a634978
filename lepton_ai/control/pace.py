"""How long the passes of the loop took: figures of the last ones, for `x/cell` and the measurements. Owns no clock."""

from __future__ import annotations

import math
import threading
from collections import deque

KEPT = 256


class Pace:
    """Notes the duration of each pass; thread-safe, because the API reads while the loop writes."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last_ms: deque[float] = deque(maxlen=KEPT)
        self._passes = 0

    def note(self, duration_s: float) -> None:
        with self._lock:
            self._passes += 1
            self._last_ms.append(duration_s * 1000)

    def figures(self) -> dict[str, float]:
        """Passes made so far, and milliseconds of the last :data:`KEPT` of them."""
        with self._lock:
            passes, known = self._passes, list(self._last_ms)
        if not known:
            return {"passes": passes}
        ordered = sorted(known)
        at95 = ordered[math.ceil(0.95 * len(ordered)) - 1]
        found = {"last": known[-1], "p50": ordered[len(ordered) // 2], "p95": at95, "max": ordered[-1]}
        return {"passes": passes, **{f"pass_ms_{name}": round(value, 2) for name, value in found.items()}}
