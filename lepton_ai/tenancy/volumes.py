"""Volumes of the cell, and who may mount which part of them. Owns the rules; nodes own the mounting.

A volume is a folder of the nodes that the cell's own admins name; it is mounted only by the workspaces it was given
to. Within a workspace everyone may mount all of a volume until its first path rule: from then on only what a rule
covers. A rule allows a path (and what lies below it) to named users, or with "by_user" to each user the folder of
their own name below it. A user is the name of an API token.
"""

from __future__ import annotations

import builtins
import hashlib
import posixpath
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lepton_ai.errors import Conflict, Forbidden, Invalid, NotFound, Unavailable
from lepton_ai.spec.base import NAME_PATTERN, is_name
from lepton_ai.spec.container import LOCAL, SYSTEM_FOLDERS, Mount
from lepton_ai.spec.replica import MountOrder
from lepton_ai.store import Create, Delete, Record, Store, Update

CELL = "system"
"""The workspace that volumes are recorded in: they belong to the cell."""
KIND = "volume"
RULE = "permission"
ANYONE = "*"
MAX_RULES = 256
Source = Literal["local", "remote", "nfs"]
Policy = Literal["", "by_user"]


@dataclass(frozen=True, slots=True)
class Volume:
    """A folder of the nodes. `workspaces` may mount it. :data:`LOCAL` has no path: each node's own per workspace."""

    name: str
    source: Source
    path: str | None
    size_gib: int
    default_target: str
    creation: str
    workspaces: tuple[str, ...]
    created_ms: int = 0


@dataclass(frozen=True, slots=True)
class Rule:
    """Who may mount `prefix` of a volume and what lies below it."""

    prefix: str
    users: tuple[str, ...] = ()
    policy: Policy = ""

    def allows(self, user: str, path: str) -> bool:
        if self.policy == "by_user":
            return bool(user) and _within(path, posixpath.join(self.prefix, user))
        return (ANYONE in self.users or user in self.users) and _within(path, self.prefix)


class Volumes:
    """The volumes of a cell. `closed` are folders that no volume may hold or lie in (the cell's own)."""

    def __init__(self, store: Store, closed: Sequence[Path] = ()) -> None:
        self._store = store
        self._closed = [path.absolute() for path in closed]

    def resolve(self, workspace: str, user: str, mount: Mount) -> MountOrder:
        """What a node is told for `mount` of a workload made by `user`. Raises NotFound, Forbidden."""
        volume = self.get(workspace, mount.volume)
        rules = self.rules(workspace, mount.volume)
        if rules and not any(rule.allows(user, mount.path) for rule in rules):
            hint = f"a rule must cover that path: lep node storage permission -n {mount.volume}"
            raise Forbidden(f"{user or 'this user'} may not mount {mount.path} of volume {mount.volume}", hint=hint)
        return MountOrder(
            volume=mount.volume, root=volume.path, path=mount.path, target=mount.target, read_only=mount.read_only
        )

    # -- volumes

    def list(self, workspace: str) -> list[Volume]:
        """Those that `workspace` may mount, the nodes' own first."""
        found = [_volume(record) for record in self._store.list(KIND, workspace=CELL)]
        return [_LOCAL, *sorted((item for item in found if workspace in item.workspaces), key=lambda item: item.name)]

    def get(self, workspace: str, name: str) -> Volume:
        """Raises NotFound, also for a volume that was not given to `workspace`."""
        for volume in self.list(workspace):
            if volume.name == name:
                return volume
        names = ", ".join(item.name for item in self.list(workspace))
        raise NotFound(f"workspace {workspace} has no volume {name[:80]!r}", hint=f"volumes: {names}")

    def add(self, volume: Volume) -> Volume:
        """Records a volume, and makes its folder with `creation` mkdir.

        Raises Invalid (name, folder), Conflict, Unavailable (the folder cannot be made).
        """
        if not is_name(volume.name):
            raise Invalid(f"{volume.name[:80]!r} cannot be a volume's name", hint=f"names match {NAME_PATTERN}")
        if volume.name == LOCAL:
            raise Conflict(f"volume {LOCAL!r} exists: every node has it", hint="choose another name")
        path = self._folder(volume)
        spec = {
            "from": volume.source,
            "path": str(path),
            "size_in_gb": volume.size_gib,
            "default_mount_path": volume.default_target,
            "creation_mode": volume.creation,
            "workspaces": list(volume.workspaces),
        }
        return _volume(self._store.create(CELL, KIND, volume.name, spec))

    def remove(self, name: str) -> None:
        """Forgets the volume and its rules; the folder and what lies in it stay. Raises NotFound, Invalid (LOCAL)."""
        if name == LOCAL:
            raise Invalid(f"volume {LOCAL!r} belongs to every node", hint="remove one that was added")
        record = self._store.find(CELL, KIND, name)
        if record is None:
            raise NotFound(f"there is no volume {name[:80]!r}", hint="list them: lep node storage")
        rules = [item for item in self._store.list(RULE) if item.spec.get("volume") == name]
        self._store.batch([Delete(record), *(Delete(item) for item in rules)])

    def _folder(self, volume: Volume) -> Path:
        text = volume.path or ""
        if not text.startswith("/") or "\0" in text or ".." in text.split("/") or len(text) > 1024:
            raise Invalid(
                f"from_path is {text[:80]!r}, not an absolute path without '..'", hint="for example /srv/data"
            )
        path = Path(text)
        try:
            real = path.resolve()
        except (OSError, RuntimeError) as error:
            raise Invalid(f"from_path {text[:80]!r} leads nowhere: {error}", hint="name a folder") from None
        for each in (path, real):
            if any(_within(str(each), own) or _within(own, str(each)) for own in SYSTEM_FOLDERS):
                raise Invalid(f"{text} is a folder of the system", hint="name a folder of your data, e.g. /srv/data")
            if any(_within(str(each), str(own)) or _within(str(own), str(each)) for own in self._closed):
                raise Invalid(f"{text} would show what belongs to the cell itself", hint="name another folder")
        _make(real, volume.creation)
        return real

    # -- rules

    def rules(self, workspace: str, volume: str) -> builtins.list[Rule]:
        """The path rules of a volume in a workspace, by prefix; none: everyone may mount all of it."""
        found = [_rule(record) for record in self._rules(workspace, volume)]
        return sorted(found, key=lambda rule: rule.prefix)

    def allow(self, workspace: str, volume: str, rule: Rule) -> Rule:
        """Adds a rule, or replaces the one of that prefix. Raises NotFound, Invalid, Conflict (too many)."""
        self.get(workspace, volume)
        rule = Rule(_prefix(rule.prefix), tuple(dict.fromkeys(rule.users)), rule.policy)
        if rule.policy == "by_user" and rule.users:
            raise Invalid("subfolder_policy by_user and allowed_users exclude each other", hint="give one of them")
        if rule.policy == "" and not rule.users:
            raise Invalid("the rule allows nobody", hint='name allowed_users (["*"] for everyone), or by_user')
        spec = {"volume": volume, "prefix": rule.prefix, "allowed_users": list(rule.users), "policy": rule.policy}
        record = self._store.find(workspace, RULE, _rule_name(volume, rule.prefix))
        if record is None:
            if len(self._rules(workspace, volume)) >= MAX_RULES:
                raise Conflict(f"volume {volume} has {MAX_RULES} rules already", hint="remove one first")
            self._store.batch([Create(workspace, RULE, _rule_name(volume, rule.prefix), spec)])
        else:
            self._store.batch([Update(record, spec)])
        return rule

    def disallow(self, workspace: str, volume: str, prefix: str) -> None:
        """Removes a rule. Raises NotFound."""
        self.get(workspace, volume)
        record = self._store.find(workspace, RULE, _rule_name(volume, _prefix(prefix)))
        if record is None:
            hint = f"list them: lep node storage permission -n {volume}"
            raise NotFound(f"volume {volume} has no rule for {prefix[:80]!r}", hint=hint)
        self._store.delete(record)

    def _rules(self, workspace: str, volume: str) -> builtins.list[Record]:
        return [item for item in self._store.list(RULE, workspace=workspace) if item.spec.get("volume") == volume]


