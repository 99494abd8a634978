"""Which blobs are whose: bytes are kept once for the cell, but only who brought them may name or read them.

A blob of a cell from before workspaces were told apart has no record; it is the first workspace's.
"""

from __future__ import annotations

import contextlib

from lepton_ai.api.cell import Cell
from lepton_ai.errors import Conflict

KIND = "blob"


def hold(cell: Cell, workspace: str, digest: str) -> bool:
    """Records that `workspace` has brought these bytes; whether that is new."""
    if cell.store.find(workspace, KIND, digest) is not None:
        return False
    with contextlib.suppress(Conflict):
        cell.store.create(workspace, KIND, digest, {})
        return True
    return False


def holds(cell: Cell, workspace: str, digest: str) -> bool:
    """Whether the bytes are there for `workspace`. Raises Invalid for what is no digest."""
    if not cell.blobs.has(digest):
        return False
    if cell.store.find(workspace, KIND, digest) is not None:
        return True
    names = [item.name for item in cell.workspaces.list()] if workspace == cell.workspaces.first else []
    return bool(names) and all(cell.store.find(name, KIND, digest) is None for name in names)
