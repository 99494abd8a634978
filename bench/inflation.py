"""The openb trace and its workloads, the order in which pods arrive, and the check of what became of them.

Not a measurement itself: read by placement.py. The inflation protocol of FGD (Weng et al., Beware of Fragmentation,
USENIX ATC 2023): all pods of a workload in random order, then clones of random ones, until 130 % of the accelerators
are requested; nothing departs and nothing is tried twice. `check` knows nothing of the scheduler: it books every pod
again with plain integers.
"""

from __future__ import annotations

import csv
import gzip
import lzma
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import traces

from lepton_ai.errors import Invalid
from lepton_ai.scheduler.snapshot import DEVICE_MILLI, Node, Request
from lepton_ai.spec.workload import Resources

INFLATED = 1.3
PREFIX = "openb_pod_list_"


@dataclass(frozen=True, slots=True)
class Pod:
    """One row of a pod list. `gpu_milli` of each of `gpus`; `types` empty: any. Times in s, None: not recorded."""

    cpu_milli: int
    memory_mib: int
    gpus: int
    gpu_milli: int
    types: str = ""
    created_s: int | None = None
    deleted_s: int | None = None

    @property
    def asked(self) -> int:
        """Thousandths of accelerators, all in all."""
        return self.gpus * self.gpu_milli

    def request(self, uid: str = "") -> Request:
        """The same as the scheduler's own value (whose smallest amounts are 1)."""
        resources = Resources(
            cpu_milli=max(1, self.cpu_milli),
            memory_mib=max(1, self.memory_mib),
            accelerator_milli=self.asked,
            accelerator_type=self.types or None,
        )
        return Request(uid, resources)


@dataclass(frozen=True, slots=True)
class Machine:
    """One row of a node list."""

    name: str
    cpu_milli: int
    memory_mib: int
    gpus: int
    type: str

    def node(self) -> Node:
        resources = Resources(
            cpu_milli=self.cpu_milli,
            memory_mib=self.memory_mib,
            accelerator_milli=self.gpus * DEVICE_MILLI,
            accelerator_type=self.type or None,
        )
        return Node(self.name, resources)


@dataclass(slots=True)
class Workload:
    """Pods under the name of their list. `derived`: made here from another list, not read."""

    name: str
    pods: list[Pod]
    derived: bool = False


@dataclass(slots=True)
class Data:
    """What was given: machines with accelerators, workloads, and results published for policies on workloads."""

    machines: list[Machine] = field(default_factory=list)
    workloads: list[Workload] = field(default_factory=list)
    published: dict[tuple[str, str], list[list[float]]] = field(default_factory=dict)


def read(paths: Sequence[Path]) -> Data:
    """Node lists, pod lists and published results, told apart by their columns. Raises Invalid."""
    data, lists = Data(), []
    for path in traces.files(paths):
        kind = traces.kind(path)
        rows = _rows(path)
        if kind == "nodes":
            lists.append([_machine(row) for row in rows])
        elif kind == "pods":
            name = path.name.split(".")[0].removeprefix(PREFIX)
            data.workloads.append(Workload(name, [_pod(row) for row in rows]))
        elif kind == "published":
            for row in rows:
                key = (row["workload"].removeprefix(PREFIX), row["sc_policy"].split("-")[-1])
                curve = [float(row[str(percent)] or "nan") for percent in range(131) if row.get(str(percent))]
                data.published.setdefault(key, []).append(curve)
        else:
            raise Invalid(f"{path.name}: no nodes, pods or published results", hint=traces.HINT)
    # Of several lists of the same cluster the one that leaves out what has no accelerator.
    lists.sort(key=lambda machines: sum(not machine.gpus for machine in machines))
    data.machines = sorted((item for item in lists[0] if item.gpus), key=lambda item: item.name) if lists else []
    if not data.machines or not data.workloads:
        raise Invalid("a list of nodes and a list of pods are needed", hint="give both to --data")
    return data


def inflated(pods: Sequence[Pod], capacity_milli: int, seed: int) -> list[Pod]:
    """The arrivals of one run."""
    rng = random.Random(seed)
    order = list(pods)
    rng.shuffle(order)
    arrivals: list[Pod] = []
    asked = 0
    while asked < INFLATED * capacity_milli:
        pod = order[len(arrivals)] if len(arrivals) < len(order) else rng.choice(pods)
        arrivals.append(pod)
        asked += pod.asked
    return arrivals


def derive(base: Sequence[Pod], specs: Sequence[str], seed: int = 7) -> list[Workload]:
    """Workloads made from the default list as the paper describes its own: more cpu pods, shares, large ones, types.

    Args:
        specs: the types named by pods that name any; they are drawn from these.
    """
    rng = random.Random(seed)
    cpu = [pod for pod in base if not pod.gpus]
    share = [pod for pod in base if pod.gpus and pod.gpu_milli < DEVICE_MILLI]
    one = [pod for pod in base if pod.gpus == 1 and pod.gpu_milli == DEVICE_MILLI]
    many = [pod for pod in base if pod.gpus > 1]
    asking = [pod for pod in base if pod.gpus]
    found: dict[str, list[Pod]] = {}
    for percent in (50, 100, 200, 250):  # 100: 0.725 of the default list's, as in the published one
        count = round(0.725 * len(cpu) * percent / 100)
        found[f"cpu{percent:03}"] = asking + [rng.choice(cpu) for _ in range(count)]
    for percent in (40, 60, 80, 100):
        # So many of the pods that shares make up that part of what is asked for.
        ratio, small, large = percent / 100, _mean(share), _mean(one + many)
        count = round(len(asking) * ratio * large / (small * (1 - ratio) + ratio * large))
        drawn = [rng.choice(share) for _ in range(count)]
        found[f"gpushare{percent}"] = cpu + drawn + [rng.choice(one + many) for _ in range(len(asking) - count)]
    for percent in (10, 20, 25, 33) if specs else ():
        typed = [replace(pod, types=rng.choice(specs)) if rng.random() < percent / 100 else pod for pod in asking]
        found[f"gpuspec{percent}"] = cpu + typed
    for percent in (20, 30, 40, 50) if many else ():
        need = percent / (100 - percent) * sum(pod.asked for pod in share + one)
        drawn = []
        while sum(pod.asked for pod in drawn) < need:
            drawn.append(rng.choice(many))
        found[f"multigpu{percent}"] = cpu + share + one + drawn
    return [Workload(name, pods, derived=True) for name, pods in found.items()]


