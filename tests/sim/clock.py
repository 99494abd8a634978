"""The time of a simulated cell: it moves only when it is told to, and the wall clock may jump on its own."""

from __future__ import annotations


class FakeClock:
    """Satisfies `control.clock.Clock`. `advance` moves both readings, `jump` the wall clock alone."""

    def __init__(self) -> None:
        self._elapsed_ms = 1_000_000
        self._wall_ms = 1_700_000_000_000

    def now_ms(self) -> int:
        return self._wall_ms

    def elapsed_ms(self) -> int:
        return self._elapsed_ms

    def elapsed_s(self) -> float:
        return self._elapsed_ms / 1000

    def advance(self, ms: int) -> None:
        self._elapsed_ms += ms
        self._wall_ms += ms

    def jump(self, ms: int) -> None:
        self._wall_ms += ms
