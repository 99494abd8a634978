"""What scaling is told about callers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from lepton_ai.control.demand import STALE_MS, demand, start_s
from lepton_ai.control.options import Options
from lepton_ai.spec.route import RouteStats
from lepton_ai.spec.workload import DeploymentSpec, Template
from lepton_ai.store import Record

SPEC = DeploymentSpec(template=Template(command=("x",)), target_in_flight=4.0)
KEY = ("w", "movies")


class Pass:
    """As much of a Context as `demand` looks at."""

    def __init__(self) -> None:
        self.options = Options()
        self.tick_ms = 1_000_000
        self.memory = SimpleNamespace(demand={})
        self.measured: tuple[int, dict[tuple[str, str], RouteStats]] = (-1, {})
        self.held = 0
        self.services = SimpleNamespace(publisher=SimpleNamespace(held=lambda workspace, name: self.held))

    def look(self, status: dict[str, Any], **figures: Any) -> Any:
        if figures:
            self.measured = (self.tick_ms, {KEY: RouteStats(workspace="w", name="movies", **figures)})
        record = Record("w", "deployment", "movies", "u", 1, 1, {}, status, None, 0, 0, None)
        return demand(self, record, SPEC)  # type: ignore[arg-type]


@pytest.fixture
def now() -> Pass:
    return Pass()


DONE = {"rollout": {"release": 1, "state": "done"}}


def test_the_peak_is_the_largest_within_the_window(now: Pass) -> None:
    assert now.look(DONE, in_flight=9, held=3).peak == 12
    now.tick_ms += 30_000
    assert now.look(DONE, in_flight=1).peak == 12
    now.tick_ms += 31_000
    assert now.look(DONE, in_flight=2).peak == 2


def test_what_the_last_leader_found_necessary_holds_for_one_window(now: Pass) -> None:
    assert now.look({**DONE, "needed": 5}, in_flight=0).peak == 20
    now.tick_ms += 61_000
    assert now.look({**DONE, "needed": 5}, in_flight=0).peak == 0


def test_what_the_last_leader_found_necessary_holds_while_nothing_is_measured(now: Pass) -> None:
    status = {**DONE, "needed": 5}
    assert now.look(status, in_flight=1).peak == 20
    now.memory.demand["u"].slow = True
    for _ in range(30):
        now.tick_ms += STALE_MS
        found = now.look(status)
    assert found.peak == 20


def test_a_start_of_years_was_no_start() -> None:
    def copy(ready_ms: int) -> Record:
        return Record("w", "replica", "movies-1", "u", 1, 1, {}, {"ready_ms": ready_ms}, None, 1000, 0, None)

    assert start_s([copy(6000), copy(10**12)]) == 5.0
    assert start_s([copy(10**12), copy(10)]) is None


def test_idle_is_counted_from_the_last_request(now: Pass) -> None:
    assert now.look(DONE, last_request_ms=5).idle_s == 0
    now.tick_ms += 10_000
    assert now.look(DONE, last_request_ms=5).idle_s == 10
    now.tick_ms += 1_000
    assert now.look(DONE, last_request_ms=6).idle_s == 0
    now.tick_ms += 1_000
    assert now.look(DONE, last_request_ms=6, in_flight=1).idle_s is None
    now.tick_ms += 2_000
    assert now.look(DONE, last_request_ms=6).idle_s == 2


@pytest.mark.parametrize(
    "status", [{}, {"rollout": {"release": 1, "state": "progressing"}}, {"rollout": {"release": 7, "state": "done"}}]
)
def test_a_release_that_has_not_shown_itself_is_not_idle(now: Pass, status: dict[str, Any]) -> None:
    now.look(status, last_request_ms=5)
    now.tick_ms += 100_000
    assert now.look(status, last_request_ms=5).idle_s == 0


def test_without_fresh_figures_nothing_falls(now: Pass) -> None:
    assert now.look(DONE).idle_s == 0  # never measured
    now.look(DONE, in_flight=8)
    for _ in range(100):
        now.tick_ms += STALE_MS // 5
        found = now.look(DONE)
    assert found.peak == 8
    now.look(DONE, in_flight=0)
    now.tick_ms += 61_000
    assert now.look(DONE, in_flight=0).peak == 0


def test_asleep_until_something_is_held(now: Pass) -> None:
    assert now.look({**DONE, "state": "idle"}, in_flight=0).asleep
    now.held = 2
    found = now.look({**DONE, "state": "idle"})
    assert (found.held, found.idle_s) == (2, None)


def test_requests_per_minute_are_those_of_the_last_minute_and_their_peak_holds_for_one_window(now: Pass) -> None:
    now.look(DONE, requests=1000)
    for _ in range(90):
        now.tick_ms += 1000
        found = now.look(DONE, requests=now.measured[1][KEY].requests + 10)
    assert found.per_minute == pytest.approx(600, abs=11)
    total = now.measured[1][KEY].requests
    now.tick_ms += 30_000
    assert now.look(DONE, requests=total).per_minute == pytest.approx(600, abs=11)
    now.tick_ms += 40_000
    now.look(DONE, requests=total)
    now.tick_ms += 61_000
    assert now.look(DONE, requests=total).per_minute == 0
