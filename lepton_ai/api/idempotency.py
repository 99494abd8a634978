"""Idempotency-Key: a POST that is sent again with the same key is done once and answered the same.

Owns the keys, kept for a day. The answer is kept sealed: it may hold a token that is shown once. A control plane that
dies between the work and the record of its answer leaves the key "under way"; after ten minutes it may be used again,
and only then can the work be done a second time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable
from typing import Any

from lepton_ai.api.cell import Cell
from lepton_ai.errors import Conflict, Invalid
from lepton_ai.store import Record
from lepton_ai.tenancy import Principal

HEADER = "idempotency-key"
REPLAYED = "idempotency-replayed"
KIND = "answer"
KEEP_MS = 86_400_000
STUCK_MS = 600_000
SWEEP = 20


def once(cell: Cell, who: Principal, key: str, request: str, body: object, work: Callable[[], Any]) -> tuple[Any, bool]:
    """What `work` gives, and whether it was given before: for this key, token, `request` (method and path) and body.

    Raises Invalid (key), Conflict (the key was used for another body, or its first use is still under way), and what
    `work` raises; a refused request may be sent again with its key.
    """
    if not 1 <= len(key) <= 255 or not key.isascii() or not key.isprintable():
        raise Invalid("the Idempotency-Key is not 1 to 255 visible ASCII characters", hint="use a new UUID")
    name = _digest([who.token_name, request, key])
    digest = _digest(body)
    context = f"{who.workspace}/{KIND}/{name}"
    _sweep(cell, who.workspace)
    record = cell.store.find(who.workspace, KIND, name)
    if record is not None and not _is_over(cell, record):
        return _again(cell, record, digest, context), True
    claim = _claim(cell, who.workspace, name, digest, record)
    try:
        value = work()
    except BaseException:
        with contextlib.suppress(Conflict):
            cell.store.delete(claim)
        raise
    sealed = cell.secrets.seal(json.dumps(value, allow_nan=False), context)
    with contextlib.suppress(Conflict):
        cell.store.update(claim, spec={**claim.spec, "sealed": sealed})
    return value, False


def _again(cell: Cell, record: Record, digest: str, context: str) -> Any:
    if record.spec.get("body") != digest:
        hint = "use a new Idempotency-Key for a new request"
        raise Conflict("this Idempotency-Key was used for another body", hint=hint, details={"final": True})
    if not record.spec.get("sealed"):
        hint = "send it again in a moment"
        raise Conflict("the first request with this Idempotency-Key is still under way", hint=hint)
    return json.loads(cell.secrets.unseal(str(record.spec["sealed"]), context))


def _claim(cell: Cell, workspace: str, name: str, digest: str, old: Record | None) -> Record:
    spec = {"body": digest, "sealed": "", "claimed_ms": cell.store.now_ms()}
    try:
        if old is not None:
            return cell.store.update(old, spec=spec)
        return cell.store.create(workspace, KIND, name, spec)
    except Conflict:
        hint = "send it again in a moment"
        raise Conflict("another request with this Idempotency-Key is under way", hint=hint) from None


def _is_over(cell: Cell, record: Record) -> bool:
    age_ms = cell.store.now_ms() - int(record.spec.get("claimed_ms") or 0)
    return age_ms >= (KEEP_MS if record.spec.get("sealed") else STUCK_MS)


def _sweep(cell: Cell, workspace: str) -> None:
    """Drops some of the oldest keys that are over: each use clears more than it adds."""
    for record in cell.store.list(KIND, workspace=workspace, limit=SWEEP):
        if _is_over(cell, record):
            with contextlib.suppress(Conflict):
                cell.store.delete(record)


def _digest(value: object) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
