"""The demand to plan for: what is learnt, what is kept, what never poisons it, and that it is calm."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lepton_ai.scheduler.peak import Peak

START_S = 30.0


def feed(peak: Peak, loads: np.ndarray, start_s: float = START_S, **more: float) -> np.ndarray:
    """Replicas planned after each tick of five seconds."""
    return np.array([peak.tick(five, five, start_s, **more).replicas for five in loads.reshape(-1, 5)])


def turns(plans: np.ndarray, ticks: int = 60) -> int:
    moves = [(at, np.sign(move)) for at, move in enumerate(np.diff(plans)) if move]
    found = [moves[at][0] for at in range(1, len(moves)) if moves[at][1] != moves[at - 1][1]]
    return max((sum(begin <= other < begin + ticks for other in found) for begin in found), default=0)


def test_an_even_load_is_carried_with_little_to_spare_and_left_alone() -> None:
    plans = feed(Peak(), np.full(3600, 10.0))
    assert set(plans[200:]) <= {10, 11}
    assert turns(plans[144:]) == 0


@pytest.mark.parametrize("replicas", [3.0, 10.0, 40.0])
def test_at_a_constant_load_it_turns_once_in_five_minutes_at_most(replicas: float) -> None:
    loads = np.random.default_rng(1).poisson(replicas * 10, 7200) / 10
    plans = feed(Peak(), loads)
    assert turns(plans[144:]) <= 1
    assert replicas <= plans[144:].mean() <= 1.5 * replicas + 1


def test_what_comes_in_lumps_is_expected_again_and_what_is_even_is_not() -> None:
    minute = np.zeros(3600)
    minute[::300] = 1.0  # a lump of 20 s every 5 minutes
    lumps = np.convolve(minute, np.full(20, 12.0))[:3600]
    lumpy = Peak()
    plans = feed(lumpy, lumps)
    quiet = np.arange(720) * 5 % 300 > 60
    assert plans[360:][quiet[360:]].min() >= 12  # ready also while nothing comes
    assert lumpy.plan.factor > 1.5 * learnt(np.full(3600, 12.0)).plan.factor


def learnt(loads: np.ndarray) -> Peak:
    peak = Peak()
    feed(peak, loads)
    return peak


def test_most_requests_find_enough_replicas_when_the_load_comes_as_it_came() -> None:
    rng = np.random.default_rng(3)
    level = np.repeat(rng.gamma(2.0, 3.0, 10 * 60), 60)  # another level every minute, no memory
    plans = feed(Peak(), level)
    ready = np.array([plans[max(0, tick - 7) : tick].min() if tick else 1 for tick in range(len(plans))])
    needed = level.reshape(-1, 5).max(axis=1)
    judged = slice(len(plans) // 2, None)
    missed = needed[judged][needed[judged] > ready[judged]].sum() / needed[judged].sum()
    assert missed < 0.03
    assert plans[judged].mean() < level.max()


def test_a_longer_start_up_time_needs_more() -> None:
    rng = np.random.default_rng(4)
    steps = np.cumsum(rng.normal(0, 1.0, 720))
    walk = np.repeat(20 + 8 * np.sin(np.arange(720) / 20) + steps - steps.mean(), 5).clip(1)
    assert feed(Peak(), walk, 300.0)[300:].mean() > feed(Peak(), walk, 5.0)[300:].mean()


def test_what_is_needed_now_is_planned_at_once_and_for_a_minute() -> None:
    peak = Peak()
    feed(peak, np.full(1800, 2.0))
    jump = feed(peak, np.full(30, 30.0), ready=3.0)
    assert jump[-1] >= 30  # waiting work counts once it lasts
    assert feed(peak, np.full(30, 1.0)).min() >= 30


def test_what_waits_is_not_counted_again_each_second() -> None:
    served, counted = Peak(), Peak()
    steady = np.full(600, 4.0)
    for peak in (served, counted):
        feed(peak, steady)
    queue = np.array([4, 4, 9, 8, 7, 6, 5, 4, 4, 4], float)  # five came at once, one is worked off a second
    with_ready, without = feed(served, queue, ready=4.0), feed(counted, queue)
    assert with_ready.max() <= without.max()


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    st.lists(
        st.floats(allow_nan=True, allow_infinity=True) | st.floats(0, 50), min_size=5, max_size=400
    )
)  # fmt: skip
def test_no_sample_poisons_it(values: list[float]) -> None:
    peak = Peak()
    for at in range(0, len(values) - 4, 5):
        plan = peak.tick(values[at : at + 5], values[at : at + 5], START_S)
        assert math.isfinite(plan.peak)
        assert min(plan.peak, plan.replicas) >= 0
    json.dumps(peak.state(), allow_nan=False)
    for value in feed(peak, np.full(1200, 5.0))[-20:]:
        assert value >= 5


def test_without_figures_the_plan_holds() -> None:
    peak = learnt(np.full(600, 7.0))
    before = peak.plan
    assert peak.tick([math.nan] * 5, [0.0] * 5, START_S) == before
    assert peak.tick([], [], START_S) == before


def test_a_restart_forgets_nothing_of_weight() -> None:
    rng = np.random.default_rng(5)
    loads = np.repeat(rng.gamma(1.0, 6.0, 120), 60)
    peak = learnt(loads)
    again = Peak.restored(json.loads(json.dumps(peak.state())))
    assert again.plan.peak == pytest.approx(peak.plan.peak, rel=0.3)
    one, two = feed(peak, loads[:3000]), feed(again, loads[:3000])
    assert abs(one - two).mean() < 0.1 * one.mean()
    assert len(json.dumps(peak.state())) < 4000


@pytest.mark.parametrize(
    "broken", [{}, {"ticks": 1}, {"sums": [1, 2, math.nan, 4]}, {"ratios": {"9999": 1}}, "x", None]
)
def test_a_broken_state_is_as_if_nothing_was_known(broken: object) -> None:
    state = broken if not isinstance(broken, dict) or not broken else {**learnt(np.full(600, 3.0)).state(), **broken}
    if broken == {"ticks": 1}:
        state = {"ticks": 1}
    assert Peak.restored(state).plan == Peak().plan  # type: ignore[arg-type]


def test_equal_input_gives_equal_plans() -> None:
    loads = np.random.default_rng(6).gamma(1.0, 5.0, 3000)
    assert (feed(Peak(), loads) == feed(Peak(), loads)).all()
