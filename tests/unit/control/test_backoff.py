"""Waits after failures."""

from __future__ import annotations

import random

from lepton_ai.control.backoff import KEPT, Backoff


def test_at_once_then_doubling_up_to_the_most() -> None:
    waits = Backoff(500, 8_000, 60_000, random.Random(1))
    now_ms, found = 0, []
    for _ in range(9):
        now_ms = waits.fail("a", now_ms)
        found.append(waits.wait_ms("a", 0))
    steps = [after - before for before, after in zip([0, *found], found, strict=False)]
    assert steps[0] == 0
    for step, plain in zip(steps[1:], [500, 1000, 2000, 4000, 8000, 8000, 8000, 8000], strict=True):
        assert plain <= step <= plain * 1.2
    assert len(set(steps[5:])) > 1  # jitter


def test_a_calm_time_a_fresh_failure_and_another_key_start_anew() -> None:
    waits = Backoff(500, 8_000, 60_000, random.Random(1))
    for _ in range(5):
        waits.fail("a", 0)
    assert waits.wait_ms("a", 0) > 0
    assert waits.wait_ms("b", 0) == 0
    assert waits.fail("a", 0, fresh=True) == 0
    for _ in range(5):
        waits.fail("a", 0)
    assert waits.fail("a", 100_000) == 100_000
    waits.fail("a", 100_000)
    waits.clear("a")
    assert waits.wait_ms("a", 100_000) == 0


def test_what_would_begin_anew_is_not_remembered_for_ever() -> None:
    backoff = Backoff(500, 60_000, 60_000, random.Random(1))
    for number in range(3 * KEPT):
        backoff.fail(f"job-{number}", number * 100)
    assert len(backoff._state) <= KEPT
