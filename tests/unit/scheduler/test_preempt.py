"""Preemption: whom it may end, that it helps, that it is cheap, gangs whole, floors kept, lent nodes given back."""

from __future__ import annotations

import random
from collections import Counter
from itertools import chain, combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lepton_ai.scheduler.preempt import Preemption, awaited, preempt
from lepton_ai.scheduler.snapshot import Node, Request, Snapshot, amounts
from lepton_ai.scheduler.without import Held
from lepton_ai.spec.workload import Resources

KIND = "H100"


@st.composite
def cells(draw: st.DrawFn) -> tuple[Snapshot, list[Held], list[Request]]:
    """A few nodes filled with replicas, single and in gangs, and one to three requests."""
    gpus = draw(st.booleans())
    sizes = {
        f"node-{index}": Resources(
            cpu_milli=4000,
            memory_mib=4000,
            accelerator_milli=2000 if gpus else 0,
            accelerator_type=KIND if gpus else None,
        )
        for index in range(draw(st.integers(1, 4)))
    }
    used = {name: [0, 0, 0] for name in sizes}
    held: list[Held] = []
    for index in range(draw(st.integers(0, 9))):
        node = draw(st.sampled_from(sorted(sizes)))
        want = (draw(st.sampled_from([500, 1000, 2000])), draw(st.sampled_from([100, 1500])), 0)
        want = (*want[:2], draw(st.sampled_from([0, 1000]))) if gpus else want
        if any(have + more > most for have, more, most in zip(used[node], want, amounts(sizes[node]), strict=True)):
            continue
        used[node] = [have + more for have, more in zip(used[node], want, strict=True)]
        gang = draw(st.booleans())
        owner = f"gang-{draw(st.integers(0, 1))}" if gang else f"owner-{draw(st.integers(0, 2))}"
        # What is recorded of an owner holds for all that is of it.
        fixed = random.Random(owner)
        held.append(
            Held(
                f"h{index}",
                f"h{index}",
                node,
                want,
                owner,
                "team",
                fixed.choice([1000, 4000, 8000]),
                fixed.random() < 0.8,
                gang,
                0 if gang else fixed.choice([0, 0, 1]),
                draw(st.integers(0, 3)),
            )
        )
    resources = Resources(
        cpu_milli=draw(st.sampled_from([1000, 2500, 4000])),
        memory_mib=draw(st.sampled_from([100, 2000])),
        accelerator_milli=draw(st.sampled_from([0, 1000, 2000])) if gpus else 0,
    )
    priority = draw(st.sampled_from([1000, 4000, 9000]))
    asked = [Request(f"r{index}", resources, priority=priority) for index in range(draw(st.integers(1, 3)))]
    nodes = [Node(name, size, tuple(used[name])) for name, size in sizes.items()]  # type: ignore[arg-type]
    return Snapshot.of(nodes), held, asked


def _over(snapshot: Snapshot, held: list[Held], found: Preemption) -> list[str]:
    """An independent checker: what is wrong with a plan, from the sums alone."""
    gone = {item.uid for item in found.victims}
    used = {name: list(row) for name, row in zip(snapshot.names, snapshot.used.tolist(), strict=True)}
    for item in held:
        if item.uid in gone:
            used[item.node] = [have - less for have, less in zip(used[item.node], item.amounts, strict=True)]
    wrong = []
    for placement in found.placements:
        if placement.node is None:
            wrong.append(f"{placement.request.uid} has no node")
            continue
        more = amounts(placement.request.resources)
        used[placement.node] = [have + want for have, want in zip(used[placement.node], more, strict=True)]
    for name, row in zip(snapshot.names, snapshot.capacity.tolist(), strict=True):
        if any(have > most for have, most in zip(used[name], row, strict=True)):
            wrong.append(f"{name} is over: {used[name]} of {row}")
    return wrong


@settings(max_examples=200, derandomize=True, deadline=None)
@given(cells())
def test_every_plan_is_valid_and_ends_only_what_may_be_ended(case: tuple[Snapshot, list[Held], list[Request]]) -> None:
    snapshot, held, asked = case
    before = snapshot.used.copy()
    found = preempt(snapshot, asked, held)
    assert (snapshot.used == before).all()
    if found is None:
        return
    assert _over(snapshot, held, found) == []
    assert [item.request for item in found.placements] == asked
    assert len({item.uid for item in found.victims}) == len(found.victims)
    owners = Counter(item.owner for item in held)
    ended = Counter(item.owner for item in found.victims)
    for item in found.victims:
        assert item.preemptible
        assert item.priority < asked[0].priority
        if item.gang:
            assert ended[item.owner] == owners[item.owner], "a gang goes whole or not at all"
        else:
            assert owners[item.owner] - ended[item.owner] >= item.keep
    assert found == preempt(snapshot, asked, list(reversed(held)))


