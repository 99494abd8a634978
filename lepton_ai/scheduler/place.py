"""Which node takes which replica: feasible -> score -> the best, one request after the other.

Owns the order of one call and the words for what finds no place; the decisions are those of `Placer`. Pure: equal
snapshots, statistics and requests give equal plans.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from lepton_ai.scheduler.mix import Mix
from lepton_ai.scheduler.placer import Placement, Placer
from lepton_ai.scheduler.snapshot import Request, Snapshot
from lepton_ai.scheduler.verdict import verdict

__all__ = ["Placement", "place", "plan"]


def place(
    snapshot: Snapshot, requests: Sequence[Request], *, together: bool = False, mix: Mix | None = None
) -> tuple[Placement, ...]:
    """A placement for each request, in the order given; each sees what those before it have reserved.

    Args:
        together: all or none (the workers of a job): when one finds no node, none gets one.
        mix: what kind of requests came before; without it only what this call has placed so far is known.
    """
    return plan(Placer(snapshot, mix), requests, together=together)


def plan(placer: Placer, requests: Sequence[Request], *, together: bool = False) -> tuple[Placement, ...]:
    """As `place`, on a cell that goes on: what is placed stays reserved in `placer`."""
    found: list[Placement] = []
    failed: Placement | None = None
    for request in requests:
        placement = placer.place(request)
        if placement.node is not None:
            found.append(placement)
            failed = None
            continue
        if failed is None or replace(failed.request, uid=request.uid) != request:
            nodes = verdict(placer.snapshot(), request)
            failed = Placement(request, None, _summary(nodes), nodes)
        placement = replace(failed, request=request)
        if together:
            for done in reversed(found):
                placer.undo(done)
            why = f"worker {len(found) + 1} of {len(requests)} finds no node: {placement.reason}"
            return tuple(Placement(item, None, why, failed.nodes) for item in requests)
        found.append(placement)
    return tuple(found)


def _summary(nodes: dict[str, str]) -> str:
    if not nodes:
        return "the cell has no node"
    counts = Counter(text.split(":")[0] for text in nodes.values())
    parts = [f"{count} {word}" for word, count in counts.most_common()]
    text = f"no node of {len(nodes)} can take it ({', '.join(parts)})"
    if len(nodes) <= 4:
        text += "; " + "; ".join(f"{name}: {why}" for name, why in nodes.items())
    return text
