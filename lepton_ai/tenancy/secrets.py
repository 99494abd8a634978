"""Secrets at rest: AES-256-GCM under a key outside the database. Owns sealing; who may ask is access.py's.

The cell's key is never used itself: HKDF-SHA256 (RFC 5869) derives one key a workspace, so that the number of
messages under one key stays far below the 2^32 that random 96-bit nonces allow (NIST SP 800-38D, 8.3). What a
text is for (its context) is authenticated: a sealed value that is moved to another place does not open there.
"""

from __future__ import annotations

import base64
import binascii
import builtins
import functools
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from lepton_ai.errors import Corrupt, Invalid, NotFound, TooLarge, Unavailable
from lepton_ai.store import Record, Store
from lepton_ai.telemetry import Audit
from lepton_ai.tenancy.access import MAY, Principal

KEY_BYTES = 32
NONCE_BYTES = 12
MAX_SECRET_BYTES = 64 * 1024
KIND = "secret"
Visibility = Literal["public", "private"]
"""private: its owner and the workspace's admins and owners only; for others it does not exist."""
_FORM = "lts1."


@dataclass(frozen=True, slots=True)
class Secret:
    """A secret as it may be shown: never its value. `owner` is the name of the token that made it."""

    name: str
    owner: str
    visibility: Visibility
    tags: tuple[str, ...]
    created_ms: int
    updated_ms: int

    def seen_by(self, who: Principal) -> bool:
        """Whether `who` may know of it, change it and have workloads use it."""
        return self.visibility == "public" or who.token_name == self.owner or "tokens" in MAY[who.role]


class Secrets:
    """The secrets of a cell, sealed with `key` (32 bytes; see :func:`load_key`)."""

    def __init__(self, store: Store, key: bytes) -> None:
        if len(key) != KEY_BYTES:
            raise Invalid(f"the key has {len(key)} bytes, not {KEY_BYTES}", hint="make one with load_key(path)")
        self._store = store
        self._audit = Audit(store)
        self._cipher = functools.lru_cache(maxsize=1024)(functools.partial(_cipher, key))

    def set(
        self,
        workspace: str,
        name: str,
        value: str,
        *,
        actor: str = "cell",
        visibility: Visibility | None = None,
        tags: Iterable[str] | None = None,
    ) -> None:
        """Makes or replaces a secret; its maker stays its owner, and what is not given stays as it is.

        Raises TooLarge over 64 KiB, Invalid for a name that cannot be stored.
        """
        if len(value.encode("utf-8", "surrogatepass")) > MAX_SECRET_BYTES:
            raise TooLarge(f"secret {name!r} is over {MAX_SECRET_BYTES} bytes", hint="put large files into a blob")
        record = self._store.find(workspace, KIND, name)
        before = {"owner": actor} if record is None else record.spec
        spec = {
            "sealed": self.seal(value, _context(workspace, name)),
            "owner": before.get("owner", ""),
            "visibility": visibility or before.get("visibility", "public"),
            "tags": list(before.get("tags", [])) if tags is None else list(tags),
        }
        if record is None:
            self._store.create(workspace, KIND, name, spec)
        else:
            self._store.update(record, spec=spec)
        self._audit.add(workspace, actor, "set", KIND, name)

    def list(self, workspace: str) -> list[str]:
        """The names of the secrets of a workspace, sorted; never a value."""
        return sorted(record.name for record in self._store.list(KIND, workspace=workspace))

    def shown(self, workspace: str, who: Principal) -> builtins.list[Secret]:
        """Those of a workspace that `who` may know of, by name."""
        found = [_secret(record) for record in self._store.list(KIND, workspace=workspace)]
        return sorted((item for item in found if item.seen_by(who)), key=lambda item: item.name)

    def visible(self, workspace: str, name: str, who: Principal) -> bool:
        """Whether there is such a secret, for `who`."""
        record = self._store.find(workspace, KIND, name)
        return record is not None and _secret(record).seen_by(who)

    def delete(self, workspace: str, name: str, *, actor: str = "cell") -> None:
        """Removes a secret; raises NotFound."""
        self._store.delete(self._store.get(workspace, KIND, name))
        self._audit.add(workspace, actor, "delete", KIND, name)

    def value(self, workspace: str, name: str) -> str:
        """The secret itself, for the environment of a replica; raises NotFound, or Corrupt when it does not open."""
        record = self._store.find(workspace, KIND, name)
        if record is None:
            raise NotFound(f"no secret {name!r} in workspace {workspace!r}", hint=f"run: lepton secret set {name}")
        return self.unseal(str(record.spec.get("sealed")), _context(workspace, name))

    def seal(self, text: str, context: str) -> str:
        """`text` encrypted for `context`, which is ``WORKSPACE/WHAT/WHICH``; two calls never give the same."""
        nonce = os.urandom(NONCE_BYTES)
        sealed = self._cipher(_workspace(context)).encrypt(
            nonce, text.encode("utf-8", "surrogatepass"), context.encode()
        )
        return _FORM + base64.urlsafe_b64encode(nonce + sealed).decode().rstrip("=")

    def unseal(self, sealed: str, context: str) -> str:
        """What :meth:`seal` was given; raises Corrupt for another key or context, or changed bytes."""
        try:
            if not sealed.startswith(_FORM):
                raise ValueError
            body = sealed.removeprefix(_FORM)
            data = base64.b64decode(body + "=" * (-len(body) % 4), altchars=b"-_", validate=True)
            cipher = self._cipher(_workspace(context))
            return cipher.decrypt(data[:NONCE_BYTES], data[NONCE_BYTES:], context.encode()).decode(
                "utf-8", "surrogatepass"
            )
        except (ValueError, binascii.Error, InvalidTag):
            raise Corrupt(
                f"the sealed value for {context!r} does not open",
                hint="it was changed, moved, or sealed with another secret.key; set it again",
            ) from None


