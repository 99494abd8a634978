"""Rebalancing: every plan against an independent checker, the budget, the reasons, and figures that are none."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lepton_ai.errors import Invalid
from lepton_ai.scheduler.feasible import feasible
from lepton_ai.scheduler.habit import habit
from lepton_ai.scheduler.load import Load, load
from lepton_ai.scheduler.rebalance import Plan, Rules, Work, Z, allowance, rebalance
from lepton_ai.scheduler.snapshot import Node, Request, Snapshot, amounts
from lepton_ai.spec.workload import Resources

ROOM = Resources(cpu_milli=1000, memory_mib=4000)
SMALL = Resources(cpu_milli=100, memory_mib=100)


def work(uid: str, node: str, mean: float, **fields: object) -> Work:
    values: dict[str, object] = {"spread": (mean / 10, 0.0), "now": (mean, 10.0), **fields}
    request = values.pop("request", Request(uid, SMALL))
    return Work(request, node, (mean, 10.0), **values)  # type: ignore[arg-type]


def cell(*shares: float, **fields: object) -> tuple[Snapshot, tuple[Load, ...]]:
    """Nodes a, b, c ... of 1000 thousandths that use these shares."""
    names = [chr(97 + index) for index in range(len(shares))]
    nodes = [Node(name, ROOM, (300, 300, 0), **fields) for name in names]  # type: ignore[arg-type]
    used = [[share, 0.1] for share in shares]
    return Snapshot.of(nodes), load(names, used, used)


def crowd(node: str = "a", count: int = 6, mean: float = 200.0) -> list[Work]:
    return [work(f"w{number}", node, mean) for number in range(count)]


# -- a plan


def test_the_overloaded_node_gives_away_what_brings_it_under_its_limit() -> None:
    snapshot, loads = cell(1.14, 0.1, 0.5)
    plan = rebalance(snapshot, loads, crowd(mean=190.0), budget=9)
    assert [(move.source, move.destination) for move in plan.moves] == [("a", "c"), ("a", "b")]
    assert plan.refusals == {}
    assert plan.moves[0].reason.startswith("a plans 1.20 of its cpu (u 1.14 x w 1.00), over its limit of 0.85;")
    assert "c goes from 0.50 to 0.71" in plan.moves[0].reason


def test_one_large_piece_goes_rather_than_many_small_ones() -> None:
    snapshot, loads = cell(1.1, 0.1)
    works = [work("large", "a", 400), *(work(f"small{n}", "a", 70) for n in range(10))]
    assert [move.uid for move in rebalance(snapshot, loads, works, budget=9).moves] == ["large"]


def test_what_costs_more_to_move_stays_when_another_will_do() -> None:
    snapshot, loads = cell(1.0, 0.1)
    works = [work("dear", "a", 250, cost=5.0), work("cheap", "a", 240)]
    works += [work("rest", "a", 500, held="pods")]
    assert rebalance(snapshot, loads, works, budget=9).moves[0].uid == "cheap"


def test_a_destination_stays_under_its_limit_with_what_is_on_its_way() -> None:
    snapshot, loads = cell(1.2, 0.5, 0.84)
    coming = work("coming", "c", 300.0, to="b", now=(300.0, 10.0))
    plan = rebalance(snapshot, loads, [*crowd(), coming], budget=9)
    assert all(move.destination == "c" for move in plan.moves), "b is spoken for; what left c makes room there"
    assert "over its limit" in (plan.refusals or {})["a"] or not plan.refusals


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"held": "exclusive"}, "exclusive: 6"),
        ({"moved_s": 1799.0}, "moved less than 30 min ago: 6"),
        ({"to": "b"}, "nothing"),
        ({"request": Request("x", SMALL, nodes=frozenset({"a"}))}, "no other node may take any of its work"),
        ({"request": Request("x", Resources(cpu_milli=701, memory_mib=1))}, "no other node may take any of its work"),
    ],
)
def test_why_nothing_moves(fields: dict[str, object], why: str) -> None:
    snapshot, loads = cell(1.2, 0.1)
    works = [work(f"w{number}", "a", 200.0, **fields) for number in range(6)]
    plan = rebalance(snapshot, loads, works, budget=9)
    assert plan.moves == ()
    if why != "nothing":
        assert why in (plan.refusals or {})["a"]


def test_the_rest_of_the_reasons() -> None:
    snapshot, loads = cell(1.2, 0.8)
    assert (rebalance(snapshot, loads, crowd(), budget=9).refusals or {})["a"] == (
        "every node that may take its work would be over its limit"
    )
    snapshot, loads = cell(1.2, 0.1)
    assert (rebalance(snapshot, loads, crowd(), budget=0).refusals or {})["a"] == "the budget of moves is spent"
    one = rebalance(snapshot, loads, crowd(), budget=9, rules=Rules(per_call=1))
    assert (one.refusals or {})["a"] == "1 moves at once are enough"
    tiny = [work(f"w{number}", "a", 0.5) for number in range(6)]
    assert "no move would gain enough" in (rebalance(snapshot, loads, tiny, budget=9).refusals or {})["a"]


def test_of_one_owner_one_moves_at_a_time() -> None:
    snapshot, loads = cell(1.2, 0.1, 0.1)
    works = [work(f"w{number}", "a", 200.0, owner="movies") for number in range(6)]
    assert len(rebalance(snapshot, loads, works, budget=9).moves) == 1
    works[0] = work("w0", "a", 200.0, owner="movies", to="b")
    plan = rebalance(snapshot, loads, works, budget=9)
    assert plan.moves == ()


def test_a_node_that_is_overloaded_only_by_its_mark_keeps_its_work() -> None:
    """s is of the past as well: what has left since does not leave again."""
    snapshot, _ = cell(0.5, 0.1)
    loads = load(["a", "b"], [[0.5, 0.1], [0.1, 0.1]], [[1.3, 0.1], [0.1, 0.1]])
    assert loads[0].mark == "overloaded"
    assert rebalance(snapshot, loads, crowd(count=3, mean=150), budget=9) == Plan((), {})


@pytest.mark.parametrize("stale", ["a", "b"])
def test_a_stale_node_is_neither_source_nor_destination(stale: str) -> None:
    snapshot, _ = cell(1.2, 0.1)
    loads = load(["a", "b"], [[1.2, 0.1], [0.1, 0.1]], [[1.2, 0.1], [0.1, 0.1]], stale={stale})
    assert rebalance(snapshot, loads, crowd(), budget=9).moves == ()
    assert rebalance(snapshot, loads[:1], crowd(), budget=9).moves == ()


def test_a_drained_source_is_left_to_its_drain() -> None:
    snapshot, loads = cell(1.2, 0.1, blocked="drained by its owner")
    assert rebalance(snapshot, loads, crowd(), budget=9) == Plan((), {})


@pytest.mark.parametrize("bad", [math.nan, math.inf, -5.0])
def test_work_whose_figures_are_none_counts_as_reserved_and_stays(bad: float) -> None:
    snapshot, loads = cell(1.2, 0.1)
    works = [work("odd", "a", bad, now=(bad, bad), spread=(bad, bad)), *crowd(count=5, mean=220)]
    plan = rebalance(snapshot, loads, works, budget=9)
    assert plan.moves
    assert "odd" not in [move.uid for move in plan.moves]
    assert all(math.isfinite(move.gain) for move in plan.moves)


# -- the budget


def test_a_bucket_of_moves() -> None:
    rules = Rules()
    assert allowance(1000, [], rules) == 100
    assert allowance(1000, [0.0] * 100, rules) == 0
    assert allowance(1000, [3600.0] * 100, rules) == 10
    assert allowance(8, [], rules) == 4
    assert allowance(8, [3600.0] * 4, rules) == 1
    assert allowance(8, [-50.0], rules) == 3


@settings(max_examples=20, derandomize=True, deadline=None)
@given(st.integers(100, 1500), st.lists(st.integers(1, 900), min_size=1, max_size=60), st.integers(1, 50))
def test_no_day_has_more_moves_than_the_goal_allows(works: int, waits: list[int], greed: int) -> None:
    begun: list[float] = []
    now = 0.0
    for wait in [*waits] * 10:
        now += wait * 20
        some = min(greed, allowance(works, [now - then for then in begun]))
        begun += [now] * some
    for first in begun:
        assert sum(first <= then < first + 86_400 for then in begun) <= 0.35 * works


# -- any cell


@st.composite
def cells(draw: st.DrawFn) -> tuple[Snapshot, tuple[Load, ...], list[Work]]:
    rng = random.Random(draw(st.integers(0, 10_000)))
    names = [f"n{index}" for index in range(draw(st.integers(1, 7)))]
    works, used = [], {name: [0, 0, 0] for name in names}
    groups: dict[str, dict[str, int]] = {"g": dict.fromkeys(names, 0)}
    for index in range(draw(st.integers(0, 25))):
        node = rng.choice(names[: max(1, len(names) // 2)])
        size = Resources(cpu_milli=rng.randint(1, 200), memory_mib=rng.randint(1, 200))
        grouped = rng.random() < 0.4
        request = Request(
            f"w{index}", size, "g" if grouped else "", rng.choice([1, 2, 3]) if grouped else None,
            frozenset(rng.sample(names, rng.randint(1, len(names)))) if rng.random() < 0.3 else frozenset(),
        )  # fmt: skip
        mean = rng.choice([rng.uniform(0, 400), rng.uniform(0, 400), math.nan])
        works.append(
            Work(
                request, node, (mean, rng.uniform(0, 300)), (rng.uniform(0, 100), 5.0), (rng.uniform(0, 400), 20.0),
                rng.choice(["", "x", "y"]), to=rng.choice(["", "", "", rng.choice(names)]),
                moved_s=rng.choice([None, 10.0, 5000.0]), held=rng.choice(["", "", "", "pods"]),
            )
        )  # fmt: skip
        used[node] = [have + more for have, more in zip(used[node], amounts(size), strict=True)]
        groups["g"][node] += grouped
    nodes = [Node(name, ROOM, tuple(used[name]), rng.choice(["", "", "", "unreachable"])) for name in names]  # type: ignore[arg-type]
    shares = [[rng.choice([rng.uniform(0, 1.5), math.nan]), rng.uniform(0, 0.6)] for _ in names]
    stale = {name for name in names if rng.random() < 0.15}
    return Snapshot.of(nodes, groups), load(names, shares, shares, stale=stale), works


@settings(max_examples=200, derandomize=True, deadline=None)
@given(cells(), st.integers(0, 6))
def test_every_plan_is_valid(found: tuple[Snapshot, tuple[Load, ...], list[Work]], budget: int) -> None:
    snapshot, loads, works = found
    plan = rebalance(snapshot, loads, works, budget=budget)
    again = rebalance(snapshot, loads, list(reversed(works)), budget=budget)
    assert plan == again, "neither order nor chance decides"
    assert len(plan.moves) <= min(budget, Rules().per_call)
    by_uid, by_name = {item.request.uid: item for item in works}, {item.name: item for item in loads}
    owners = [item.owner for item in works if item.to and item.owner]
    planned = {name: 0.0 for name in snapshot.names}
    for name in snapshot.names:
        own = sum(item.now[0] for item in works if item.node == name)
        parts = {part.resource: part.u for part in by_name[name].parts} if not by_name[name].stale else {}
        planned[name] = max(0.0, parts.get("cpu", 0.0) * 1000 - own)
    for item in works:
        planned[item.to or item.node] += item.mean[0] if item.mean[0] >= 0 else item.request.resources.cpu_milli
    room = snapshot
    for move in plan.moves:
        item = by_uid.pop(move.uid)  # a second move of it would not be found
        assert item.node == move.source != move.destination
        assert not item.held
        assert not item.to
        assert item.moved_s is None or item.moved_s >= 1800
        assert item.owner == "" or item.owner not in owners
        owners.append(item.owner or "-")
        source, to = by_name[move.source], by_name[move.destination]
        assert source.mark == "overloaded"
        assert not source.stale
        assert to.mark != "overloaded"
        assert not to.stale
        index = room.names.index(move.destination)
        assert feasible(room, item.request)[index]
        used = room.used.copy()
        used[index] += amounts(item.request.resources)
        assert (used[index] <= room.capacity[index]).all()
        beside = {**room.groups.get(item.request.group, {})}
        beside[move.destination] = beside.get(move.destination, 0) + 1
        room = Snapshot(
            room.names,
            room.capacity,
            used,
            room.accelerators,
            room.blocked,
            {**room.groups, item.request.group: beside},
        )
        planned[move.destination] += item.mean[0]
        planned[move.source] -= item.mean[0]
        assert planned[move.destination] <= to.limit * 1000 + 1e-6
        assert move.gain >= Rules().least
        assert move.reason


# -- habit


def test_a_habit_outlives_a_spike_and_follows_a_change() -> None:
    steady, spike, risen = [20.0] * 40, [20.0] * 39 + [90.0], [20.0] * 20 + [60.0] * 20
    found = habit([steady, spike, risen])
    assert found.mean[0] == pytest.approx(20.0)
    assert found.mean[1] == pytest.approx(27.1, abs=0.2)
    assert 54 < found.mean[2] < 60
    assert found.spread[0] < found.spread[1]


def test_a_habit_has_gaps_and_a_beginning() -> None:
    found = habit([[math.nan, 5.0, math.inf, 5.0, -1.0, 5.0], [math.nan] * 4 + [5.0, 5.0]])
    assert found.known.tolist() == [True, False]
    assert found.mean[0] == pytest.approx(5.0)
    assert habit([[]]).known.tolist() == [False]
    with pytest.raises(Invalid):
        habit([1.0, 2.0])


def test_the_limit_is_the_nine_of_ten_quantile() -> None:
    assert pytest.approx(1.2816, abs=1e-4) == Z
