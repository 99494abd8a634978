"""One step of a batch: what `Store.batch` takes. Owns values only; the store carries them out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lepton_ai.store.record import Record


@dataclass(frozen=True, slots=True)
class Create:
    """A new record; Conflict if (workspace, kind, name) or `uid` exists. Without `uid` a UUIDv7 is made."""

    workspace: str
    kind: str
    name: str
    spec: Mapping[str, Any]
    status: Mapping[str, Any] | None = None
    owner_uid: str | None = None
    uid: str | None = None


@dataclass(frozen=True, slots=True)
class Update:
    """A new spec and/or status, or the mark that deletion is wanted; Conflict if `record` is not the newest."""

    record: Record
    spec: Mapping[str, Any] | None = None
    status: Mapping[str, Any] | None = None
    deleting: bool = False


@dataclass(frozen=True, slots=True)
class Delete:
    """The record is removed; Conflict if `record` is not the newest."""

    record: Record


Op = Create | Update | Delete
