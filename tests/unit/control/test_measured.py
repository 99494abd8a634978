"""What a share means: nodes that share a machine, hogs within and without, and figures that cannot be."""

from __future__ import annotations

import math
from typing import Any

import pytest

from lepton_ai.control.measured import RESOURCES, measured, work
from lepton_ai.spec.replica import Machine, NodeGauges, NodeReport, ReplicaReport
from lepton_ai.spec.workload import Resources

NAN = math.nan


def report(node: str, own_milli: float = 0, own_mib: float = 0, machine: str = "m", **fields: Any) -> NodeReport:
    capacity = fields.pop("capacity", Resources(cpu_milli=1000, memory_mib=1000))
    values = {"cpu_used_milli": own_milli, "memory_used_mib": own_mib, "replicas": (), "gauges": None, **fields}
    return NodeReport.model_construct(node=node, capacity=capacity, machine=Machine(id=machine), **values)


def machine_of(cpu_milli: float, memory_used_mib: float = 500, **more: Any) -> NodeGauges:
    """Two cores and 3000 MiB, of which two nodes promise two cores and 2000 MiB."""
    return NodeGauges(
        samples=5, cores_milli=2000, cpu_milli=cpu_milli, memory_mib=3000, memory_used_mib=memory_used_mib, **more
    )


def shares(*reports: NodeReport) -> dict[str, dict[str, float]]:
    found = measured({one.node: one for one in reports})
    return {
        name: {resource: round(value, 4) for resource, value in zip(RESOURCES, row, strict=True) if value == value}
        for name, row in zip(found.names, found.shares.tolist(), strict=True)
    }


def cpu(*reports: NodeReport) -> list[float]:
    return [found["cpu"] for found in shares(*reports).values()]


def test_a_replica_that_burns_shows_on_its_own_node_alone() -> None:
    gauges = machine_of(1550)
    assert cpu(report("a", 1500, gauges=gauges), report("b", 50, gauges=gauges)) == [1.5, 0.05]


def test_a_program_outside_the_cell_shows_on_every_node_of_its_machine_and_on_no_other() -> None:
    gauges = machine_of(1600)
    found = cpu(report("a", 500, gauges=gauges), report("b", 100, gauges=gauges), report("c", 300, machine="other"))
    assert found == [0.5 + 0.5, 0.1 + 0.5, 0.3]


def test_a_machine_that_is_full_is_full_for_all_its_nodes() -> None:
    gauges = machine_of(2000)
    assert cpu(report("a", gauges=gauges), report("b", gauges=gauges)) == [1.0, 1.0]


def test_what_the_machine_keeps_for_others_may_be_used_by_others() -> None:
    own = report("a", 0, 300, gauges=machine_of(0, memory_used_mib=1300))
    assert shares(own, report("b"))["a"]["memory"] == 0.3  # 1000 MiB of others, as is left beside the nodes
    full = report("a", 0, 300, gauges=machine_of(0, memory_used_mib=1900))
    assert shares(full, report("b"))["a"]["memory"] == pytest.approx(0.3 + 600 / 2000)


def test_moments_between_two_looks_make_no_negative_use() -> None:
    assert cpu(report("a", 900, gauges=machine_of(100)), report("b", gauges=machine_of(100))) == [0.9, 0.0]


def test_old_agents_and_machines_without_a_name_count_their_own_use() -> None:
    alone = report("b", 500, gauges=machine_of(1500), machine="")
    assert cpu(report("a", 250, machine=""), alone) == [0.25, 0.5]  # one core of two is not promised by it


def test_gpus_are_the_machines_and_only_of_nodes_that_have_some() -> None:
    gauges = machine_of(0, gpus=2, gpu_used=0.4, gpu_memory_mib=1000, gpu_memory_used_mib=700, io_stall=0.2)
    with_gpu = Resources(cpu_milli=1000, memory_mib=1000, accelerator_milli=2000, accelerator_type="A")
    found = shares(report("a", gauges=gauges, capacity=with_gpu), report("b", gauges=gauges))
    assert (found["a"]["gpu"], found["a"]["io"]) == (0.7, 0.2)
    assert "gpu" not in found["b"]


def test_a_node_without_capacity_has_no_share_of_it() -> None:
    nothing = Resources.model_construct(cpu_milli=0, memory_mib=0, accelerator_milli=0, accelerator_type=None)
    assert shares(report("a", 100, 100, capacity=nothing)) == {"a": {}}
    assert measured({}).shares.shape == (0, len(RESOURCES))


LIES: list[tuple[dict[str, Any], str]] = [
    ({"own_milli": NAN}, "cpu_used_milli"),
    ({"own_milli": -1}, "cpu_used_milli"),
    ({"own_milli": 10**30}, "cpu_used_milli"),
    ({"own_mib": math.inf}, "memory_used_mib"),
    ({"own_mib": "much"}, "memory_used_mib"),
    ({"gauges": machine_of(-5)}, "cpu_milli"),
    ({"gauges": machine_of(9000)}, "cpu_milli"),
    ({"gauges": machine_of(5, memory_used_mib=9000)}, "machine_memory_used_mib"),
    ({"gauges": machine_of(5, io_stall=8.0)}, "io_stall"),
    ({"gauges": machine_of(5, gpu_used=NAN)}, "gpu_used"),
    ({"gauges": NodeGauges(cpu_stall=NAN)}, "cpu_stall"),
]


@pytest.mark.parametrize(("lie", "name"), LIES)
def test_a_report_with_a_figure_that_cannot_be_is_no_measurement(lie: dict[str, Any], name: str) -> None:
    values = {"own_milli": 100, "own_mib": 100, **lie}
    honest = report("b", 200, 100, gauges=machine_of(400))
    found = measured({"a": report("a", **values), "b": honest})
    assert found.lies == {"a": (name,)}
    assert [value for value in found.shares[0].tolist() if value == value] == []
    alone = measured({"b": honest})
    assert abs(found.shares[1, 0] - alone.shares[0, 0]) <= 0.2  # what a lying node uses is nobody's


def test_what_replicas_use_in_cores_and_gib() -> None:
    copies = [
        ReplicaReport.model_construct(uid="a", phase="ready", pid=5, cpu_milli=1500, memory_mib=512),
        ReplicaReport.model_construct(uid="lies", phase="ready", pid=6, cpu_milli=-1, memory_mib=NAN),
        ReplicaReport.model_construct(uid="gone", phase="exited", pid=None, cpu_milli=0, memory_mib=0),
        ReplicaReport.model_construct(uid="coming", phase="fetching", pid=None, cpu_milli=0, memory_mib=0),
    ]
    uids, used = work({"a": report("a", replicas=tuple(copies))})
    assert uids == ("a", "lies")
    assert used[0].tolist() == [1.5, 0.5]
    assert [value for value in used[1].tolist() if value == value] == []
