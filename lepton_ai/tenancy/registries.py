"""Logins at image registries, sealed like secrets: what a replica's node needs to pull a private image.

Owns the records and their sealing. A login leaves the cell only in an order to a node, never in an answer.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from lepton_ai.errors import Invalid, NotFound, TooLarge
from lepton_ai.spec.replica import RegistryLogin
from lepton_ai.store import Record, Store
from lepton_ai.telemetry import Audit
from lepton_ai.tenancy.secrets import MAX_SECRET_BYTES, Secrets

KIND = "registry"
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9._-]{0,127}\Z")
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?(:[0-9]{1,5})?(/[A-Za-z0-9._/-]{1,255})?\Z")


@dataclass(frozen=True, slots=True)
class Registry:
    """A login as it may be shown."""

    name: str
    registry: str
    username: str
    created_by: str
    created_ms: int
    updated_ms: int


class Registries:
    """The registry logins of a cell."""

    def __init__(self, store: Store, secrets: Secrets) -> None:
        self._store, self._secrets = store, secrets
        self._audit = Audit(store)

    def login(self, workspace: str, name: str) -> RegistryLogin:
        """The login itself, for an order to a node. Raises NotFound, or Corrupt when it does not open."""
        record = self._store.find(workspace, KIND, name)
        if record is None:
            hint = f"run: lepton registry set {name} HOST --username NAME"
            raise NotFound(f"no image-pull secret {name[:80]!r} in workspace {workspace!r}", hint=hint)
        password = self._secrets.unseal(str(record.spec.get("sealed")), _context(workspace, name))
        return RegistryLogin(
            registry=str(record.spec["registry"]), username=str(record.spec["username"]), password=password
        )

    def set(
        self, workspace: str, name: str, registry: str, username: str, password: str, *, actor: str = "cell"
    ) -> Registry:
        """Makes or replaces a login. Raises Invalid, TooLarge."""
        if not _NAME.match(name):
            hint = "use letters, digits, '.', '_' and '-', beginning with a letter, at most 128"
            raise Invalid(f"{name[:80]!r} is not a name of an image-pull secret", hint=hint)
        if not _HOST.match(registry):
            raise Invalid(f"{registry[:80]!r} is not a registry", hint="for example registry.example.com:5000")
        if not username or len(username) > 255 or not username.isprintable() or ":" in username:
            raise Invalid(f"username {username[:40]!r} cannot be used", hint="1 to 255 characters without ':'")
        if len(password.encode("utf-8", "surrogatepass")) > MAX_SECRET_BYTES:
            raise TooLarge(f"the password is over {MAX_SECRET_BYTES} bytes", hint="use a token of the registry")
        if not password or any(mark in password for mark in "\0\r\n"):
            raise Invalid("the password is empty or holds a line's end", hint="send it without a newline")
        spec = {
            "registry": registry,
            "username": username,
            "sealed": self._secrets.seal(password, _context(workspace, name)),
            "created_by": actor,
        }
        record = self._store.find(workspace, KIND, name)
        if record is None:
            record = self._store.create(workspace, KIND, name, spec)
        else:
            record = self._store.update(record, spec={**spec, "created_by": record.spec.get("created_by", actor)})
        self._audit.add(workspace, actor, "set", KIND, name, {"registry": registry})
        return _shown(record)

    def list(self, workspace: str) -> list[Registry]:
        """The logins of a workspace by name; never a password."""
        return sorted(
            (_shown(record) for record in self._store.list(KIND, workspace=workspace)), key=lambda item: item.name
        )

    def delete(self, workspace: str, name: str, *, actor: str = "cell") -> None:
        """Removes a login. Raises NotFound."""
        self._store.delete(self._store.get(workspace, KIND, name))
        self._audit.add(workspace, actor, "delete", KIND, name)


def _shown(record: Record) -> Registry:
    spec = record.spec
    return Registry(
        record.name,
        str(spec["registry"]),
        str(spec["username"]),
        str(spec.get("created_by", "")),
        record.created_ms,
        record.updated_ms,
    )


def _context(workspace: str, name: str) -> str:
    return f"{workspace}/{KIND}/{name}"
