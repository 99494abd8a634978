"""API tokens and what their role may do. Owns no accounts: whoever holds a token is its role in its workspace.

A token is 256 random bits, so its plain SHA-256 is enough at rest (nothing to guess from) and its record is found
by that hash; only the text's last four characters are kept to tell tokens apart.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass
from typing import Literal, get_args

from lepton_ai.errors import Forbidden, Invalid, NotFound, Unauthorized
from lepton_ai.spec.base import is_name
from lepton_ai.store import Record, Store
from lepton_ai.telemetry import Audit

Role = Literal["owner", "admin", "developer", "viewer", "caller"]
Action = Literal["call", "read", "write", "secrets", "tokens", "cell", "workspace", "workspaces"]
MAY: dict[str, frozenset[str]] = {
    "caller": frozenset({"call"}),
    "viewer": frozenset({"call", "read"}),
    "developer": frozenset({"call", "read", "write", "secrets"}),
    "admin": frozenset({"call", "read", "write", "secrets", "tokens", "cell"}),
    "owner": frozenset({"call", "read", "write", "secrets", "tokens", "cell", "workspace", "workspaces"}),
}
"""call: use an endpoint; read: see everything but secret values; write: change workloads and data; secrets: set
them; tokens: give and take access; cell: drain nodes, add volumes; workspace: name its owners; workspaces: add and
remove tenants of the cell."""
OF_THE_CELL: frozenset[str] = frozenset({"cell", "workspaces"})
"""Only tokens of the cell's first workspace may do these: they are about everybody's."""
KIND = "token"
PREFIX = "lta_"
_TOKEN = re.compile(r"lta_[A-Za-z0-9_-]{43}\Z")


@dataclass(frozen=True, slots=True)
class Principal:
    """Who a request comes from."""

    workspace: str
    role: Role
    token_name: str


@dataclass(frozen=True, slots=True)
class TokenInfo:
    """A token as it may be shown."""

    name: str
    role: Role
    masked: str
    created_ms: int
    expires_ms: int | None


class Access:
    """The tokens of a cell. Each issue and revocation leaves an audit entry by `actor`."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._audit = Audit(store)

    def issue(
        self, workspace: str, role: Role, name: str, expires_ms: int | None = None, *, actor: str = "cell"
    ) -> tuple[str, Record]:
        """A new token: its text, shown this once and stored nowhere, and its record.

        `expires_ms` is UTC milliseconds. Raises Invalid (role, name, expiry in the past) or Conflict (name taken).
        """
        if role not in get_args(Role):
            raise Invalid(f"role {role!r} is not known", hint=f"use one of: {', '.join(get_args(Role))}")
        for label, value in (("workspace", workspace), ("token name", name)):
            if not is_name(value):
                raise Invalid(f"{label} {value[:80]!r} is not a name", hint="use lower-case letters, digits and '-'")
        if expires_ms is not None and expires_ms <= self._store.now_ms():
            raise Invalid("the token would have expired already", hint="choose a time in the future")
        text = PREFIX + secrets.token_urlsafe(32)
        digest = _digest(text)
        spec = {"role": role, "hash": digest, "masked": f"{PREFIX}…{text[-4:]}", "expires_ms": expires_ms}
        record = self._store.create(workspace, KIND, name, spec, uid=_uid(digest))
        self._audit.add(workspace, actor, "issue", KIND, name, {"role": role, "expires_ms": expires_ms})
        return text, record

    def authenticate(self, token: str) -> Principal:
        """Who holds `token`; raises Unauthorized when it is unknown, revoked or expired (all look the same)."""
        wrong = Unauthorized("the token is not valid", hint="issue a new one: lepton token add NAME")
        if not isinstance(token, str) or not _TOKEN.match(token):
            raise wrong
        digest = _digest(token)
        try:
            record = self._store.get_uid(_uid(digest))
        except NotFound:
            raise wrong from None
        if record.kind != KIND or not hmac.compare_digest(str(record.spec.get("hash")), digest):
            raise wrong
        expires_ms = record.spec.get("expires_ms")
        if expires_ms is not None and self._store.now_ms() >= expires_ms:
            raise wrong
        return Principal(record.workspace, record.spec["role"], record.name)

    def revoke(self, workspace: str, name: str, *, actor: str = "cell") -> None:
        """Ends a token at once; raises NotFound."""
        self._store.delete(self._store.get(workspace, KIND, name))
        self._audit.add(workspace, actor, "revoke", KIND, name)

    def list(self, workspace: str) -> list[TokenInfo]:
        """The tokens of a workspace, masked, in the order of their making."""
        found = [
            TokenInfo(item.name, item.spec["role"], item.spec["masked"], item.created_ms, item.spec["expires_ms"])
            for item in self._store.list(KIND, workspace=workspace)
        ]
        return sorted(found, key=lambda token: (token.created_ms, token.name))

    def require(self, principal: Principal, action: Action) -> None:
        """Raises Forbidden unless the principal's role may do `action` in its workspace; see MAY."""
        if action not in get_args(Action):
            raise Invalid(f"action {action!r} is not known", hint=f"use one of: {', '.join(get_args(Action))}")
        if action not in MAY[principal.role]:
            able = [role for role in get_args(Role) if action in MAY[role]]
            raise Forbidden(
                f"token {principal.token_name!r} has role {principal.role}, which may not {action}",
                hint=f"use a token with role {' or '.join(reversed(able))}",
                details={"role": principal.role, "action": action},
            )


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def _uid(digest: str) -> str:
    return f"token-{digest[:40]}"
