"""The workspaces of a cell: who its tenants are, and whether it can hold more than one apart.

Owns their records and what goes with them; their data on disk (lake, logs) are removed by whoever owns those. The
first workspace is the cell owner's: it is never removed, and only its tokens manage nodes, volumes and workspaces.
"""

from __future__ import annotations

import builtins
from dataclasses import dataclass

from lepton_ai.errors import Conflict, Invalid, NotFound
from lepton_ai.settings import Settings
from lepton_ai.spec.base import NAME_PATTERN, is_name
from lepton_ai.spec.container import PRIORITY_MOST
from lepton_ai.store import Delete, Op, Record, Store, Update
from lepton_ai.telemetry import Audit

CELL = "system"
KIND = "workspace"
RESERVED = frozenset({"system", "cell", "public", "private", "all", "none", "x"})
"""Words that mean something else where a workspace's name may stand."""
WORK = ("deployment", "job")
TRUST = "its workloads run as the same user as yours and can read your files and secrets"
KINDS = (
    "secret", "registry", "template", "permission", "datasource", "ingress", "archive", "release", "replica", "answer",
    "tombstone", "blob",
)  # fmt: skip
"""What is recorded of a workspace besides its work and its tokens."""


@dataclass(frozen=True, slots=True)
class Workspace:
    """A tenant. `first`: the cell owner's. `forced`: it was added although nothing keeps it apart.

    `weight`: its share of the cell beside others that have 1, while all want more than there is. `priority_most`: the
    largest priority that its work may ask for.
    """

    name: str
    first: bool
    forced: bool
    created_by: str
    created_ms: int
    weight: float = 1.0
    priority_most: int = PRIORITY_MOST


def isolation(settings: Settings) -> str:
    """What keeps the workloads of two workspaces apart in a cell with these settings: none, uid or container."""
    if settings.runtime.startswith("docker:"):
        return "container"
    return str(getattr(settings, "isolation", "none"))


