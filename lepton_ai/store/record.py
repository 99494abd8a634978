"""The values that come out of the store: a record, and the note that one changed. Owns no I/O."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Document = dict[str, Any]
"""A JSON object. Callers treat the ones inside a record as read-only: write a changed copy with `Store.update`."""


@dataclass(frozen=True, slots=True)
class Record:
    """One thing of a cell as it was when it was read.

    `generation` grows by one when `spec` changes; `revision` is the cell-wide number of the last write to this
    record, and what compare-and-set compares. Times are UTC milliseconds. `deleting_ms` is set when deletion was
    asked for: a loop ends what the record stands for, then deletes it.
    """

    workspace: str
    kind: str
    name: str
    uid: str
    generation: int
    revision: int
    spec: Document
    status: Document
    owner_uid: str | None
    created_ms: int
    updated_ms: int
    deleting_ms: int | None

    @property
    def deleting(self) -> bool:
        return self.deleting_ms is not None


@dataclass(frozen=True, slots=True)
class Change:
    """A write that was committed: revisions are in commit order, without gaps that could still be filled."""

    revision: int
    workspace: str
    kind: str
    name: str
    uid: str
    deleted: bool
