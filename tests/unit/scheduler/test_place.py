"""Placing: capacity, determinism, spread, packing, and verdicts that agree with the rules."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from lepton_ai.scheduler.feasible import feasible
from lepton_ai.scheduler.place import place
from lepton_ai.scheduler.snapshot import Node, Request, Snapshot, amounts
from lepton_ai.scheduler.verdict import verdict
from lepton_ai.spec.container import Port
from lepton_ai.spec.workload import Resources, Template

PREFERRED = ["", "node-1", "node-9"]
KINDS = st.sampled_from([None, "A10", "H100"])


@st.composite
def nodes(draw: st.DrawFn) -> list[Node]:
    found = []
    shared = draw(st.sampled_from(["", "10.0.0.1"]))
    for index in range(draw(st.integers(0, 6))):
        capacity = Resources(
            cpu_milli=draw(st.integers(1, 4000)),
            memory_mib=draw(st.integers(1, 4000)),
            accelerator_milli=draw(st.sampled_from([0, 1000, 4000])),
            accelerator_type=draw(KINDS),
        )
        used = (draw(st.integers(0, 1000)), draw(st.integers(0, 1000)), 0)
        found.append(Node(f"node-{index}", capacity, used, draw(st.sampled_from(["", "", "", "unreachable"])), shared))
    return found


@st.composite
def requests(draw: st.DrawFn) -> list[Request]:
    found = []
    for index in range(draw(st.integers(0, 8))):
        resources = Resources(
            cpu_milli=draw(st.integers(1, 2000)),
            memory_mib=draw(st.integers(1, 2000)),
            accelerator_milli=draw(st.sampled_from([0, 0, 500, 1000])),
            accelerator_type=draw(KINDS),
        )
        group = draw(st.sampled_from(["a", "b"]))
        allowed = frozenset(draw(st.lists(st.sampled_from(["node-0", "node-1", "node-9"]), max_size=2)))
        ports = frozenset(draw(st.lists(st.sampled_from([80, 81]), max_size=2)))
        per_node = draw(st.sampled_from([None, 1, 2]))
        found.append(Request(f"r{index}", resources, group, per_node, allowed, ports, draw(st.sampled_from(PREFERRED))))
    return found


@settings(max_examples=150)
@given(nodes(), requests())
def test_no_node_is_filled_over_its_capacity(cell: list[Node], asked: list[Request]) -> None:
    plan = place(Snapshot.of(cell), asked)
    assert [item.request.uid for item in plan] == [item.uid for item in asked]
    for node in cell:
        taken = [item.request for item in plan if item.node == node.name]
        if not taken:
            continue
        assert not node.blocked
        for column, (capacity, used) in enumerate(zip(amounts(node.capacity), node.used, strict=True)):
            added = sum(amounts(request.resources)[column] for request in taken)
            assert added == 0 or used + added <= capacity
        for request in taken:
            if request.resources.accelerator_milli and request.resources.accelerator_type:
                assert node.capacity.accelerator_type == request.resources.accelerator_type


@settings(max_examples=100)
@given(nodes(), requests(), st.randoms())
def test_equal_cells_give_equal_plans_whatever_the_order_of_nodes(
    cell: list[Node], asked: list[Request], random: object
) -> None:
    shuffled = list(cell)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    snapshot = Snapshot.of(cell)
    before = snapshot.used.copy()
    first = place(snapshot, asked)
    assert first == place(Snapshot.of(shuffled), asked)
    assert (snapshot.used == before).all()


@settings(max_examples=150)
@given(nodes(), requests(), st.dictionaries(st.sampled_from(["node-0", "node-1"]), st.integers(0, 3)))
def test_every_node_has_a_verdict_that_agrees_with_the_rules(
    cell: list[Node], asked: list[Request], beside: dict[str, int]
) -> None:
    snapshot = Snapshot.of(cell, {"a": beside})
    for request in asked:
        said = verdict(snapshot, request)
        allowed = feasible(snapshot, request)
        assert list(said) == list(snapshot.names)
        assert [text == "fits" for text in said.values()] == list(allowed)


def _cell(count: int = 3) -> list[Node]:
    return [Node(f"node-{index}", Resources(cpu_milli=1000, memory_mib=1000)) for index in range(count)]


def test_without_spread_the_fullest_node_that_fits_is_taken() -> None:
    cell = _cell()
    cell[1] = Node("node-1", cell[1].capacity, (500, 500, 0))
    plan = place(Snapshot.of(cell), [Request("r", Resources(cpu_milli=400, memory_mib=400))])
    assert plan[0].node == "node-1"
    plan = place(Snapshot.of(cell), [Request("r", Resources(cpu_milli=600, memory_mib=100))])
    assert plan[0].node == "node-0"


def test_spread_is_hard_and_even() -> None:
    small = Resources(cpu_milli=10, memory_mib=10)
    plan = place(Snapshot.of(_cell()), [Request(f"r{i}", small, "g", 1) for i in range(4)])
    assert sorted(str(item.node) for item in plan[:3]) == ["node-0", "node-1", "node-2"]
    assert plan[3].node is None
    assert all("spread: holds 1" in text for text in plan[3].nodes.values())


def test_together_means_all_or_none_and_says_who_found_no_room() -> None:
    big = Resources(cpu_milli=900, memory_mib=10)
    plan = place(Snapshot.of(_cell()), [Request(f"w{i}", big) for i in range(4)], together=True)
    assert [item.node for item in plan] == [None] * 4
    assert "worker 4 of 4" in plan[0].reason
    assert "full: cpu 900 wanted, 100 of 1000 free" in plan[0].nodes["node-0"]


def test_too_small_is_told_from_full() -> None:
    plan = place(Snapshot.of(_cell(1)), [Request("r", Resources(cpu_milli=2000, memory_mib=10))])
    assert plan[0].nodes["node-0"].startswith("too small: cpu 2000 wanted, 1000 in all")
    assert "the cell has no node" in place(Snapshot.of([]), [Request("r", Resources())])[0].reason


SMALL = Resources(cpu_milli=10, memory_mib=10)


@settings(max_examples=100)
@given(nodes(), requests())
def test_nobody_goes_where_it_may_not_and_no_port_is_given_twice(cell: list[Node], asked: list[Request]) -> None:
    taken = {"10.0.0.1": {80: "another"}}
    given_out: set[tuple[str, int]] = {("10.0.0.1", 80)}
    addresses = {node.name: node.address for node in cell}
    for item in place(Snapshot.of(cell, {}, taken), asked):
        if item.node is None:
            continue
        assert not item.request.nodes or item.node in item.request.nodes
        if addresses[item.node]:
            mine = {(addresses[item.node], port) for port in item.request.ports}
            assert not mine & given_out
            given_out |= mine
    assert taken == {"10.0.0.1": {80: "another"}}


def test_who_has_the_port_is_said() -> None:
    cell = [Node(f"node-{index}", SMALL, address="127.0.0.1") for index in range(2)]
    snapshot = Snapshot.of(cell, {}, {"127.0.0.1": {8080: "web-1-abc"}})
    (found,) = place(snapshot, [Request("r", SMALL, ports=frozenset({8080, 9}))])
    assert found.node is None
    assert found.nodes["node-1"] == "port taken: port 8080 of 127.0.0.1 is taken by web-1-abc"
    assert "2 port taken" in found.reason
    (found,) = place(snapshot, [Request("r", SMALL, ports=frozenset({8081}))])
    assert found.node == "node-0"


def test_the_preferred_node_is_taken_when_it_may_be() -> None:
    cell = _cell()
    wanted = Request("r", SMALL, prefer="node-2")
    (found,) = place(Snapshot.of(cell), [wanted])
    assert (found.node, found.reason) == ("node-2", "where it ran before")
    cell[2] = Node("node-2", SMALL, blocked="unreachable")
    assert place(Snapshot.of(cell), [wanted])[0].node == "node-0"


def test_a_request_is_made_from_a_template() -> None:
    ports = (Port(number=22, exposed=True), Port(number=23))
    template = Template(command=("x",), port=80, ports=ports, nodes=("node-1",), resources=SMALL)
    assert Request.of("r", template, "g", 1) == Request("r", SMALL, "g", 1, frozenset({"node-1"}), frozenset({22, 80}))
