"""What each replica can do: near the truth for servers of both kinds, and never poisoned by what cannot be."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lepton_ai.scheduler.capacity import Capacity, Seen


def fed(rates: dict[str, float], in_flight: dict[str, float], seconds: int = 40) -> Capacity:
    """Measured once a second: so many answers a second, so many in flight."""
    known = Capacity()
    for second in range(seconds):
        known.observe(second * 1000, {name: Seen(rate * second, 0, in_flight[name]) for name, rate in rates.items()})
    return known


def test_nothing_is_known_before_anything_was_answered() -> None:
    known = Capacity()
    assert known.estimate() == {}
    known.observe(0, {"a": Seen(5, 0, 1)})
    known.observe(1000, {"a": Seen(5, 0, 0)})
    assert known.estimate() == {}
    assert known.ahead() == 0.0


def test_the_speed_is_answers_for_every_second_in_flight() -> None:
    known = fed({"a": 50, "b": 50, "slow": 10}, {"a": 1, "b": 1, "slow": 1})
    plain = known.estimate(doubt=0.0)
    assert plain["a"] == pytest.approx(50, rel=0.1)
    assert plain["slow"] == pytest.approx(10, rel=0.2)
    cautious = known.estimate()
    assert plain["slow"] < cautious["slow"] < cautious["a"]


def test_a_longer_queue_makes_a_replica_look_slower_never_faster() -> None:
    plain = fed({"a": 50, "b": 50, "c": 50}, {"a": 1, "b": 1, "c": 4}).estimate(doubt=0.0)
    assert plain["a"] / 5 < plain["c"] < plain["a"]


def test_many_at_once_more_requests_do_not_make_a_replica_look_faster() -> None:
    """Of two that answer all they have in a tenth of a second, one has four times as much to do."""
    plain = fed({"a": 40, "b": 10}, {"a": 4, "b": 1}).estimate(doubt=0.0)
    assert plain["a"] == pytest.approx(plain["b"], rel=0.05)


def test_failing_fast_is_not_being_fast() -> None:
    known = Capacity()
    for second in range(40):
        known.observe(
            second * 1000, {"a": Seen(50 * second, 0, 1), "b": Seen(50 * second, 0, 1), "bad": Seen(0, 500 * second, 0)}
        )
    found = known.estimate(doubt=0.0)
    assert found["bad"] < found["a"] / 10


def test_one_that_never_answered_falls_and_one_that_is_not_asked_is_expected_to_be_as_the_others() -> None:
    known = fed({"a": 50, "b": 50, "stuck": 0, "idle": 0}, {"a": 1, "b": 1, "stuck": 3, "idle": 0})
    found = known.estimate(doubt=0.0)
    assert found["stuck"] < found["a"] / 5
    assert found["idle"] > found["a"] / 3


def test_what_was_learnt_of_a_replica_fades_when_it_is_not_asked() -> None:
    known = fed({"a": 50, "b": 50, "c": 5}, {"a": 1, "b": 1, "c": 1})
    before = known.estimate(doubt=0.0)
    for second in range(40, 120):
        known.observe(second * 1000, {
            "a": Seen(50 * second, 0, 1), "b": Seen(50 * second, 0, 1), "c": Seen(5 * 39, 0, 0),
        })  # fmt: skip
    after = known.estimate(doubt=0.0)
    assert before["c"] < before["a"] / 3
    assert after["c"] > after["a"] / 2


def test_counters_that_begin_anew_and_replicas_that_come_and_go() -> None:
    known = fed({"a": 50, "b": 50}, {"a": 1, "b": 1})
    before = known.estimate(doubt=0.0)
    known.observe(40_000, {"a": Seen(50 * 40, 0, 1), "b": Seen(20, 0, 1), "new": Seen(1_000_000, 0, 0)})
    after = known.estimate(doubt=0.0)
    assert after["b"] == pytest.approx(before["b"], rel=0.2)
    assert after["new"] < 2 * after["a"], "what it answered before it was known is not counted"
    known.observe(41_000, {"a": Seen(50 * 41, 0, 1)})
    assert set(known.estimate()) == {"a"}


@pytest.mark.parametrize("jump_ms", [-3_600_000, 3_600_000])
def test_a_clock_that_jumps_changes_nothing(jump_ms: int) -> None:
    known = fed({"a": 50, "b": 10}, {"a": 1, "b": 1})
    before = known.estimate()
    known.observe(40_000 + jump_ms, {"a": Seen(50 * 40, 0, 1), "b": Seen(10 * 40, 0, 1)})
    assert known.estimate() == before


BAD = st.sampled_from([math.nan, math.inf, -math.inf, -1.0])
FIGURE = st.one_of(BAD, st.floats(0, 1e9), st.integers(0, 100).map(float))


@settings(derandomize=True, max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(-5_000, 30_000), st.dictionaries(st.sampled_from("abcd"), st.tuples(FIGURE, FIGURE, FIGURE))
        ),
        max_size=12,
    )
)
def test_no_figures_poison_it(samples: list[tuple[int, dict[str, tuple[float, float, float]]]]) -> None:
    known, at_ms = Capacity(), 0
    for step_ms, seen in samples:
        at_ms += step_ms
        known.observe(at_ms, {name: Seen(*figures) for name, figures in seen.items()})
    for value in [*known.estimate().values(), *known.estimate(doubt=0.0).values()]:
        assert math.isfinite(value)
        assert value > 0
    assert math.isfinite(known.ahead())


@pytest.mark.parametrize("bad", [math.nan, math.inf, -1.0])
def test_bad_figures_are_passed_over_and_good_ones_count_again(bad: float) -> None:
    known = fed({"a": 50, "b": 10}, {"a": 1, "b": 1})
    before = known.estimate(doubt=0.0)
    for second in range(40, 45):
        known.observe(second * 1000, {"a": Seen(bad, bad, bad), "b": Seen(10 * second, 0, 1)})
    for second in range(45, 90):
        known.observe(second * 1000, {"a": Seen(50 * second, 0, 1), "b": Seen(10 * second, 0, 1)})
    assert known.estimate(doubt=0.0) == pytest.approx(before, rel=0.1)
