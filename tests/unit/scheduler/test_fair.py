"""Fair shares: who goes next, bounds under demand that never ends, priorities within a workspace, who lends."""

from __future__ import annotations

import random
from collections import defaultdict

from hypothesis import given, settings
from hypothesis import strategies as st

from lepton_ai.scheduler.fair import Claim, fair, lenders, share

Amounts = tuple[int, int, int]
TOTAL = (9000, 18_000, 0)


def _fill(total: Amounts, tasks: dict[str, Amounts], weights: dict[str, float]) -> dict[str, list[int]]:
    """What each workspace holds when all of them ask for more than there is, and nobody's task fits any more."""
    claims = [
        Claim(f"{name}-{number:04}", name, amounts, 0, number)
        for name, amounts in tasks.items()
        for number in range(400)
    ]
    held: dict[str, list[int]] = {name: [0, 0, 0] for name in tasks}
    free = list(total)
    for claim in fair(total, {}, claims, weights):
        if any(more > have for more, have in zip(claim.amounts, free, strict=True)):
            break
        for column, amount in enumerate(claim.amounts):
            free[column] -= amount
            held[claim.workspace][column] += amount
    return held


def test_the_example_of_the_paper() -> None:
    """9 cores and 18 GB; A's tasks want <1, 4>, B's <3, 1>: A gets three of them and B two (NSDI 2011, figure 3)."""
    held = _fill(TOTAL, {"a": (1000, 4000, 0), "b": (3000, 1000, 0)}, {})
    assert held == {"a": [3000, 12_000, 0], "b": [6000, 2000, 0]}
    assert share(TOTAL, held["a"]) == share(TOTAL, held["b"]) == 2 / 3


@st.composite
def tasks(draw: st.DrawFn) -> dict[str, Amounts]:
    names = ["a", "b", "c", "d"][: draw(st.integers(2, 4))]
    return {
        name: (draw(st.integers(100, 2000)), draw(st.integers(100, 3000)), draw(st.sampled_from([0, 0, 250])))
        for name in names
    }


@settings(max_examples=60, derandomize=True, deadline=None)
@given(tasks(), st.dictionaries(st.sampled_from("abcd"), st.sampled_from([0.5, 1.0, 2.0, 3.0]), max_size=4))
def test_with_saturating_demand_weighted_shares_differ_by_one_task_at_most(
    asked: dict[str, Amounts], weights: dict[str, float]
) -> None:
    total = (40_000, 60_000, 8000)
    held = _fill(total, asked, weights)
    level = {name: share(total, own) / weights.get(name, 1.0) for name, own in held.items()}
    step = {name: share(total, asked[name]) / weights.get(name, 1.0) for name in asked}
    for one in asked:
        for other in asked:
            assert level[one] <= level[other] + step[one] + 1e-9, (level, step)


@st.composite
def claims(draw: st.DrawFn) -> list[Claim]:
    return [
        Claim(
            f"c{index:02}",
            draw(st.sampled_from("abc")),
            (draw(st.integers(1, 4000)), draw(st.integers(1, 4000)), 0),
            draw(st.sampled_from([1000, 4000, 9000])),
            draw(st.integers(0, 5)),
        )
        for index in range(draw(st.integers(0, 14)))
    ]


@settings(max_examples=100, derandomize=True, deadline=None)
@given(claims(), st.integers(0, 1000))
def test_the_order_is_total_repeatable_and_by_priority_then_age_within_a_workspace(
    waiting: list[Claim], seed: int
) -> None:
    used = {"a": (100, 5000, 0), "b": (4000, 10, 0)}
    order = fair(TOTAL, used, waiting)
    assert sorted(order, key=lambda claim: claim.uid) == sorted(waiting, key=lambda claim: claim.uid)
    shuffled = list(waiting)
    random.Random(seed).shuffle(shuffled)
    assert fair(TOTAL, used, shuffled) == order
    own = defaultdict(list)
    for claim in order:
        own[claim.workspace].append((-claim.priority, claim.since_ms, claim.uid))
    assert all(keys == sorted(keys) for keys in own.values())


@settings(max_examples=80, derandomize=True, deadline=None)
@given(claims(), st.integers(0, 5000))
def test_who_holds_more_is_never_offered_room_sooner(waiting: list[Claim], more: int) -> None:
    def first(used: dict[str, Amounts]) -> int:
        return next((i for i, claim in enumerate(fair(TOTAL, used, waiting)) if claim.workspace == "a"), -1)

    assert first({"a": (1000 + more, 1000, 0)}) >= first({"a": (1000, 1000, 0)})


def test_what_the_cell_has_nothing_of_and_weights_that_are_none_count_for_nothing() -> None:
    assert share((1000, 1000, 0), (100, 0, 8000)) == 0.1
    assert share((0, 0, 0), (1, 1, 1)) == 0.0
    two = [Claim("x", "x", (10, 10, 0)), Claim("y", "y", (10, 10, 0))]
    for wrong in (0.0, -1.0, float("nan"), float("inf")):
        assert [claim.uid for claim in fair(TOTAL, {}, two, {"x": wrong})] == ["x", "y"]
    assert [claim.uid for claim in fair(TOTAL, {"x": (-5, 1, 0), "y": (0, 0, 0)}, two)] == ["y", "x"]


def test_only_who_holds_more_than_its_share_lends_and_only_to_who_stays_within_its_own() -> None:
    total = (10_000, 10_000, 0)
    used = {"a": (7000, 100, 0), "b": (1000, 100, 0)}
    assert lenders(total, used, Claim("j", "b", (2000, 100, 0))) == {"a", "b"}
    assert lenders(total, used, Claim("j", "b", (4500, 100, 0))) == {"b"}  # it would then hold more than half itself
    assert lenders(total, used, Claim("j", "a", (100, 100, 0))) == {"a"}
    assert lenders(total, used, Claim("j", "c", (1000, 100, 0))) == {"a", "c"}
    assert lenders(total, used, Claim("j", "b", (4500, 100, 0)), {"b": 3.0}) == {"a", "b"}
