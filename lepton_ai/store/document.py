"""Records and their JSON documents to and from the rows of the database. Owns what may be stored, and no I/O."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from sqlalchemy import RowMapping

from lepton_ai.errors import Corrupt, Invalid, TooLarge
from lepton_ai.store.op import Create
from lepton_ai.store.record import Change, Document, Record

MAX_DOCUMENT_BYTES = 4 * 1024 * 1024
MAX_NAME = 255
MAX_STATE = 64


def record_of(row: Sequence[Any]) -> Record:
    """A row of `records`, its columns in the order of Record's fields (`reads.COLUMNS`).

    Raises Corrupt when a document in it is not JSON.
    """
    # By position: looking twelve columns up by name takes longer than reading both documents.
    workspace, kind, name, uid, generation, revision, spec, status, *rest = row
    try:
        documents = _load(spec), _load(status)
    except ValueError:
        raise Corrupt(
            f"the record {kind} {name!r} (uid {uid}) holds something that is not JSON",
            hint="restore a backup of the store",
        ) from None
    return Record(workspace, kind, name, uid, generation, revision, *documents, *rest)


def change_of(row: Mapping[str, Any] | RowMapping) -> Change:
    """A row of the table `changes`."""
    return Change(**{**row, "deleted": bool(row["deleted"])})


def dump(value: Mapping[str, Any]) -> str:
    """The text of a document; equal documents have equal texts. Raises Invalid or TooLarge."""
    # Sorted and ASCII: a NUL inside a string, and half a surrogate pair, are then legal in PostgreSQL too.
    if not isinstance(value, Mapping):
        raise Invalid(f"a document must be a JSON object, not {type(value).__name__}", hint="pass a dict")
    try:
        text = json.dumps(dict(value), sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        hint = "use only dict, list, str, int, float, bool and None"
        raise Invalid(f"not a JSON document: {error}", hint=hint) from None
    if len(text) > MAX_DOCUMENT_BYTES:
        raise TooLarge(f"a document of {len(text)} bytes is over {MAX_DOCUMENT_BYTES}", hint="put bytes into a blob")
    return text


def state_of(status: Mapping[str, Any]) -> str:
    """What a status says of itself, for the index of the records: its "state", else its "phase", else ""."""
    value = status.get("state") or status.get("phase")
    fits = isinstance(value, str) and len(value) <= MAX_STATE and value.isascii() and value.isprintable()
    return str(value) if fits else ""


def validate(op: Create) -> None:
    """Raises Invalid unless every name in `op` can be stored and found again on both engines."""
    for field in ("workspace", "kind", "name", "uid", "owner_uid"):
        value = getattr(op, field)
        if value is None and field in ("uid", "owner_uid"):
            continue
        if not isinstance(value, str) or not storable(value):
            raise Invalid(
                f"{field} {str(value)[:80]!r} cannot be stored",
                hint=f"use 1 to {MAX_NAME} characters of valid Unicode, without NUL",
            )


def storable(*names: str) -> bool:
    """Whether every name could be in the database at all: 1 to 255 characters, valid Unicode, no NUL."""
    return all(0 < len(name) <= MAX_NAME and "\0" not in name and _encodes(name) for name in names)


def _encodes(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _load(text: str) -> Document:
    try:
        # A third faster than json, and it makes one object of each key however many documents have it.
        value = msgspec.json.decode(text)
    except ValueError:  # what msgspec does not take: half a surrogate pair, for one
        value = json.loads(text)
    if not isinstance(value, dict):
        raise ValueError(f"a {type(value).__name__} is no document")
    return value