class Workspaces:
    """The workspaces of a cell."""

    def __init__(self, store: Store, settings: Settings) -> None:
        self._store = store
        self._isolation = isolation(settings)
        self._audit = Audit(store)
        self.first = settings.workspace

    def list(self) -> builtins.list[Workspace]:
        """The first one, then the others by name; also one that has only tokens (an older cell's)."""
        records = {record.name: record for record in self._store.list(KIND, workspace=CELL)}
        names = {*records, *(token.workspace for token in self._store.list("token"))} - {self.first}
        return [self._shown(name, records.get(name)) for name in (self.first, *sorted(names))]

    def get(self, name: str) -> Workspace:
        """Raises NotFound."""
        for workspace in self.list():
            if workspace.name == name:
                return workspace
        raise NotFound(f"there is no workspace {name[:80]!r}", hint="list them: lepton workspace ls")

    def add(self, name: str, *, force: bool = False, actor: str = "cell") -> Workspace:
        """A new workspace, without tokens. Raises Invalid (name), Conflict (exists, or nothing keeps it apart)."""
        if not is_name(name) or name in RESERVED:
            why = "is reserved" if name in RESERVED else f"does not match {NAME_PATTERN}"
            raise Invalid(f"{name[:80]!r} cannot be a workspace's name: it {why}", hint="for example team-a")
        if any(workspace.name == name for workspace in self.list()):
            raise Conflict(f"workspace {name} exists already", hint="choose another name, or: lepton workspace ls")
        if self._isolation == "none" and not force:
            raise Conflict(
                f"this cell runs with isolation none: a second workspace would not be kept apart, {TRUST}",
                hint=f"set isolation = uid or runtime = docker://, or accept it: lepton workspace add {name} --force",
                details={"isolation": self._isolation},
            )
        forced = self._isolation == "none"
        record = self._store.create(CELL, KIND, name, {"created_by": actor, "isolation_forced": forced})
        self._audit.add(self.first, actor, "add", KIND, name, {"isolation": self._isolation, "forced": forced})
        return self._shown(name, record)

    def set(
        self, name: str, *, weight: float | None = None, priority_most: int | None = None, actor: str = "cell"
    ) -> Workspace:
        """Change its share of the cell, or the largest priority of its work. Raises NotFound, Invalid, Conflict."""
        known = self.get(name)
        if weight is not None and not 0.01 <= weight <= 100:
            raise Invalid(f"weight is {weight:g}", hint="use 0.01 to 100; a workspace that is not told otherwise has 1")
        if priority_most is not None and not 0 <= priority_most <= PRIORITY_MOST:
            raise Invalid(f"priority_most is {priority_most}", hint=f"use 0 to {PRIORITY_MOST}")
        asked = {"weight": weight, "priority_most": priority_most}
        fields = {key: value for key, value in asked.items() if value is not None}
        record = self._store.find(CELL, KIND, name)
        if record is None:  # the first one, or one that an older cell made
            made = {"created_by": known.created_by, "isolation_forced": known.forced}
            record = self._store.create(CELL, KIND, name, {**made, **fields})
        else:
            record = self._store.update(record, spec={**record.spec, **fields})
        self._audit.add(self.first, actor, "set", KIND, name, dict(fields))
        return self._shown(name, record)

    def remove(self, name: str, *, actor: str = "cell") -> None:
        """Ends a workspace: its tokens first, then its secrets, logins and everything else that is recorded of it.

        Raises Invalid (the first one), NotFound, Conflict (it has deployments, pods or jobs).
        """
        self.get(name)
        if name == self.first:
            raise Invalid(
                f"{name} is the first workspace of the cell", hint="end the cell instead: lepton down --purge"
            )
        self._refuse_work(name)
        self._delete(name, ("token",))
        # Nobody can add work now; what came between the look and the end of the tokens is still refused.
        work = [item for kind in WORK for item in self._store.list(kind, workspace=name)]
        if work:
            self._store.batch([Update(item, deleting=True) for item in work if not item.deleting])
            hint = f"it is being drained; repeat it: lepton workspace rm {name} --yes"
            raise Conflict(f"{work[0].kind} {work[0].name} was added meanwhile", hint=hint)
        self._delete(name, KINDS)
        ops: builtins.list[Op] = []
        for volume in self._store.list("volume", workspace=CELL):
            given = [item for item in volume.spec.get("workspaces", []) if item != name]
            ops.append(Update(volume, spec={**volume.spec, "workspaces": given}))
        record = self._store.find(CELL, KIND, name)
        if record is not None:
            ops.append(Delete(record))
        self._store.batch(ops)
        self._audit.add(self.first, actor, "remove", KIND, name)

    def warning(self) -> str:
        """What the cell's owner must not forget while other workspaces are not kept apart; else empty."""
        others = [workspace.name for workspace in self.list() if not workspace.first]
        if self._isolation != "none" or not others:
            return ""
        return f"isolation is none: workspace {', '.join(others)} is not kept apart, {TRUST}"

    def _refuse_work(self, name: str) -> None:
        work = [item.name for kind in WORK for item in self._store.list(kind, workspace=name)]
        if work:
            shown = ", ".join(work[:3]) + (f" and {len(work) - 3} more" if len(work) > 3 else "")
            hint = f"remove them first: lepton rm {work[0]} --workspace {name}"
            raise Conflict(f"workspace {name} still has {shown}", hint=hint, details={"work": list(work[:100])})

    def _delete(self, name: str, kinds: tuple[str, ...]) -> None:
        for kind in kinds:
            self._store.batch([Delete(record) for record in self._store.list(kind, workspace=name)])

    def _shown(self, name: str, record: Record | None) -> Workspace:
        spec = {} if record is None else record.spec
        forced = bool(spec.get("isolation_forced"))
        created_ms = 0 if record is None else record.created_ms
        return Workspace(
            name,
            name == self.first,
            forced,
            str(spec.get("created_by", "")),
            created_ms,
            float(spec.get("weight", 1.0)),
            int(spec.get("priority_most", PRIORITY_MOST)),
        )