_LOCAL = Volume(LOCAL, "local", None, 0, "", "none", ())


def _volume(record: Record) -> Volume:
    spec = record.spec
    return Volume(
        record.name,
        spec["from"],
        str(spec["path"]),
        int(spec["size_in_gb"]),
        str(spec.get("default_mount_path") or ""),
        str(spec.get("creation_mode") or "none"),
        tuple(_texts(spec.get("workspaces"))),
        record.created_ms,
    )


def _rule(record: Record) -> Rule:
    spec = record.spec
    return Rule(str(spec["prefix"]), tuple(_texts(spec.get("allowed_users"))), spec.get("policy") or "")


def _texts(value: object) -> Iterable[str]:
    return (str(item) for item in value) if isinstance(value, list) else ()


def _rule_name(volume: str, prefix: str) -> str:
    """Names are short and paths are not."""
    return f"{volume}.{hashlib.sha256(prefix.encode('utf-8', 'surrogatepass')).hexdigest()[:40]}"


def _prefix(text: str) -> str:
    if not text.startswith("/") or "\0" in text or ".." in text.split("/") or len(text) > 1024:
        raise Invalid(f"path_prefix is {text[:80]!r}, not an absolute path without '..'", hint="for example /team")
    return posixpath.normpath(text).replace("//", "/")


def _within(path: str, folder: str) -> bool:
    return folder == "/" or path == folder or path.startswith(folder.rstrip("/") + "/")


def _make(path: Path, creation: str) -> None:
    try:
        if path.is_dir():
            return
        if creation != "mkdir" or path.exists():
            what = "is not a folder" if path.exists() else f"does not exist, and creation_mode is {creation}"
            raise Invalid(f"{path} {what}", hint="mount it first, or use creation_mode mkdir")
        path.mkdir(parents=True)
        path.chmod(0o1777)  # workloads of several user ids share it; nobody removes another's files
    except OSError as error:
        hint = f"make it yourself: mkdir -p {path}"
        raise Unavailable(f"{path} cannot be made: {error.strerror or error}", hint=hint) from error
