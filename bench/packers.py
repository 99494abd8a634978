"""The other ways to place: best fit, dot product and FGD, each as published, on the pods and machines of inflation.py.

Not a measurement itself: read by placement.py. FGD (Weng et al., Beware of Fragmentation, USENIX ATC 2023) takes the
node and the accelerator that raise the expected fragmentation least, its statistics being the *whole* workload, pods
to come included, as in its own simulator; the 95 % most frequent kinds count. Best fit minimises what stays free
(accelerators: the fullest that fits), dot product (Tetris, Grandl et al., SIGCOMM 2014) takes the
node whose free room is most aligned with the demand, as its paper says: the opposite sign is nearer to the published
table (89.8 of 90.9 on the default workload) and gives out less. Ties go to the first node. Like ours they keep the cost
of each kind on each node and work out again only the node that changed; otherwise a run would take minutes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from inflation import Machine, Pod
from numpy.typing import NDArray

from lepton_ai.scheduler.placer import Placer
from lepton_ai.scheduler.snapshot import DEVICE_MILLI, Snapshot

Array = NDArray[np.float64]
COVER = 0.95


class Shipped:
    """`lepton_ai.scheduler.placer`, with statistics from the pods that have arrived."""

    name = "lepton"

    def __init__(self, machines: Sequence[Machine], pods: Sequence[Pod]) -> None:
        self.placer = Placer(Snapshot.of([machine.node() for machine in machines]))
        self._requests = {pod: pod.request() for pod in set(pods)}

    def place(self, pod: Pod) -> tuple[str | None, tuple[int, ...]]:
        found = self.placer.place(self._requests[pod])
        return found.node, found.devices

    def leave(self, pod: Pod, node: str, devices: tuple[int, ...]) -> None:
        self.placer.release(node, self._requests[pod].resources, devices)


class Packer:
    """What the baselines share: the state, the kinds of pod, and the cost of each kind on each node."""

    name = ""

    def __init__(self, machines: Sequence[Machine], pods: Sequence[Pod]) -> None:
        self.names = [machine.name for machine in machines]
        self.where = {name: number for number, name in enumerate(self.names)}
        self.cpu = np.array([machine.cpu_milli for machine in machines], dtype=float)
        self.memory = np.array([machine.memory_mib for machine in machines], dtype=float)
        slots = max(machine.gpus for machine in machines)
        self.levels = np.zeros((len(machines), slots))
        for number, machine in enumerate(machines):
            self.levels[number, : machine.gpus] = DEVICE_MILLI
        self.largest = (self.cpu.max(), self.memory.max(), self.levels.sum(axis=1).max())
        counts = Counter(_kind(pod) for pod in pods)
        self.kinds = {kind: number for number, kind in enumerate(counts)}
        rows = np.array([kind[:4] for kind in counts], dtype=float)
        self.c, self.m, self.n, self.g = rows.T
        self.asks, self.shares = self.n > 0, (self.n > 0) & (self.g < DEVICE_MILLI)
        types = [kind[4].split("|") if kind[4] else [] for kind in counts]
        self.stands = np.array([[not named or machine.type in named for named in types] for machine in machines])
        self.popular(np.array(list(counts.values()), dtype=float))
        self.costs = np.full((len(counts), len(machines)), np.inf)
        self.device = np.zeros(self.costs.shape, dtype=np.int64)
        alike: dict[tuple[object, ...], int] = {}
        for number, machine in enumerate(machines):
            same = alike.setdefault((machine.cpu_milli, machine.memory_mib, machine.gpus, machine.type), number)
            if same == number:
                self._again(number)
            else:
                self.costs[:, number], self.device[:, number] = self.costs[:, same], self.device[:, same]

    def popular(self, counts: Array) -> None:
        """Take the statistics of the whole workload."""

    def cost(self, node: int) -> tuple[Array, NDArray[np.int64]]:
        """Of each kind on the node, and the accelerator a share takes there; where it fits at all is seen to."""
        raise AssertionError

    def place(self, pod: Pod) -> tuple[str | None, tuple[int, ...]]:
        kind = self.kinds[_kind(pod)]
        node = int(self.costs[kind].argmin())
        if self.costs[kind, node] == np.inf:
            return None, ()
        if self.shares[kind]:
            devices: tuple[int, ...] = (int(self.device[kind, node]),)
        else:
            devices = tuple(np.flatnonzero(self.levels[node] == DEVICE_MILLI)[: pod.gpus].tolist())
        self._book(pod, node, devices, 1)
        return self.names[node], devices

    def leave(self, pod: Pod, node: str, devices: tuple[int, ...]) -> None:
        self._book(pod, self.where[node], devices, -1)

    def _book(self, pod: Pod, node: int, devices: tuple[int, ...], sign: int) -> None:
        self.cpu[node] -= sign * pod.cpu_milli
        self.memory[node] -= sign * pod.memory_mib
        self.levels[node, list(devices)] -= sign * pod.gpu_milli
        self._again(node)

    def _again(self, node: int) -> None:
        levels = self.levels[node]
        idle = (levels == DEVICE_MILLI).sum()
        fits = (self.cpu[node] >= self.c) & (self.memory[node] >= self.m) & self.stands[node]
        fits &= np.where(self.shares, levels.max() >= self.g, idle >= self.n)
        costs, device = self.cost(node)
        self.costs[:, node] = np.where(fits, costs, np.inf)
        self.device[:, node] = device

    def fullest(self, node: int) -> NDArray[np.int64]:
        """Of each kind the accelerator with the smallest rest that a share fits into."""
        rest = np.where(self.levels[node] >= self.g[:, None], self.levels[node], np.inf)
        return rest.argmin(axis=1)


class BestFit(Packer):
    """The node on which least stays free: mean of processors and accelerators, relative to the largest node."""

    name = "BestFit"

    def cost(self, node: int) -> tuple[Array, NDArray[np.int64]]:
        cpu = (self.cpu[node] - self.c) / self.largest[0]
        rest = (self.levels[node].sum() - self.n * self.g) / self.largest[2]
        return cpu + rest, self.fullest(node)


class DotProd(Packer):
    """The node where demand and free room have the largest product, relative to the largest node."""

    name = "DotProd"

    def cost(self, node: int) -> tuple[Array, NDArray[np.int64]]:
        cpu = self.c / self.largest[0] * self.cpu[node] / self.largest[0]
        rest = self.n * self.g / self.largest[2] * self.levels[node].sum() / self.largest[2]
        return -(cpu + rest), self.fullest(node)


class Fgd(Packer):
    """Fragmentation gradient descent, as published: the score is a whole number of a hundred."""

    name = "FGD"

    def popular(self, counts: Array) -> None:
        order = np.argsort(-counts, kind="stable")
        before = np.concatenate(([0.0], np.cumsum(counts[order])[:-1]))
        self.typical = order[before < COVER * counts.sum()]
        self.chance = counts[self.typical] / counts[self.typical].sum()

    def cost(self, node: int) -> tuple[Array, NDArray[np.int64]]:
        levels, count = self.levels[node], len(self.c)
        # Every way to take each kind: whole ones alike, a share from each different rest.
        kinds = [np.flatnonzero(~self.shares)]
        after = np.tile(levels, (len(kinds[0]), 1))
        idle = np.flatnonzero(levels == DEVICE_MILLI)
        for row, kind in enumerate(kinds[0].tolist()):
            after[row, idle[: int(self.n[kind])]] = 0.0
        outcomes, devices = [after], [np.zeros(len(kinds[0]), dtype=np.int64)]
        for level in np.unique(levels[levels > 0]):
            device = int(np.flatnonzero(levels == level)[0])
            fit = np.flatnonzero(self.shares & (self.g <= level))
            taken = np.tile(levels, (len(fit), 1))
            taken[:, device] -= self.g[fit]
            kinds.append(fit)
            outcomes.append(taken)
            devices.append(np.full(len(fit), device, dtype=np.int64))
        which, rests, at = np.concatenate(kinds), np.concatenate(outcomes), np.concatenate(devices)
        stands = self.stands[node]
        grown = self._broken(self.cpu[node] - self.c[which], self.memory[node] - self.m[which], rests, stands)
        grown -= self._broken(self.cpu[node : node + 1], self.memory[node : node + 1], levels[None, :], stands)
        score = np.floor(100 / (1 + np.exp(np.clip(grown, -50_000, 50_000) / 1000.0)))
        best, device = np.full(count, np.inf), np.zeros(count, dtype=np.int64)
        for number in np.lexsort((-score,))[::-1].tolist():  # the best last: it stays
            best[which[number]], device[which[number]] = -score[number], at[number]
        return best, device

    def _broken(self, cpu: Array, memory: Array, rests: Array, stands: NDArray[np.bool_]) -> Array:
        """The expected rest of accelerators that a typical pod could not use, of each outcome."""
        kind = self.typical
        total = rests.sum(axis=1)
        need = np.where(self.shares[kind], self.g[kind], DEVICE_MILLI)
        useful = np.where(rests[:, None, :] >= need[None, :, None], rests[:, None, :], 0.0)
        count = np.where(self.shares[kind], 1, self.n[kind])
        enough = (useful > 0).sum(axis=2) >= count
        can = enough & (cpu[:, None] >= self.c[kind]) & (memory[:, None] >= self.m[kind]) & stands[kind]
        can &= self.asks[kind]
        broken: Array = (np.where(can, total[:, None] - useful.sum(axis=2), total[:, None]) * self.chance).sum(axis=1)
        return broken


def _kind(pod: Pod) -> tuple[int, int, int, int, str]:
    return pod.cpu_milli, pod.memory_mib, pod.gpus, pod.gpu_milli, pod.types
