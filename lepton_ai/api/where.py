"""What the public client's JSON must know of the cell: its node group, the kinds of its volumes, its runtime."""

from __future__ import annotations

from lepton_ai.api.call import Call
from lepton_ai.wire.container import Where
from lepton_ai.wire.nodes import group_id


def where(call: Call) -> Where:
    """As the caller's workspace sees it, now: one answer to a list is made from one."""
    cell = call.cell
    return Where(
        group=group_id(cell.name),
        group_name=cell.name,
        volumes={volume.name: volume.source for volume in cell.volumes.list(call.ws)},
        runs_images=not cell.settings.runtime.startswith("process://"),
    )