@settings(max_examples=150, derandomize=True, deadline=None)
@given(cells())
def test_nobody_is_ended_without_whom_it_would_fit_too(case: tuple[Snapshot, list[Held], list[Request]]) -> None:
    """Minimal where the requests were put: sparing any one owner's share of the victims overfills a node."""
    snapshot, held, asked = case
    found = preempt(snapshot, asked, held)
    if found is None:
        return
    units = {(item.owner if item.gang else item.uid) for item in found.victims}
    for unit in units:
        left = tuple(item for item in found.victims if (item.owner if item.gang else item.uid) != unit)
        assert _over(snapshot, held, Preemption(found.placements, left, "")) != []


@settings(max_examples=150, derandomize=True, deadline=None)
@given(cells())
def test_one_request_ends_no_higher_priority_than_it_must_and_finds_room_when_there_is_any(
    case: tuple[Snapshot, list[Held], list[Request]],
) -> None:
    """Against all sets of victims: None only when none does, and the largest priority among them is the smallest."""
    snapshot, held, asked = case
    (request, *_) = asked
    found = preempt(snapshot, [request], held)
    units: dict[str, list[Held]] = {}
    for item in held:
        units.setdefault(item.owner if item.gang else item.uid, []).append(item)
    allowed = [
        unit for unit in units.values() if all(item.preemptible and item.priority < request.priority for item in unit)
    ]
    owners, best = Counter(item.owner for item in held), None
    for some in chain.from_iterable(combinations(allowed, size) for size in range(len(allowed) + 1)):
        gone = [item for unit in some for item in unit]
        ended = Counter(item.owner for item in gone)
        if any(not item.gang and owners[item.owner] - ended[item.owner] < item.keep for item in gone):
            continue
        for row, name in enumerate(snapshot.names):
            freed = [sum(item.amounts[c] for item in gone if item.node == name) for c in range(3)]
            free = (snapshot.capacity[row] - snapshot.used[row] + freed).tolist()
            if all(want == 0 or want <= have for want, have in zip(amounts(request.resources), free, strict=True)):
                worst = max((item.priority for item in gone), default=-1)
                best = worst if best is None else min(best, worst)
    if best is None:
        assert found is None
    elif not any(item.keep for item in held):  # which of an owner's stay is chosen node by node: good, not always best
        assert found is not None
        assert max((item.priority for item in found.victims), default=-1) == best


FULL = Resources(cpu_milli=4000, memory_mib=4000)


def _held(uid: str, node: str = "node-1", cpu: int = 2000, **more: object) -> Held:
    fields: dict[str, object] = {"owner": uid, "priority": 1000, "preemptible": True, **more}
    return Held(uid, uid, node, (cpu, 100, 0), **fields)  # type: ignore[arg-type]


def _cell(held: list[Held], nodes: int = 1) -> Snapshot:
    used = {f"node-{index}": [0, 0, 0] for index in range(1, nodes + 1)}
    for item in held:
        used[item.node] = [have + more for have, more in zip(used[item.node], item.amounts, strict=True)]
    return Snapshot.of(Node(name, FULL, tuple(row)) for name, row in used.items())  # type: ignore[arg-type]


def _ask(cpu: int = 2000, count: int = 1, **more: object) -> list[Request]:
    size = Resources(cpu_milli=cpu, memory_mib=100)
    return [Request(f"r{index}", size, **{"priority": 5000, **more}) for index in range(count)]  # type: ignore[arg-type]


def _ended(held: list[Held], asked: list[Request], nodes: int = 1, **more: object) -> list[str] | None:
    found = preempt(_cell(held, nodes), asked, held, **more)  # type: ignore[arg-type]
    return None if found is None else [item.uid for item in found.victims]


