"""Time, injected: the whole cell runs on a fake one in tests/sim."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Two readings: `now_ms` is UTC (goes into records), `elapsed_ms` only ever grows (measures waits)."""

    def now_ms(self) -> int: ...

    def elapsed_ms(self) -> int: ...


class SystemClock:
    """The machine's clocks."""

    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000

    def elapsed_ms(self) -> int:
        return time.monotonic_ns() // 1_000_000
