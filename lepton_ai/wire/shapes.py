"""Shapes: the names under which the public client asks for resources."""

from __future__ import annotations

import difflib
from typing import Any

from lepton_ai.errors import Invalid
from lepton_ai.spec.workload import Resources

SHAPES: dict[str, Resources] = {
    "cpu.tiny": Resources(cpu_milli=100, memory_mib=128),
    "cpu.small": Resources(cpu_milli=200, memory_mib=256),
    "cpu.medium": Resources(cpu_milli=1000, memory_mib=2048),
    "cpu.large": Resources(cpu_milli=4000, memory_mib=8192),
    "cpu.xlarge": Resources(cpu_milli=8000, memory_mib=16_384),
}
"""cpu.small is what the public client asks for when nothing is said."""
_PURPOSES = ("pod", "deployment", "job")


def resources(shape: str) -> Resources:
    """What a shape stands for. Raises Invalid with the nearest one."""
    found = SHAPES.get(shape.lower())
    if found is None:
        near = difflib.get_close_matches(shape.lower(), SHAPES, 1)
        hint = f"did you mean {near[0]}?" if near else f"shapes: {', '.join(SHAPES)}"
        raise Invalid(f"there is no resource shape {shape[:80]!r}", hint=hint)
    return found


def shown(node_group: str, purpose: str | None) -> list[dict[str, Any]]:
    """The answer to GET /shapes."""
    if purpose is not None and purpose not in _PURPOSES:
        return []
    return [
        {
            "metadata": {"id": name, "name": name},
            "spec": {
                "name": name,
                "description": f"{size.cpu_milli / 1000:g} cores, {size.memory_mib} MiB",
                "listable_in": list(_PURPOSES),
                "cpu": size.cpu_milli / 1000,
                "memory_in_mb": size.memory_mib,
                "node_group_id": node_group,
            },
        }
        for name, size in SHAPES.items()
    ]
