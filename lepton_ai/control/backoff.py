"""How long to wait after failures: at once the first time, then doubling, with jitter against marching in step."""

from __future__ import annotations

import random

KEPT = 4096


class Backoff:
    """Waits by key. `first_ms` after the second failure in a row, doubling up to `most_ms`, each up to 20 % longer.

    A failure more than `calm_ms` after the wait before it ended counts as a first one.
    """

    def __init__(self, first_ms: int, most_ms: int, calm_ms: int, rng: random.Random) -> None:
        self._first_ms, self._most_ms, self._calm_ms, self._rng = first_ms, most_ms, calm_ms, rng
        self._state: dict[str, tuple[int, int]] = {}

    def fail(self, key: str, now_ms: int, *, fresh: bool = False) -> int:
        """Notes a failure and returns when to try again. `fresh`: it had been well for long before."""
        count, until_ms = self._state.get(key, (0, now_ms))
        count = 1 if fresh or now_ms > until_ms + self._calm_ms else count + 1
        wait_ms = 0 if count == 1 else min(self._most_ms, self._first_ms << min(count - 2, 20))
        until_ms = now_ms + round(wait_ms * (1 + 0.2 * self._rng.random()))
        self._state[key] = (count, until_ms)
        if len(self._state) > KEPT:  # what would count as a first failure again need not be remembered
            self._state = {k: v for k, v in self._state.items() if now_ms <= v[1] + self._calm_ms}
        return until_ms

    def wait_ms(self, key: str, now_ms: int) -> int:
        """Milliseconds until `key` may be tried again; 0 when it may now."""
        return max(0, self._state.get(key, (0, 0))[1] - now_ms)

    def clear(self, key: str) -> None:
        self._state.pop(key, None)
