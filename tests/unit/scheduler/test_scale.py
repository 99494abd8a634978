"""The number of replicas: demand, bounds, survive, idle, wake; and the window it looks back on."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from lepton_ai.scheduler.scale import Demand, scale
from lepton_ai.scheduler.window import Counted, Window
from lepton_ai.spec.workload import DeploymentSpec, Replicas, Template


def _spec(
    low: int = 1, high: int = 8, *, survive: int = 0, idle: int | None = None, target: float = 16.0
) -> DeploymentSpec:
    return DeploymentSpec(
        template=Template(command=("run",)),
        replicas=Replicas(min=low, max=high),
        survive={"node": survive} if survive else {},
        idle_timeout_s=idle,
        target_in_flight=target,
    )


def test_demand_is_divided_by_the_target_and_bounded() -> None:
    assert scale(_spec(), Demand(peak=0), 3).replicas == 1
    assert scale(_spec(), Demand(peak=16), 3).replicas == 1
    assert scale(_spec(), Demand(peak=17), 3).replicas == 2
    many = scale(_spec(), Demand(peak=1000), 3)
    assert many.replicas == 8
    assert "maximum of 8" in many.reason


def test_zero_minimum_means_stopped_even_with_requests_waiting() -> None:
    assert scale(_spec(0, 3), Demand(peak=50, held=4), 3).replicas == 0


def test_idle_goes_to_zero_and_a_held_request_wakes() -> None:
    spec = _spec(2, 4, idle=30)
    assert scale(spec, Demand(idle_s=29.9), 3).replicas == 2
    assert scale(spec, Demand(idle_s=30.0), 3).replicas == 0
    assert scale(spec, Demand(idle_s=None), 3).replicas == 2
    assert scale(spec, Demand(asleep=True), 3).replicas == 0
    woken = scale(spec, Demand(asleep=True, held=1), 3)
    assert woken.replicas == 2
    assert "woken by 1" in woken.reason


def test_the_case_of_the_demo_two_replicas_on_two_nodes() -> None:
    plan = scale(_spec(2, 4, survive=1), Demand(), 3)
    assert (plan.replicas, plan.per_node, plan.warning) == (2, 1, "")


def test_survive_that_cannot_be_kept_runs_what_is_possible_and_says_why() -> None:
    alone = scale(_spec(2, 4, survive=1), Demand(), 1)
    assert alone.replicas == 2
    assert alone.per_node == 2
    assert "needs at least 2 nodes" in alone.warning
    bounded = scale(_spec(2, 2, survive=1), Demand(peak=32), 3)
    assert "the maximum is 2" in bounded.warning


@given(st.integers(1, 20), st.integers(1, 3), st.integers(1, 12))
def test_what_is_needed_remains_after_the_failures_named(needed: int, lost: int, nodes: int) -> None:
    plan = scale(_spec(1, 1000, survive=lost, target=1.0), Demand(peak=float(needed)), nodes)
    assert plan.needed == needed
    if nodes > lost:
        assert plan.per_node is not None
        assert plan.replicas <= plan.per_node * nodes
        assert plan.replicas - lost * plan.per_node >= needed
        assert not plan.warning
        assert math.ceil(plan.replicas / plan.per_node) >= lost + 1
    else:
        assert plan.warning


@given(st.lists(st.tuples(st.integers(0, 50), st.floats(0, 100)), max_size=60), st.integers(1, 200))
def test_the_window_is_the_maximum_of_what_is_not_too_old(steps: list[tuple[int, float]], span: int) -> None:
    window, now, kept = Window(span), 0, []
    for wait, value in steps:
        now += wait
        window.add(now, value)
        kept.append((now, value))
        assert window.max(now) == max(v for t, v in kept if t >= now - span)
    assert window.max(now + span + 1) == 0.0


def test_requests_per_minute_and_requests_in_flight_whichever_needs_more() -> None:
    spec = _spec(1, 9).model_copy(update={"target_requests_per_minute": 60.0})
    by_rate = scale(spec, Demand(peak=10, per_minute=181), 3)
    assert by_rate.replicas == 4
    assert by_rate.reason == "181 requests per minute at most 60 each need 4"
    in_flight = scale(spec, Demand(peak=81, per_minute=181), 3)
    assert in_flight.replicas == 6
    assert "81 requests in flight" in in_flight.reason
    assert scale(spec, Demand(), 3).replicas == 1
    assert scale(_spec(1, 9), Demand(per_minute=1e6), 3).replicas == 1  # no such target


def test_a_required_spread_is_one_a_node() -> None:
    spec = _spec(3, 3).model_copy(update={"spread": "required"})
    assert scale(spec, Demand(), 2).per_node == 1
    assert scale(_spec(3, 3), Demand(), 2).per_node is None


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 20)), max_size=60), st.integers(1, 200))
def test_what_is_counted_is_what_grew_within_the_span(steps: list[tuple[int, int]], span: int) -> None:
    counted, now, total, grown = Counted(span), 0, 100, []
    counted.add(0, total)
    for wait, more in steps:
        now, total = now + wait, total + more
        counted.add(now, total)
        grown.append((now, more))
        assert counted.within(now) == sum(count for at, count in grown if at >= now - span)
    assert counted.within(now + span + 1) == 0


def test_a_counter_that_begins_anew_grew_by_nothing() -> None:
    counted = Counted(1000)
    for at, value in ((0, 50), (1, 60), (2, 0), (3, 5)):
        counted.add(at, value)
    assert counted.within(3) == 15


def test_what_is_planned_ahead_counts_where_it_is_more() -> None:
    ahead = scale(_spec(1, 9), Demand(peak=20, ahead=64), 3)
    assert ahead.replicas == 4
    assert ahead.reason == "up to 64 requests in flight are planned for, at most 16 each: 4"
    assert scale(_spec(1, 9), Demand(peak=70, ahead=64), 3).replicas == 5


def test_use_of_the_cpu_against_its_target() -> None:
    spec = _spec(1, 9).model_copy(update={"target_utilisation": 0.5})
    assert scale(spec, Demand(used=1.6), 3).replicas == 4
    assert "at most 50% of each" in scale(spec, Demand(used=1.6), 3).reason
    assert scale(spec, Demand(used=math.nan), 3).replicas == 1
    assert scale(_spec(1, 9), Demand(used=5.0), 3).replicas == 1  # no such target


def test_latency_against_its_target_step_by_step() -> None:
    spec = _spec(1, 9).model_copy(update={"target_latency_ms_p95": 100.0})

    def wanted(found: float | None, *, steady: bool = True) -> int:
        return scale(spec, Demand(latency_ms_p95=found, now=4, steady=steady), 3).replicas

    assert [wanted(120.0), wanted(1e6), wanted(90.0), wanted(40.0)] == [5, 8, 4, 3]
    assert [wanted(120.0, steady=False), wanted(40.0, steady=False), wanted(None), wanted(math.nan)] == [4, 4, 4, 4]
    assert scale(spec, Demand(), 3).replicas == 1