def check(
    machines: Iterable[Machine], taken: Sequence[tuple[Pod, str | None, tuple[int, ...]]], *, refused: bool = False
) -> str:
    """What is wrong with a run, or "": capacity of nodes and of each accelerator, types, memory.

    Args:
        taken: the pods in order of arrival, the node of each (None: refused) and the accelerators it was given.
        refused: also whether one was refused that fitted somewhere (slow).
    """
    rooms = {m.name: [m.cpu_milli, m.memory_mib, [DEVICE_MILLI] * m.gpus, m.type] for m in machines}
    for number, (pod, name, devices) in enumerate(taken):
        if name is None:
            fits = next((name for name, room in rooms.items() if _fits(room, pod)), "") if refused else ""
            if fits:
                return f"pod {number} was refused though {fits} has room"
            continue
        room = rooms[name]
        if pod.types and room[3] not in pod.types.split("|"):
            return f"pod {number} is on {name} of type {room[3]}, not {pod.types}"
        if len(set(devices)) != pod.gpus:
            return f"pod {number} wants {pod.gpus} accelerators and was given {devices}"
        room[0] -= pod.cpu_milli
        room[1] -= pod.memory_mib
        for device in devices:
            room[2][device] -= pod.gpu_milli
        if room[0] < 0 or room[1] < 0 or min(room[2], default=0) < 0:
            return f"pod {number} is too much for {name}: {room[:3]} left"
    return ""


def _fits(room: list, pod: Pod) -> bool:
    if room[0] < pod.cpu_milli or room[1] < pod.memory_mib:
        return False
    if pod.types and room[3] not in pod.types.split("|"):
        return False
    return sum(rest >= pod.gpu_milli for rest in room[2]) >= pod.gpus


def _rows(path: Path) -> list[dict[str, str]]:
    opener = {".xz": lzma.open, ".gz": gzip.open}.get(path.suffix, open)
    with opener(path, "rt", encoding="utf-8-sig") as stream:
        return list(csv.DictReader(stream))


def _mean(pods: Sequence[Pod]) -> float:
    return sum(pod.asked for pod in pods) / max(1, len(pods))


def _machine(row: dict[str, str]) -> Machine:
    return Machine(row["sn"], _int(row["cpu_milli"]), _int(row["memory_mib"]), _int(row["gpu"]), row.get("model") or "")


def _pod(row: dict[str, str]) -> Pod:
    gpus = _int(row["num_gpu"])
    created, deleted = row.get("creation_time"), row.get("deletion_time")
    return Pod(
        cpu_milli=_int(row["cpu_milli"]),
        memory_mib=_int(row["memory_mib"]),
        gpus=gpus,
        gpu_milli=_int(row["gpu_milli"]) if gpus else 0,
        types=(row.get("gpu_spec") or "") if gpus else "",
        created_s=_int(created) if created else None,
        deleted_s=_int(deleted) if deleted else None,
    )


def _int(text: str) -> int:
    return int(float(text or 0))


def synthetic(nodes: int, seed: int = 1) -> Data:
    """A cluster and one workload like those of the trace, for whoever has it not: seeded, of its rough proportions."""
    rng = random.Random(seed)
    kinds = [("G2", 96_000, 393_216, 8, 45), ("T4", 104_000, 524_288, 2, 32), ("P100", 16_000, 122_880, 2, 9)]
    kinds += [("V100M16", 32_000, 131_072, 4, 8), ("G3", 128_000, 786_432, 8, 6)]
    machines = []
    for number in range(nodes):
        name, cpu, memory, gpus, _ = rng.choices(kinds, [kind[4] for kind in kinds])[0]
        machines.append(Machine(f"node-{number:05}", cpu, memory, gpus, name))
    shapes = [(11_300, 1, 1000, 33), (3152, 1, 810, 13), (8000, 1, 470, 10), (3152, 1, 1000, 9), (18_708, 1, 1000, 5)]
    shapes += [(4000, 1, 320, 4), (11_908, 1, 650, 3), (6000, 1, 230, 3), (4000, 1, 160, 1), (88_000, 8, 1000, 1)]
    shapes += [(12_500, 0, 0, 6), (32_000, 0, 0, 4), (8000, 0, 0, 3)]
    pods = []
    for number in range(6 * nodes):
        cpu, gpus, milli, _ = rng.choices(shapes, [shape[3] for shape in shapes])[0]
        types = rng.choice(["T4", "G2", "G2|G3", "V100M16|P100"]) if gpus == 1 and rng.random() < 0.05 else ""
        pods.append(Pod(cpu, 3 * cpu, gpus, milli, types, 60 * number, 60 * number + int(rng.expovariate(1 / 200_000))))
    return Data(machines, [Workload("synthetic", pods)])
