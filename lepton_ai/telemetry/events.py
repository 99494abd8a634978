"""Events: short notes on what happened to an object, for people. Equal ones are counted up, the oldest dropped.

They are rows of their own table and not records: a note must not wake everyone who watches the store.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

from sqlalchemy import delete, func, insert, select, update

from lepton_ai.errors import Invalid
from lepton_ai.spec.base import uuid7
from lepton_ai.store import Store
from lepton_ai.store.tables import events

MAX_EVENTS = 2000
SLACK = 64
"""A workspace may be this far over its limit between two prunings."""
MAX_MESSAGE = 1024
Type = Literal["Normal", "Warning"]


@dataclass(frozen=True, slots=True)
class Event:
    """A note on the object (kind, name, uid), seen `count` times between `first_ms` and `last_ms`."""

    workspace: str
    kind: str
    name: str
    uid: str | None
    type: Type
    reason: str
    message: str
    count: int
    first_ms: int
    last_ms: int


class Events:
    """The events of a cell; each workspace keeps about the newest `limit`."""

    def __init__(self, store: Store, *, limit: int = MAX_EVENTS) -> None:
        self._store = store
        self._limit = limit

    def add(
        self, workspace: str, kind: str, name: str, type: Type, reason: str, message: str, uid: str | None = None
    ) -> None:
        """Notes it; an equal (object, type, reason, message) is counted up. Raises Invalid for another `type`."""
        if type not in ("Normal", "Warning"):
            raise Invalid(f"event type {type!r} is not known", hint="use Normal or Warning")
        message = _clean(message, MAX_MESSAGE)
        parts = (kind, name, uid or "", type, reason, message)
        digest = hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass")).hexdigest()
        now_ms = self._store.now_ms()
        same = (events.c.workspace == workspace) & (events.c.digest == digest)
        with self._store.writing() as connection:
            again = update(events).where(same).values(count=events.c.count + 1, last_ms=now_ms)
            if connection.execute(again).rowcount:
                return
            connection.execute(
                insert(events).values(
                    uid=uuid7(), workspace=workspace, kind=kind, name=name, object_uid=uid, type=type,
                    reason=_clean(reason, 128), message=message, digest=digest, count=1,
                    first_ms=now_ms, last_ms=now_ms,
                )
            )  # fmt: skip
            many = connection.execute(select(func.count()).where(events.c.workspace == workspace)).scalar_one()
            if many > self._limit + SLACK:
                newest = (
                    select(events.c.uid)
                    .where(events.c.workspace == workspace)
                    .order_by(events.c.last_ms.desc(), events.c.uid.desc())
                    .limit(self._limit)
                )
                connection.execute(delete(events).where(events.c.workspace == workspace, events.c.uid.not_in(newest)))

    def list(self, workspace: str, kind: str | None = None, name: str | None = None, limit: int = 100) -> list[Event]:
        """The newest `limit` events of a workspace, of one kind, or of one object, oldest first."""
        query = select(events).where(events.c.workspace == workspace)
        if kind is not None:
            query = query.where(events.c.kind == kind)
        if name is not None:
            query = query.where(events.c.name == name)
        query = query.order_by(events.c.last_ms.desc(), events.c.uid.desc()).limit(max(0, limit))
        with self._store.reading() as connection:
            rows = connection.execute(query).mappings().all()
        return [
            Event(
                row["workspace"], row["kind"], row["name"], row["object_uid"], row["type"], row["reason"],
                row["message"], row["count"], row["first_ms"], row["last_ms"],
            )
            for row in reversed(rows)
        ]  # fmt: skip

    def forget(self, workspace: str) -> None:
        """Drops every event of a workspace."""
        with self._store.writing() as connection:
            connection.execute(delete(events).where(events.c.workspace == workspace))


def _clean(text: str, length: int) -> str:
    return text.replace("\0", "�").encode("utf-8", "replace").decode()[:length]
