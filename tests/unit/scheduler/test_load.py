"""s = w * u: what it is, where w is 1, marks with hysteresis, and that nothing that is said can break it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lepton_ai.errors import Invalid
from lepton_ai.scheduler.load import BAND, FLOOR, GROWN_LEAST, SHARE_MOST, Load, Mark, load

NAN = math.nan


def one(used: list[float], upper: list[float], **options: Any) -> Load:
    (found,) = load(["a"], [used], [upper], **options)
    return found


def test_s_is_w_times_u_of_the_resource_with_the_largest_s() -> None:
    found = one([0.5, 0.6], [0.95, 0.6])
    assert (found.resource, found.u, found.w, found.s) == ("cpu", 0.5, pytest.approx(1.9), pytest.approx(0.95))
    assert [part.resource for part in found.parts] == ["cpu", "memory"]
    assert one([0.5, 0.6], [0.5, 0.6]).resource == "memory"


def test_where_nothing_is_known_w_is_one() -> None:
    for upper in (NAN, math.inf, -1.0):
        assert one([0.4, 0.1], [upper, upper]).w == 1.0
    assert one([0.4, NAN], [0.8, 0.9]).parts[0].resource == "cpu"
    assert len(one([0.4, NAN], [0.8, 0.9]).parts) == 1


def test_an_idle_node_is_floored_so_that_w_is_a_number() -> None:
    found = one([0.0, 0.0], [0.5, 0.0])
    assert (found.u, found.w, found.s) == (FLOOR, pytest.approx(50), pytest.approx(0.5))


def test_a_forecast_of_quiet_takes_off_no_more_than_half() -> None:
    found = one([0.9, 0.1], [0.0, 0.1])
    assert (found.w, found.s) == (GROWN_LEAST, pytest.approx(0.45))


def test_a_stale_node_is_what_was_last_known_or_is_promised_and_has_no_verdict() -> None:
    found = one([0.4, 0.2], [0.9, 0.9], stale={"a"})
    assert (found.stale, found.u, found.w, found.mark, found.network) == (True, 0.4, 1.0, "normal", False)
    assert one([0.4, 0.2], [NAN, NAN], stale={"a"}, reserved=[[0.95, NAN]]).s == pytest.approx(0.95)
    nothing = one([NAN, NAN], [0.9, 0.9], network=True)
    assert (nothing.stale, nothing.s, nothing.mark, nothing.network) == (True, FLOOR, "normal", False)
    assert one([NAN, NAN], [NAN, NAN], reserved=[[0.2, 0.7]]).resource == "memory"
    assert one([0.4, 0.2], [NAN, NAN], reserved=[[0.9, 0.9]]).s == 0.4  # what is measured counts, not what is promised


def test_the_network_is_named_only_where_it_decided() -> None:
    assert one([0.5, 0.2], [0.6, 0.2], network=[[True, False]]).network
    assert not one([0.5, 0.2], [0.6, 0.2], network=[[False, True]]).network
    assert not one([0.5, 0.2], [NAN, 0.2], network=[[True, False]]).network


def test_marks_have_hysteresis() -> None:
    marks: list[Mark] = []
    before: Mark = "normal"
    for s in (0.84, 0.86, 0.84, 0.81, 0.79, 0.84, 0.31, 0.29, 0.34, 0.36, 0.31):
        before = one([s, 0.0], [NAN, NAN], before={"a": before}).mark
        marks.append(before)
    assert [mark[0] for mark in marks] == ["n", "o", "o", "o", "n", "n", "n", "i", "i", "n", "n"]


@pytest.mark.parametrize(
    "arguments",
    [
        {"used": [[0.1]], "upper": [[0.1, 0.1]]},
        {"used": [0.1, 0.1], "upper": [[0.1, 0.1]]},
        {"used": [[0.1, 0.1]], "upper": [[0.1, 0.1]], "limit": 0.3},
        {"used": [[0.1, 0.1]], "upper": [[0.1, 0.1]], "idle": -0.1},
        {"used": [[0.1, 0.1]], "upper": [[0.1, 0.1]], "reserved": [[1.0]]},
    ],
)
def test_what_does_not_fit_together_is_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(Invalid):
        load(["a"], **arguments)


def test_no_nodes_have_no_loads() -> None:
    assert load([], [], []) == ()


value = st.one_of(st.floats(0, 1.5), st.floats(), st.sampled_from([NAN, math.inf, -math.inf, -0.0, 1e308]))
rows = st.lists(st.tuples(st.tuples(value, value), st.tuples(value, value), st.booleans()), max_size=6)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(rows, st.lists(st.sampled_from(["idle", "normal", "overloaded"]), min_size=6, max_size=6))
def test_whatever_is_measured_a_load_is_finite_and_hangs_together(
    data: list[tuple[tuple[float, float], tuple[float, float], bool]], marks: list[Mark]
) -> None:
    names = [f"n{row}" for row in range(len(data))]
    used, upper = [row[0] for row in data], [row[1] for row in data]
    old = {name for name, row in zip(names, data, strict=True) if row[2]}
    before = dict(zip(names, marks, strict=False))
    found = load(names, used, upper, stale=old, before=before)
    assert [one.name for one in found] == names
    for item, figures in zip(found, used, strict=True):
        assert FLOOR <= item.u <= SHARE_MOST
        assert math.isfinite(item.w)
        assert item.w >= GROWN_LEAST
        assert item.s == pytest.approx(item.u * item.w)
        assert item.s == pytest.approx(max((part.s for part in item.parts), default=item.s))
        known = [one for one in figures if math.isfinite(one) and one >= 0]
        assert len(item.parts) == len(known)
        assert item.stale == (item.name in old or not known)
        if item.stale:
            assert (item.w, item.mark, item.network) == (1.0, "normal", False)
        elif item.s > item.limit:
            assert item.mark == "overloaded"
        elif item.s < 0.3:
            assert item.mark == "idle"
        elif 0.3 + BAND <= item.s <= item.limit - BAND:
            assert item.mark == "normal"
    again = load(names[::-1], used[::-1], upper[::-1], stale=old, before=before)
    assert again[::-1] == found  # a node's load is its own: no other node's figures are in it


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 0.5))
def test_more_use_and_a_higher_forecast_never_make_a_smaller_load(u: float, ahead: float, more: float) -> None:
    s = one([u, NAN], [ahead, NAN]).s
    assert one([u, NAN], [ahead + more, NAN]).s >= s
    assert one([u + more, NAN], [ahead, NAN]).s >= s - 1e-12


def test_a_thousand_nodes_are_as_each_alone() -> None:
    rng = np.random.default_rng(0)
    used, upper = rng.random((1000, 3)), rng.random((1000, 3))
    names = [f"n{row}" for row in range(1000)]
    found = load(names, used, upper, resources=("cpu", "memory", "io"))
    for row in range(0, 1000, 97):
        (alone,) = load([names[row]], used[row : row + 1], upper[row : row + 1], resources=("cpu", "memory", "io"))
        assert alone == found[row]