def load_key(path: Path) -> bytes:
    """The key in `path`, made (0600) if there is none. Raises Corrupt for a wrong size, Unavailable for bad rights.

    Two processes that start at once get the same key: the file appears whole, or not at all.
    """
    try:
        if not path.exists():
            _create(path)
        mode = path.stat().st_mode & 0o777
        key = path.read_bytes()
    except OSError as error:
        hint = f"check the rights: ls -l {path.parent}"
        raise Unavailable(f"cannot use the key {path}: {error.strerror}", hint=hint) from error
    if mode & 0o077:
        raise Unavailable(f"the key {path} can be read by others (mode {mode:o})", hint=f"run: chmod 600 {path}")
    if len(key) != KEY_BYTES:
        hint = "restore it from a backup; without it the secrets of this cell cannot be opened"
        raise Corrupt(f"the key {path} has {len(key)} bytes, not {KEY_BYTES}", hint=hint)
    return key


def _secret(record: Record) -> Secret:
    spec = record.spec
    visibility: Visibility = "private" if spec.get("visibility") == "private" else "public"
    tags = tuple(str(tag) for tag in spec.get("tags") or ())
    return Secret(record.name, str(spec.get("owner", "")), visibility, tags, record.created_ms, record.updated_ms)


def _create(path: Path) -> None:
    part = path.with_name(f"{path.name}.{os.urandom(6).hex()}.part")
    try:
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(os.urandom(KEY_BYTES))
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(part, path)
        except FileExistsError:
            return
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        os.fsync(folder)
        os.close(folder)
    finally:
        part.unlink(missing_ok=True)


def _cipher(key: bytes, workspace: str) -> AESGCM:
    info = b"lepton_ai/secrets/1/" + workspace.encode()
    return AESGCM(HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=None, info=info).derive(key))


def _workspace(context: str) -> str:
    workspace, slash, rest = context.partition("/")
    if not workspace or not slash or not rest:
        raise Invalid(f"context {context!r} must be WORKSPACE/WHAT", hint="for example default/secret/api-key")
    return workspace


def _context(workspace: str, name: str) -> str:
    return f"{workspace}/{KIND}/{name}"
