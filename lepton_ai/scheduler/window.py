"""What was seen within a span of time: the largest value, which scaling down looks back on, and what was counted.

Each value is stored once and dropped once, so adding is O(1) amortised and so is asking. They read no clock; the
caller passes times.
"""

from __future__ import annotations

from collections import deque


class Window:
    """Maximum over the last `span_ms` milliseconds of values that are added in time order: a monotone queue."""

    def __init__(self, span_ms: int) -> None:
        self.span_ms = span_ms
        self._queue: deque[tuple[int, float]] = deque()

    def add(self, time_ms: int, value: float) -> None:
        """Note `value` at `time_ms`; a time before the last one counts as the last one."""
        if self._queue and time_ms < self._queue[-1][0]:
            time_ms = self._queue[-1][0]
        while self._queue and self._queue[-1][1] <= value:
            self._queue.pop()
        self._queue.append((time_ms, value))

    def max(self, now_ms: int) -> float:
        """The largest value not older than the span, 0.0 when there is none."""
        while self._queue and self._queue[0][0] < now_ms - self.span_ms:
            self._queue.popleft()
        return self._queue[0][1] if self._queue else 0.0


class Counted:
    """How much a counter grew within `span_ms` milliseconds; one that falls (it began anew) grew by nothing."""

    def __init__(self, span_ms: int) -> None:
        self.span_ms = span_ms
        self._last: float | None = None
        self._sum = 0.0
        self._queue: deque[tuple[int, float]] = deque()

    def add(self, time_ms: int, counter: float) -> None:
        """Note what the counter stands at; the first time is where counting begins."""
        grown = 0.0 if self._last is None else max(0.0, counter - self._last)
        self._last = counter
        if grown:
            self._queue.append((time_ms, grown))
            self._sum += grown

    def within(self, now_ms: int) -> float:
        while self._queue and self._queue[0][0] < now_ms - self.span_ms:
            self._sum -= self._queue.popleft()[1]
        return max(0.0, self._sum)
