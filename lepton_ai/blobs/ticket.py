"""Tickets: short-lived headers that let an agent fetch one blob without an API token.

A ticket is ``EXPIRES_MS.HMAC`` over (digest, expiry) under the cell's blob key; it opens one digest until then, and
nothing else. The control loop signs, the API verifies. Standard library only.
"""

from __future__ import annotations

import hashlib
import hmac
import re

from lepton_ai.errors import Unauthorized

HEADER = "X-Lepton-Blob"
TTL_MS = 15 * 60 * 1000
_FORM = re.compile(r"([0-9]{1,15})\.([0-9a-f]{64})\Z")


def sign(key: bytes, digest: str, expires_ms: int) -> str:
    """The value of :data:`HEADER` that opens `digest` until `expires_ms` (UTC)."""
    return f"{expires_ms}.{_mac(key, digest, expires_ms)}"


def verify(key: bytes, digest: str, ticket: str, now_ms: int) -> None:
    """Raises Unauthorized unless `ticket` was signed with `key` for `digest` and has not run out."""
    found = _FORM.match(ticket)
    if found is None or not hmac.compare_digest(found[2], _mac(key, digest, int(found[1]))):
        raise Unauthorized("the blob ticket is not valid", hint="the control loop gives a new one with each order")
    if now_ms >= int(found[1]):
        raise Unauthorized("the blob ticket has run out", hint="the control loop gives a new one with each order")


def _mac(key: bytes, digest: str, expires_ms: int) -> str:
    return hmac.new(key, f"lepton-blob/1\n{digest}\n{expires_ms}".encode(), hashlib.sha256).hexdigest()
