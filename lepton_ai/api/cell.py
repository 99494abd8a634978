"""What the API needs of a cell: one frozen value that the composition root makes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from lepton_ai.api.parsed import Parsed
from lepton_ai.api.usage import Usage
from lepton_ai.blobs.local import LocalBlobs
from lepton_ai.control.monitor import Shown
from lepton_ai.scheduler.snapshot import Snapshot
from lepton_ai.settings import Settings
from lepton_ai.store import Record, Shelf, Store
from lepton_ai.telemetry import Audit, Events, Logs
from lepton_ai.tenancy import Access, Prices, Registries, Secrets, Volumes
from lepton_ai.tenancy.workspaces import Workspaces
from lepton_ai.wire import jobfilter


class LiveLog(Protocol):
    """Lines (ns, stream, text) of a replica on a node, start_ns <= ns < end_ns, in ascending ns.

    With `follow` it goes on until the replica has ended. Raises NotFound when the node does not know it (any more),
    Unavailable when the node cannot be asked or breaks off.
    """

    def __call__(
        self, node: str, uid: str, start_ns: int, end_ns: int | None, follow: bool
    ) -> AsyncIterator[tuple[int, str, str]]: ...


@dataclass(frozen=True)
class Cell:
    """One cell. `leading` says whether this process's loops act; `snapshot` is what the scheduler sees now,
    `pace` how long the passes of the loops took, `measures` what the monitor saw last (nothing where another leads).

    `lake_root` holds a lake a workspace; `blob_key` signs the tickets of agents (see blobs.ticket).
    """

    store: Store
    access: Access
    secrets: Secrets
    logs: Logs
    events: Events
    blobs: LocalBlobs
    lake_root: Path
    settings: Settings
    name: str
    uid: str
    api_url: str
    gateway_url: str
    leading: Callable[[], bool]
    live_log: LiveLog
    snapshot: Callable[[], Snapshot]
    blob_key: bytes
    pace: Callable[[], Mapping[str, float]] = dict
    measures: Callable[[], Shown] = Shown

    @cached_property
    def jobs(self) -> Shelf[dict[str, Any]]:
        """What jobs are searched by: a list reads only those that are on the page."""
        return Shelf(self.store, "job", jobfilter.short)

    @cached_property
    def archives(self) -> Shelf[dict[str, Any]]:
        """The same of jobs that were removed."""
        return Shelf(self.store, "archive", jobfilter.short)

    @cached_property
    def parsed(self) -> Parsed:
        return Parsed()

    @cached_property
    def usage(self) -> Usage:
        return Usage()

    @cached_property
    def work(self) -> Shelf[dict[str, str]]:
        """Whose the deployments and pods are: a question about that reads none of them."""
        return Shelf(self.store, "deployment", _owned)

    @property
    def prices(self) -> Prices:
        return Prices.of(self.settings)

    @property
    def audit(self) -> Audit:
        return Audit(self.store)

    @property
    def workspaces(self) -> Workspaces:
        return Workspaces(self.store, self.settings)

    @property
    def registries(self) -> Registries:
        return Registries(self.store, self.secrets)

    @property
    def volumes(self) -> Volumes:
        """Volumes that never show what belongs to the cell itself."""
        return Volumes(self.store, closed=(self.settings.home, self.lake_root.parent))

    def lake_url(self, workspace: str) -> str:
        return (self.lake_root / workspace).absolute().as_uri()

    def url(self, workspace: str, name: str) -> str:
        """Where callers reach a deployment."""
        return f"{self.gateway_url.rstrip('/')}/{workspace}/{name}/"


def _owned(record: Record) -> dict[str, str]:
    spec = record.spec
    return {
        "id": record.name,
        "visibility": str(spec.get("visibility") or "public"),
        "created_by": str(spec.get("created_by") or ""),
    }
