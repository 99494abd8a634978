"""Shares from capacity: in proportion, bounded, calm, and never all spare."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lepton_ai.scheduler.route import (
    ALIKE,
    TYPICAL,
    WEIGHT_LEAST,
    WEIGHT_MOST,
    Share,
    route,
)


def test_replicas_that_are_alike_get_equal_weights() -> None:
    found = route({"a": 50, "b": 50 * 1.2, "c": 50 / 1.2})
    assert set(found.values()) == {Share(TYPICAL, False)}


def test_weights_are_in_proportion_to_what_each_can_do() -> None:
    found = route({"a": 50, "b": 50, "c": 50, "half": 25, "double": 100})
    assert found["half"].weight == TYPICAL // 2
    assert found["double"].weight == TYPICAL * 2


def test_weights_are_bounded() -> None:
    found = route({"a": 50, "b": 50, "c": 50, "stuck": 1e-9, "odd": 1e12})
    assert found["stuck"].weight == WEIGHT_LEAST
    assert found["odd"].weight == WEIGHT_MOST


def test_nothing_known_is_everything_alike() -> None:
    assert route({}) == {}
    assert route({"a": math.nan, "b": 0.0}) == {"a": Share(), "b": Share()}


def test_one_unknown_among_known_counts_as_typical() -> None:
    found = route({"a": 50, "b": 50, "c": 5, "d": math.nan, "e": -3})
    assert found["d"] == found["e"] == Share(TYPICAL, False)


def test_the_shares_stay_until_one_has_changed_enough() -> None:
    before = route({"a": 50, "b": 50, "c": 20})
    assert (
        route({"a": 50, "b": 50, "c": 22}, before=before) is before
        or route({"a": 50, "b": 50, "c": 22}, before=before) == before
    )
    assert route({"a": 50, "b": 50, "c": 40}, before=before) != before
    assert set(route({"a": 50, "b": 50, "c": 20, "d": 50}, before=before)) == {"a", "b", "c", "d"}


def test_a_much_slower_one_is_spare_while_there_is_little_to_do() -> None:
    able = {"a": 50, "b": 50, "c": 50, "slow": 10}
    assert route(able, ahead=0.5)["slow"].spare
    # Behind nine others a request takes as long as at the slow one: now it is asked.
    assert not route(able, ahead=9.0)["slow"].spare


def test_a_spare_one_comes_back_only_when_it_is_clearly_better() -> None:
    able = {"a": 50.0, "b": 50.0, "c": 50.0, "slow": 30.0}
    before = route(able, ahead=0.5)
    assert before["slow"].spare
    assert route({**able, "slow": 38.0}, 0.5, before)["slow"].spare
    assert not route({**able, "slow": 45.0}, 0.5, before)["slow"].spare


def test_a_replica_on_an_overloaded_node_has_no_benefit_of_the_doubt() -> None:
    able = {"a": 50.0, "b": 50.0, "c": 50.0, "d": 45.0}
    found = route(able, crowded={"d": 25.0, "c": 60.0})
    assert (found["c"].weight, found["d"].weight) == (TYPICAL, TYPICAL // 2)
    assert route(able, before=found, crowded={"d": 48.0})["d"].weight == TYPICAL
    for bad in (math.nan, -1.0, 0.0, math.inf):
        assert route(able, crowded={"d": bad})["d"].weight == TYPICAL


CAPACITY = st.one_of(st.floats(1e-6, 1e6), st.sampled_from([math.nan, math.inf, -1.0, 0.0]))


@settings(derandomize=True, max_examples=300, deadline=None)
@given(
    st.dictionaries(st.text("abcdef", min_size=1, max_size=2), CAPACITY, min_size=1, max_size=8),
    st.one_of(st.floats(0, 1e4), st.sampled_from([math.nan, math.inf, -2.0])),
    st.dictionaries(
        st.text("abcdef", min_size=1, max_size=2),
        st.builds(Share, st.integers(WEIGHT_LEAST, WEIGHT_MOST), st.booleans()),
    ),
)
def test_whatever_is_measured_the_shares_are_whole(
    able: dict[str, float], ahead: float, before: dict[str, Share]
) -> None:
    found = route(able, ahead, before)
    assert set(found) == set(able)
    assert all(WEIGHT_LEAST <= share.weight <= WEIGHT_MOST for share in found.values())
    if not set(before) >= set(found):
        assert not all(share.spare for share in found.values()), "nobody would be asked"
    assert route(able, ahead, found) == route(able, ahead, found), "the same answer for the same question"


@settings(derandomize=True, max_examples=200, deadline=None)
@given(st.lists(st.floats(1, 1000), min_size=2, max_size=10), st.floats(1.01, 50))
def test_who_can_do_more_is_never_given_less(able: list[float], factor: float) -> None:
    capacity = {str(index): value for index, value in enumerate(able)}
    found = route(capacity)
    for one in capacity:
        for other in capacity:
            if capacity[one] <= capacity[other]:
                assert found[one].weight <= found[other].weight
                assert found[one].spare >= found[other].spare
    scaled = route({name: value * factor for name, value in capacity.items()})
    assert all(abs(found[name].weight - scaled[name].weight) <= TYPICAL * (ALIKE - 1) + 1 for name in found)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_few_replicas_are_never_all_spare(count: int) -> None:
    found = route({str(index): 10.0**-index for index in range(count)})
    assert not all(share.spare for share in found.values())
