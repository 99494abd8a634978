"""Shapes: the names under which the public client asks for resources."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from lepton_ai.errors import Invalid
from lepton_ai.spec.workload import Resources
from lepton_ai.wire.record import Json

SHAPES: dict[str, Resources] = {
    "cpu.tiny": Resources(cpu_milli=100, memory_mib=128),
    "cpu.small": Resources(cpu_milli=200, memory_mib=256),
    "cpu.half": Resources(cpu_milli=500, memory_mib=512),
    "cpu.medium": Resources(cpu_milli=1000, memory_mib=2048),
    "cpu.large": Resources(cpu_milli=4000, memory_mib=8192),
    "cpu.xlarge": Resources(cpu_milli=8000, memory_mib=16_384),
}
"""cpu.small is what the public client asks for when nothing is said."""
PURPOSES = ("pod", "deployment", "job")


@dataclass(frozen=True, slots=True)
class Priced:
    """A shape and what one replica of it costs in an hour."""

    name: str
    resources: Resources
    price_per_hour: float
    currency: str

    @property
    def description(self) -> str:
        size = self.resources
        return f"{size.cpu_milli / 1000:g} cores, {size.memory_mib} MiB, {self.price_per_hour:.4f} {self.currency}/hour"


def resources(shape: str) -> Resources:
    """What a shape stands for. Raises Invalid with the nearest one."""
    found = SHAPES.get(shape.lower())
    if found is None:
        near = difflib.get_close_matches(shape.lower(), SHAPES, 1)
        hint = f"did you mean {near[0]}?" if near else f"shapes: {', '.join(SHAPES)}"
        raise Invalid(f"there is no resource shape {shape[:80]!r}", hint=hint)
    return found


def priced(price: Callable[[Resources], float], currency: str, nodes: Iterable[Json]) -> list[Priced]:
    """The shapes that some node (our own JSON) could hold when it is empty; all, while no node is known."""
    items = list(nodes)
    found = []
    for name, size in SHAPES.items():
        if not items or any(
            size.cpu_milli <= node["cpu_milli"] and size.memory_mib <= node["memory_mib"] for node in items
        ):
            found.append(Priced(name, size, price(size), currency))
    return found


def shown(found: Iterable[Priced], group_id: str, purpose: str | None) -> list[Json]:
    """The answer to GET /shapes."""
    if purpose is not None and purpose.lower() not in PURPOSES:
        return []
    return [
        {
            "metadata": {"id": item.name, "name": item.name},
            "spec": {
                "name": item.name,
                "description": item.description,
                "listable_in": list(PURPOSES),
                "cpu": item.resources.cpu_milli / 1000,
                "memory_in_mb": item.resources.memory_mib,
                "node_group_id": group_id,
                "price_per_hour": item.price_per_hour,
                "currency": item.currency,
            },
        }
        for item in found
    ]
