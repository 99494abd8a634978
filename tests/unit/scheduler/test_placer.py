"""The engine of placing, against a checker that books with plain integers and against the rules in words."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lepton_ai.scheduler.feasible import feasible
from lepton_ai.scheduler.mix import Mix
from lepton_ai.scheduler.place import Placement, place, plan
from lepton_ai.scheduler.placer import Placer
from lepton_ai.scheduler.snapshot import Node, Request, Snapshot, devices_of, taking
from lepton_ai.scheduler.verdict import verdict
from lepton_ai.spec.workload import Resources

KINDS = st.sampled_from([None, "A10", "H100", "A10|H100"])
TAINTS = [frozenset[str](), frozenset({"gpu=only"}), frozenset({"gpu=only", "team=red"})]
SIZES = [0, 160, 470, 500, 810, 1000, 2000, 4000, 1500]


@st.composite
def nodes(draw: st.DrawFn) -> list[Node]:
    found = []
    for index in range(draw(st.integers(1, 5))):
        count = draw(st.sampled_from([0, 1, 4]))
        used = tuple(draw(st.sampled_from([0, 0, 470, 1000])) for _ in range(count))
        capacity = Resources(
            cpu_milli=draw(st.integers(500, 9000)),
            memory_mib=draw(st.integers(500, 9000)),
            accelerator_milli=1000 * count,
            accelerator_type=draw(st.sampled_from(["A10", "H100"])) if count else None,
        )
        found.append(
            Node(
                f"node-{index}",
                capacity,
                (draw(st.integers(0, 2000)), draw(st.integers(0, 2000)), sum(used)),
                draw(st.sampled_from(["", "", "", "unreachable"])),
                draw(st.sampled_from(["", "10.0.0.1"])),
                used,
                {"zone": draw(st.sampled_from(["a", "b"]))},
                draw(st.sampled_from(TAINTS[:1] * 3 + TAINTS)),
                draw(st.sampled_from(["", "", "team"])),
                draw(st.sampled_from([0.0, 0.0, 0.5, 0.9])),
                draw(st.sampled_from([1.0, 0.85])),
            )
        )
    return found


@st.composite
def requests(draw: st.DrawFn, most: int = 8) -> list[Request]:
    found = []
    for index in range(draw(st.integers(1, most))):
        resources = Resources(
            cpu_milli=draw(st.integers(1, 3000)),
            memory_mib=draw(st.integers(1, 3000)),
            accelerator_milli=draw(st.sampled_from(SIZES)),
            accelerator_type=draw(KINDS),
        )
        found.append(
            Request(
                f"r{index}",
                resources,
                draw(st.sampled_from(["a", "b", ""])),
                draw(st.sampled_from([None, None, 1, 2])),
                frozenset(draw(st.lists(st.sampled_from(["node-0", "node-1"]), max_size=1))),
                frozenset(draw(st.lists(st.sampled_from([80, 81]), max_size=1))),
                labels=draw(st.sampled_from([{}, {}, {"zone": "a"}])),
                tolerates=draw(st.sampled_from(TAINTS)),
                reservation=draw(st.sampled_from(["", "", "team"])),
                burst=draw(st.booleans()),
                avoid=frozenset(draw(st.lists(st.sampled_from(["a", "b"]), max_size=1))),
                near=frozenset(draw(st.lists(st.sampled_from(["a", "b"]), max_size=1))),
            )
        )
    return found


def wrong(cell: list[Node], placements: tuple[Placement, ...]) -> str:
    """What breaks a rule, booked here with plain integers; "" when nothing does."""
    room = {n.name: [n.capacity.cpu_milli - n.used[0], n.capacity.memory_mib - n.used[1]] for n in cell}
    cards = {n.name: [1000 - used for used in n.devices] for n in cell}
    known = {n.name: n for n in cell}
    stand: dict[str, list[str]] = defaultdict(list)
    ports: set[tuple[str, int]] = set()
    for item in placements:
        if item.node is None:
            continue
        ask, own, node = item.request, item.request.resources, known[item.node]
        milli = own.accelerator_milli
        whole = -(-milli // 1000) if milli >= 1000 else 0
        wanted = whole or (1 if milli else 0)
        room[item.node][0] -= own.cpu_milli
        room[item.node][1] -= own.memory_mib
        if min(room[item.node]) < 0:
            return f"{item.node} is over its capacity"
        if len(item.devices) != wanted or len(set(item.devices)) != wanted:
            return f"{ask.uid} wants {milli} and has accelerators {item.devices}"
        for device in item.devices:
            if whole and cards[item.node][device] != 1000:
                return f"{ask.uid} was given an accelerator that is in use"
            cards[item.node][device] -= 1000 if whole else milli
            if cards[item.node][device] < 0:
                return f"accelerator {device} of {item.node} is over its capacity"
        if milli and own.accelerator_type and node.capacity.accelerator_type not in own.accelerator_type.split("|"):
            return "another type"
        if node.blocked or (ask.nodes and item.node not in ask.nodes) or not ask.labels.items() <= node.labels.items():
            return f"{item.node} does not take it"
        if node.taints - ask.tolerates or (node.reservation != ask.reservation and not ask.burst):
            return f"{item.node} is kept for others"
        if any(group in ask.avoid for group in stand[item.node]):
            return "it stands beside what it avoids"
        if ask.per_node is not None and stand[item.node].count(ask.group) >= ask.per_node:
            return "too many of a group"
        stand[item.node].append(ask.group)
        for port in ask.ports if node.address else ():
            if (node.address, port) in ports:
                return f"port {port} given twice"
            ports.add((node.address, port))
    return ""


@settings(max_examples=150, deadline=None)
@given(nodes(), requests())
def test_every_plan_is_valid_and_nothing_is_lost_or_placed_twice(cell: list[Node], asked: list[Request]) -> None:
    found = place(Snapshot.of(cell), asked)
    assert [item.request for item in found] == asked
    assert wrong(cell, found) == ""


def test_the_checker_can_fail() -> None:
    node = Node("n", Resources(cpu_milli=10, memory_mib=10, accelerator_milli=1000), devices=(0,))
    ask = Request("r", Resources(cpu_milli=5, memory_mib=5, accelerator_milli=600))
    assert wrong([node], (Placement(ask, "n", "", devices=(0,)),)) == ""
    assert "over its capacity" in wrong([node], (Placement(ask, "n", "", devices=(0,)),) * 2)
    assert "has accelerators" in wrong([node], (Placement(ask, "n", ""),))


@settings(max_examples=120, deadline=None)
@given(nodes(), requests())
def test_placed_exactly_where_the_rules_allow(cell: list[Node], asked: list[Request]) -> None:
    """A request finds a node when, and only when, the rules allow one; in words they say the same."""
    placer = Placer(Snapshot.of(cell))
    for request in asked:
        before = placer.snapshot()
        allowed, said = feasible(before, request), verdict(before, request)
        assert [text == "fits" for text in said.values()] == list(allowed)
        placement = placer.place(request)
        assert (placement.node is not None) == bool(allowed.any())
        if placement.node is not None:
            assert allowed[before.names.index(placement.node)]


@settings(max_examples=80, deadline=None)
@given(nodes(), requests(), st.integers(0, 7))
def test_what_is_kept_in_mind_is_what_would_be_worked_out_anew(
    cell: list[Node], asked: list[Request], gone: int
) -> None:
    """After placing and giving back, the next decision is that of an engine that begins with the same cell."""
    placer = Placer(Snapshot.of(cell))
    done = [placer.place(request) for request in asked]
    for item in done[gone:]:
        placer.undo(item)
    fresh = Placer(placer.snapshot(), placer.mix)
    placer._learn()  # the statistics of this moment, as the fresh one has them
    for request in asked:
        assert placer.place(request) == fresh.place(request)


@settings(max_examples=60, deadline=None)
@given(nodes(), requests(), st.randoms())
def test_equal_cells_give_equal_plans(cell: list[Node], asked: list[Request], random: object) -> None:
    shuffled = list(cell)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert place(Snapshot.of(cell), asked) == place(Snapshot.of(shuffled), asked)


@settings(max_examples=80, deadline=None)
@given(nodes(), requests(1), st.integers(0, 2000), st.floats(0, 2), st.floats(0.1, 1))
def test_more_room_and_more_load_never_make_a_placeable_request_unplaceable(
    cell: list[Node], asked: list[Request], more: int, planned: float, limit: float
) -> None:
    request = asked[0]
    if place(Snapshot.of(cell), [request])[0].node is None:
        return
    wider = [
        replace(n, capacity=n.capacity.model_copy(update={"cpu_milli": n.capacity.cpu_milli + more})) for n in cell
    ]
    assert place(Snapshot.of(wider), [request])[0].node is not None
    assert place(Snapshot.of([*cell, replace(cell[0], name="node-9")]), [request])[0].node is not None
    loaded = [replace(n, planned=planned, limit=limit) for n in cell]
    assert place(Snapshot.of(loaded), [request])[0].node is not None


BIG = Resources(cpu_milli=8000, memory_mib=8000, accelerator_milli=4000, accelerator_type="A10")


def share(milli: int, cpu: int = 10) -> Request:
    return Request("r", Resources(cpu_milli=cpu, memory_mib=10, accelerator_milli=milli))


def test_shares_are_put_together_as_they_fit_best() -> None:
    """Of three rests the one that a 320 leaves most useful, when 650 and 320 come in pairs."""
    mix = Mix()
    mix.add(share(650).resources, 50)
    mix.add(share(320).resources, 50)
    node = Node("n", BIG, (0, 0, 1650), devices=(0, 650, 1000, 0))
    assert place(Snapshot.of([node]), [share(320)], mix=mix)[0].devices == (1,)
    assert place(Snapshot.of([node]), [share(650)], mix=mix)[0].devices == (0,)


def test_processors_are_kept_for_accelerators_that_need_them() -> None:
    """Work without accelerators goes where it strands none, though the other node is the fuller one."""
    mix = Mix()
    mix.add(Resources(cpu_milli=2000, memory_mib=100, accelerator_milli=1000), 10)
    lean = Node("lean", BIG, (1000, 1000, 0))
    rich = Node("rich", BIG.model_copy(update={"cpu_milli": 32_000}))
    request = Request("r", Resources(cpu_milli=4000, memory_mib=100))
    assert place(Snapshot.of([lean, rich]), [request], mix=mix)[0].node == "rich"


def test_below_the_limit_first_then_the_least_planned() -> None:
    small = Request("r", Resources(cpu_milli=100, memory_mib=100))
    calm, busy, worse = Node("calm", BIG), Node("busy", BIG, (4000, 4000, 0)), Node("worse", BIG, (5000, 5000, 0))
    assert place(Snapshot.of([calm, busy]), [small])[0].node == "busy"
    busy, worse = replace(busy, planned=0.9, limit=0.85), replace(worse, planned=1.2, limit=0.85)
    assert place(Snapshot.of([calm, busy, worse]), [small])[0].node == "calm"
    assert place(Snapshot.of([busy, worse]), [small])[0].node == "busy"


def test_near_breaks_ties_and_a_reservation_comes_before_lending() -> None:
    cell = [Node(f"node-{index}", BIG, reservation=name) for index, name in enumerate(("other", "", "mine"))]
    small = Request("r", Resources(cpu_milli=100, memory_mib=100))
    snapshot = Snapshot.of(cell, {"web": {"node-1": 2}})
    assert place(snapshot, [replace(small, reservation="mine", burst=True)])[0].node == "node-2"
    cell[2] = replace(cell[2], blocked="unreachable")
    assert place(Snapshot.of(cell), [replace(small, reservation="mine", burst=True)])[0].node == "node-1"
    plain = Snapshot.of([Node(f"node-{index}", BIG) for index in range(3)], {"web": {"node-1": 2}})
    assert place(plain, [replace(small, near=frozenset({"web"}))])[0].node == "node-1"
    assert place(plain, [replace(small, avoid=frozenset({"web"}))])[0].node == "node-0"


def test_a_gang_that_finds_no_room_leaves_nothing_behind() -> None:
    placer = Placer(Snapshot.of([Node("n", BIG)]))
    before = placer.snapshot()
    whole = Request("w", Resources(cpu_milli=100, memory_mib=100, accelerator_milli=3000), "g", ports=frozenset({80}))
    found = plan(placer, [whole, replace(whole, uid="v")], together=True)
    assert [item.node for item in found] == [None, None]
    assert "in pieces" in found[0].nodes["n"] or "full: accelerator" in found[0].nodes["n"]
    after = placer.snapshot()
    assert (after.used == before.used).all()
    assert (after.devices == before.devices).all()
    assert not after.groups.get("g")


def test_what_others_do_is_noted() -> None:
    placer = Placer(Snapshot.of([Node("a", BIG), Node("b", BIG)]))
    request = share(1000)
    assert placer.place(request).node == "a"
    placer.note("a", (8000, 8000, 4000), (1000,) * 4)
    assert placer.place(request).node == "b"
    placer.note("a", (0, 0, 0), (0,) * 4)
    placer.note("b", (8000, 8000, 4000), (1000,) * 4)
    placer.note("nobody", (1, 1, 1), ())
    assert placer.place(request) == Placement(request, "a", "the only node that fits", devices=(0,))


def test_what_was_noted_and_is_taken_back_leaves_the_load_to_plan_for() -> None:
    placer = Placer(Snapshot.of([Node("a", BIG, planned=0.5)]))
    placer.note("a", (4000, 800, 0), (0,) * 4)
    placer.note("a", (0, 0, 0), (0,) * 4)
    assert placer.snapshot().planned.tolist() == pytest.approx([0.5])


@pytest.mark.parametrize(("milli", "used"), [(0, (0, 0, 500)), (600, (600, 0, 500)), (2400, (1000, 1000, 900))])
def test_devices_follow_from_what_is_used(milli: int, used: tuple[int, ...]) -> None:
    assert devices_of(Resources(accelerator_milli=2500), milli) == used


def test_shares_of_unknown_accelerators_are_counted_as_tightly_as_can_be() -> None:
    assert taking((0, 470, 0), 470) == (0, 940, 0)
    assert taking((0, 470, 0), 2000) == (1000, 470, 1000)
    assert taking((600, 600), 600) == (1000, 800)  # it fits nowhere, and counts all the same
    held = Snapshot.of([Node("n", BIG)]).holding({"n": (10, 20, 1500)})
    assert held.used.tolist() == [[10, 20, 1500]]
    assert np.sort(held.devices[0]).tolist() == [0, 0, 500, 1000]
