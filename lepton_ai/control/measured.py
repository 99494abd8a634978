"""What nodes say they use, checked, as shares of what they have: u_i before it is floored.

Owns what a share means where nodes share a machine. A node's own use is that of its replicas. What else runs on the
machine (the cell's own processes, other people's programs, a hypervisor's other guests) is *foreign*; the part of it
for which the machine has no room beside what its nodes promise is taken from all of them alike:

    u = own / capacity + max(0, foreign - (machine - sum of capacities)) / sum of capacities

So a replica that burns processors shows on its own node alone, also above 1, and a program outside the cell on every
node of its machine. GPUs and the disk are the machine's: their shares are those of all its nodes.

A report in which one figure cannot be (no number, negative, more than the machine has) is no measurement at all: its
other figures are no truer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lepton_ai.spec.replica import NodeGauges, NodeReport

RESOURCES = ("cpu", "memory", "io", "gpu")
"""`io` is the share of time in which all that could run waited for a disk; `gpu` the larger of use and memory."""
FIGURES = (
    "cpu_used_milli", "memory_used_mib", "cores_milli", "cpu_milli", "memory_mib", "machine_memory_used_mib",
    "io_stall", "gpu_used", "gpu_memory_used_mib", "gpu_memory_mib", "cpu_stall", "memory_stall",
)  # fmt: skip
"""What is checked of a report, in the order of the columns below."""
CPU_MOST_MILLI, MEMORY_MOST_MIB = 1e7, 1e9
"""No machine has more; used where its own size is not known."""
SLACK = 1.5
"""Looks of different figures are moments apart: so far beyond the whole is still no lie."""
WORK = ("cpu_cores", "memory_gib")
"""The columns of :func:`work`."""


@dataclass(frozen=True, slots=True)
class Measured:
    """`shares`: (nodes, :data:`RESOURCES`), NaN where nothing was measured; `lies`: the figures that cannot be."""

    names: tuple[str, ...]
    shares: NDArray[np.float64]
    lies: Mapping[str, tuple[str, ...]]


def measured(reports: Mapping[str, NodeReport]) -> Measured:
    """The use of each node; of nodes that share a machine together."""
    names = tuple(sorted(reports))
    raw = _numbers([_figures(reports[name]) for name in names])
    capacity = np.zeros((len(names), 2))
    gpus = np.zeros(len(names), dtype=bool)
    machine: dict[str, int] = {}
    at = np.zeros(len(names), dtype=np.int64)
    for row, name in enumerate(names):
        report = reports[name]
        capacity[row] = report.capacity.cpu_milli, report.capacity.memory_mib
        gpus[row] = report.capacity.accelerator_milli > 0
        at[row] = machine.setdefault(report.machine.id or f"of {name}", len(machine))
    false = _lies(raw)
    raw[false.any(axis=1)] = np.nan
    shares = np.full((len(names), len(RESOURCES)), np.nan)
    for column, own, total, used in ((0, raw[:, 0], raw[:, 2], raw[:, 3]), (1, raw[:, 1], raw[:, 4], raw[:, 5])):
        shares[:, column] = _share(own, capacity[:, column], total, used, at)
    shares[:, 2] = np.minimum(raw[:, 6], 1.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        shares[gpus, 3] = np.fmax(raw[gpus, 7], raw[gpus, 8] / raw[gpus, 9])
    lies = {
        names[row]: tuple(FIGURES[column] for column in np.flatnonzero(false[row]).tolist())
        for row in np.flatnonzero(false.any(axis=1)).tolist()
    }
    return Measured(names, shares, lies)


def work(reports: Mapping[str, NodeReport]) -> tuple[tuple[str, ...], NDArray[np.float64]]:
    """The uids of all replicas that run, and what each uses, in :data:`WORK`; NaN where that cannot be."""
    running = [copy for report in reports.values() for copy in report.replicas if copy.pid is not None]
    said = [(copy.cpu_milli, copy.memory_mib) for copy in running]
    try:
        used = np.array(said, dtype=np.float64).reshape(-1, len(WORK))
    except (TypeError, ValueError, OverflowError):  # one of them is no number
        used = np.array([[_said(value) for value in pair] for pair in said]).reshape(-1, len(WORK))
    with np.errstate(invalid="ignore"):
        used[~((used >= 0) & (used <= (CPU_MOST_MILLI, MEMORY_MOST_MIB)))] = np.nan
    return tuple(copy.uid for copy in running), used / (1000, 1024)


def _share(
    own: NDArray[np.float64],
    capacity: NDArray[np.float64],
    total: NDArray[np.float64],
    used: NDArray[np.float64],
    at: NDArray[np.int64],
) -> NDArray[np.float64]:
    """One resource; `at` numbers the machine of each node."""
    ours = np.bincount(at, np.nan_to_num(own))[at]
    promised = np.bincount(at, capacity)[at]
    with np.errstate(divide="ignore", invalid="ignore"):
        foreign = np.maximum(used - ours, 0.0)
        beside = np.maximum(total - promised, 0.0)
        taken = np.nan_to_num(np.maximum(foreign - beside, 0.0) / promised)
        found: NDArray[np.float64] = np.where(capacity > 0, own / capacity + taken, np.nan)
    return found


def _figures(report: NodeReport) -> tuple[float | None, ...]:
    gauges = report.gauges or _NONE
    return (
        report.cpu_used_milli, report.memory_used_mib, gauges.cores_milli, gauges.cpu_milli, gauges.memory_mib,
        gauges.memory_used_mib, gauges.io_stall, gauges.gpu_used, gauges.gpu_memory_used_mib, gauges.gpu_memory_mib,
        gauges.cpu_stall, gauges.memory_stall,
    )  # fmt: skip


_NONE = NodeGauges()


def _numbers(said: list[tuple[float | None, ...]]) -> NDArray[np.float64]:
    """(nodes, figures). NaN: nothing was said; what is no number becomes one that no amount can be."""
    plain = np.array(said, dtype=object).reshape(-1, len(FIGURES))
    unsaid = plain == np.array(None)
    try:
        found: NDArray[np.float64] = plain.astype(np.float64)
    except (TypeError, ValueError, OverflowError):  # one of them is no number
        found = np.array([[_said(value) for value in figures] for figures in said], dtype=np.float64)
    found[~unsaid & ~np.isfinite(found)] = -1.0
    return found


def _said(value: float | None) -> float:
    """One figure, whatever it is."""
    if value is None:
        return math.nan
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return -1.0
    return number if math.isfinite(number) else -1.0


def _lies(raw: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Where a figure is negative, or more than there can be of it."""
    most = np.full(raw.shape, 1.0)
    cores, memory = np.fmin(raw[:, 2], CPU_MOST_MILLI), np.fmin(raw[:, 4], MEMORY_MOST_MIB)
    most[:, 0] = most[:, 3] = np.where(np.isnan(cores), CPU_MOST_MILLI, cores)
    most[:, 1] = MEMORY_MOST_MIB  # what processes share counts for each of them
    most[:, 5] = np.where(np.isnan(memory), MEMORY_MOST_MIB, memory)
    most[:, 2], most[:, 4] = CPU_MOST_MILLI, MEMORY_MOST_MIB
    most[:, 8] = np.fmin(raw[:, 9], MEMORY_MOST_MIB)
    most[:, 9] = MEMORY_MOST_MIB
    with np.errstate(invalid="ignore"):
        found: NDArray[np.bool_] = (raw < 0) | (raw > most * SLACK)
    return found
