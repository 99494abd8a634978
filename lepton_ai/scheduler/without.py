"""The cell with some of its replicas gone, or with one more: what a decision looks at before it is taken.

Owns what a replica that holds room is. Everything here makes new arrays; the snapshot that is given stays as it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from lepton_ai.scheduler.snapshot import DEVICE_MILLI, Request, Snapshot, amounts, devices_of
from lepton_ai.spec.workload import Resources


@dataclass(frozen=True, slots=True)
class Held:
    """A replica that holds room. `amounts` in `snapshot.UNITS`; `owner` is the uid of the work that it is of.

    All of a `gang` (the workers of one owner) go or none. Of an owner at least `keep` of those that are listed stay.
    `devices` are the accelerators that it uses, when that is known. `lent` names the reservation of its node, where
    its own request does not name it. One that is `ending` already costs nothing, and may be waited for by anyone.
    """

    uid: str
    name: str
    node: str
    amounts: tuple[int, int, int]
    owner: str = ""
    workspace: str = ""
    priority: int = 0
    preemptible: bool = False
    gang: bool = False
    keep: int = 0
    since_ms: int = 0
    devices: tuple[int, ...] = ()
    lent: str = ""
    ending: bool = False


def without(snapshot: Snapshot, gone: Sequence[Held], index: Mapping[str, int]) -> Snapshot:
    """`snapshot` when `gone` have left it. Their groups stay counted: that forbids more, never less."""
    if not gone:
        return snapshot
    used, devices = snapshot.used.copy(), snapshot.devices.copy()
    names: set[str] = set()
    for held in gone:
        row = index.get(held.node)
        if row is None:
            continue
        names.add(held.name)
        used[row] -= np.array(held.amounts, dtype=np.int64)
        if held.amounts[2]:
            _free_devices(devices, snapshot, used, row, held)
    np.maximum(used, 0, out=used)
    taken = snapshot.taken
    if any(who in names for ports in taken.values() for who in ports.values()):
        taken = {at: {port: who for port, who in ports.items() if who not in names} for at, ports in taken.items()}
    return replace(snapshot, used=used, devices=devices, taken=taken)


def _free_devices(
    devices: NDArray[np.int64], snapshot: Snapshot, used: NDArray[np.int64], row: int, held: Held
) -> None:
    if held.devices and max(held.devices) < devices.shape[1]:
        each = min(DEVICE_MILLI, held.amounts[2])
        devices[row, list(held.devices)] = np.maximum(0, devices[row, list(held.devices)] - each)
        return
    tight = devices_of(Resources(accelerator_milli=int(snapshot.capacity[row, 2])), max(0, int(used[row, 2])))
    devices[row, : len(tight)] = tight


def joined(snapshot: Snapshot, request: Request, row: int, devices: tuple[int, ...]) -> Snapshot:
    """`snapshot` with `request` on the node."""
    used, own = snapshot.used.copy(), snapshot.devices.copy()
    used[row] += np.array(amounts(request.resources), dtype=np.int64)
    if request.resources.accelerator_milli:
        if devices:
            own[row, list(devices)] += min(DEVICE_MILLI, request.resources.accelerator_milli)
        else:
            tight = devices_of(Resources(accelerator_milli=int(snapshot.capacity[row, 2])), int(used[row, 2]))
            own[row, : len(tight)] = tight
    name = snapshot.names[row]
    groups = {key: dict(counts) for key, counts in snapshot.groups.items()}
    groups.setdefault(request.group, {})[name] = groups.get(request.group, {}).get(name, 0) + 1
    address = snapshot.addresses[row] if snapshot.addresses else ""
    taken = snapshot.taken
    if address and request.ports:
        taken = {**taken, address: {**taken.get(address, {}), **dict.fromkeys(request.ports, "another one like it")}}
    return replace(snapshot, used=used, devices=own, groups=groups, taken=taken)


def alone(snapshot: Snapshot, index: int) -> Snapshot:
    """The same cell with that node alone."""
    one = slice(index, index + 1)
    return replace(
        snapshot,
        names=snapshot.names[one],
        capacity=snapshot.capacity[one],
        used=snapshot.used[one],
        accelerators=snapshot.accelerators[one],
        blocked=snapshot.blocked[one],
        addresses=snapshot.addresses[one],
        devices=snapshot.devices[one],
        labels=snapshot.labels[one],
        taints=snapshot.taints[one],
        reservations=snapshot.reservations[one],
        planned=snapshot.planned[one],
        limits=snapshot.limits[one],
    )