def test_the_lowest_priority_goes_first_then_fewer_then_the_youngest() -> None:
    assert _ended([_held("a", priority=2000), _held("b", priority=1000)], _ask()) == ["b"]
    assert _ended([_held("old", since_ms=1), _held("young", since_ms=9)], _ask()) == ["young"]
    two = [_held("a", cpu=2000), _held("b", cpu=2000), _held("c", "node-2", 4000)]
    assert _ended(two, _ask(4000), 2) == ["c"]
    assert _ended([_held(f"s{i}", cpu=500) for i in range(4)] + [_held("big")], _ask()) == ["big"]
    low = [_held(f"s{i}", cpu=1000, priority=500) for i in range(4)]
    assert _ended([*low, _held("x", "node-2", 4000, priority=900)], _ask(4000), 2) == ["s0", "s1", "s2", "s3"]


@pytest.mark.parametrize(("priority", "preemptible"), [(5000, True), (6000, True), (1000, False)])
def test_equals_superiors_and_who_did_not_agree_are_left_alone(priority: int, preemptible: bool) -> None:
    assert _ended([_held("a", cpu=4000, priority=priority, preemptible=preemptible)], _ask()) is None


def test_nothing_is_ended_when_that_does_not_help_all_of_a_gang() -> None:
    held = [_held("a", cpu=4000), _held("b", "node-2", 4000, preemptible=False)]
    assert _ended(held, _ask(3000, 2), 2) is None
    assert _ended(held, _ask(2000, 2), 2) == ["a"]


def test_a_gang_costs_its_whole_and_goes_whole() -> None:
    gang = [_held(f"g{i}", f"node-{i}", 4000, owner="gang", gang=True) for i in (1, 2, 3)]
    single = _held("single", "node-4", 4000, since_ms=-5)
    assert _ended([*gang, single], _ask(4000), 4) == ["single"]
    assert _ended(gang, _ask(4000), 3) == ["g1", "g2", "g3"]
    assert _ended(gang, _ask(4000, 3), 3) == ["g1", "g2", "g3"]
    mixed = [*gang[:2], _held("g3", "node-3", 4000, owner="gang", gang=True, preemptible=False)]
    assert _ended(mixed, _ask(4000), 3) is None


def test_of_an_owner_as_many_stay_as_it_needs() -> None:
    held = [_held(f"w{i}", f"node-{i}", 4000, owner="web", keep=2) for i in (1, 2, 3)]
    assert len(_ended(held, _ask(4000), 3) or ()) == 1
    assert _ended(held, _ask(4000, 2), 3) is None


def test_only_the_workspaces_that_lend_are_asked() -> None:
    held = [_held("a", cpu=4000, workspace="other")]
    assert _ended(held, _ask()) == ["a"]
    assert _ended(held, _ask(), workspaces=frozenset({"own"})) is None


def test_a_lent_node_is_given_back_whatever_the_priority() -> None:
    held = [_held("guest", cpu=4000, priority=9000, preemptible=False, lent="r1")]
    snapshot = Snapshot.of([Node("node-1", FULL, (4000, 100, 0), reservation="r1")])
    found = preempt(snapshot, _ask(priority=1, reservation="r1"), held)
    assert found is not None
    assert [item.uid for item in found.victims] == ["guest"]
    assert "only lent" in found.reason
    assert preempt(snapshot, _ask(priority=9999), held) is None


def test_the_decision_says_who_goes_and_why() -> None:
    held = [_held("a"), _held("b", priority=3000)]
    found = preempt(_cell(held), _ask(4000), held)
    assert found is not None
    assert found.reason == "ends 2 replicas of priority 3000 or less for one of 5000: 2 on node-1"
    free = preempt(_cell([]), _ask(), [])
    assert free is not None
    assert (free.victims, free.placements[0].node) == ((), "node-1")


def test_a_port_is_freed_with_who_holds_it() -> None:
    held = [_held("web", cpu=500)]
    snapshot = Snapshot.of([Node("node-1", FULL, (500, 100, 0), address="10.0.0.1")], {}, {"10.0.0.1": {80: "web"}})
    found = preempt(snapshot, _ask(ports=frozenset({80})), held)
    assert found is not None
    assert [item.uid for item in found.victims] == ["web"]


def test_what_ends_by_itself_is_waited_for_where_the_least_of_it_stands() -> None:
    held = [_held("a", cpu=1500), _held("b", cpu=1500), _held("c", "node-2", 3000)]
    found = awaited(_cell(held, 2), _ask(3000), held)
    assert found is not None
    assert ([item.node for item in found.placements], [item.uid for item in found.victims]) == (["node-2"], ["c"])
    assert awaited(_cell(held, 2), _ask(5000), held) is None
