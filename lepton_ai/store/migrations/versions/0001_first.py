"""The first schema: records, changes, leases; events, log segments, audit.

Revision ID: 0001
"""

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.types import TypeEngine

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

TEXT = sa.Text()
BYTES = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
BIG = sa.BigInteger()


def _column(name: str, kind: TypeEngine[Any], *, null: bool = False, key: bool = False) -> sa.Column[Any]:
    if key:
        return sa.Column(name, kind, primary_key=True, autoincrement=False)
    return sa.Column(name, kind, nullable=null)


def upgrade() -> None:
    _records()
    _telemetry()


def _records() -> None:
    counter = op.create_table("counter", _column("id", sa.Integer(), key=True), _column("revision", BIG))
    op.bulk_insert(counter, [{"id": 1, "revision": 0}])
    op.create_table(
        "records",
        _column("uid", BYTES, key=True),
        _column("workspace", BYTES),
        _column("kind", BYTES),
        _column("name", BYTES),
        _column("generation", BIG),
        _column("revision", BIG),
        _column("spec", TEXT),
        _column("status", TEXT),
        _column("owner_uid", BYTES, null=True),
        _column("created_ms", BIG),
        _column("updated_ms", BIG),
        _column("deleting_ms", BIG, null=True),
        sa.UniqueConstraint("workspace", "kind", "name", name="records_by_name"),
    )
    op.create_index("records_by_kind", "records", ["kind", "uid"])
    op.create_index("records_by_owner", "records", ["owner_uid", "kind", "uid"])
    op.create_table(
        "changes",
        _column("revision", BIG, key=True),
        _column("workspace", BYTES),
        _column("kind", BYTES),
        _column("name", BYTES),
        _column("uid", BYTES),
        _column("deleted", sa.Integer()),
    )
    op.create_table(
        "leases",
        _column("name", BYTES, key=True),
        _column("holder", BYTES),
        _column("epoch", BIG),
        _column("renewals", BIG),
        _column("ttl_ms", BIG),
        _column("expires_ms", BIG),
    )


def _telemetry() -> None:
    op.create_table(
        "events",
        _column("uid", BYTES, key=True),
        _column("workspace", BYTES),
        _column("kind", BYTES),
        _column("name", BYTES),
        _column("object_uid", BYTES, null=True),
        _column("type", BYTES),
        _column("reason", BYTES),
        _column("message", TEXT),
        _column("digest", BYTES),
        _column("count", BIG),
        _column("first_ms", BIG),
        _column("last_ms", BIG),
        sa.UniqueConstraint("workspace", "digest", name="events_by_digest"),
    )
    op.create_index("events_by_time", "events", ["workspace", "last_ms"])
    op.create_index("events_by_object", "events", ["workspace", "kind", "name"])
    op.create_table(
        "segments",
        _column("uid", BYTES, key=True),
        _column("workspace", BYTES),
        _column("owner_kind", BYTES),
        _column("owner", BYTES),
        _column("replica_uid", BYTES),
        _column("replica_name", BYTES),
        _column("path", BYTES),
        _column("first_ns", BIG),
        _column("last_ns", BIG),
        _column("lines", BIG),
        _column("size_bytes", BIG),
        sa.UniqueConstraint("path", name="segments_by_path"),
    )
    op.create_index("segments_by_owner", "segments", ["workspace", "owner_kind", "owner", "first_ns"])
    op.create_index("segments_by_replica", "segments", ["workspace", "replica_uid"])
    op.create_index("segments_by_age", "segments", ["last_ns"])
    op.create_table(
        "audit",
        _column("uid", BYTES, key=True),
        _column("workspace", BYTES),
        _column("actor", BYTES),
        _column("action", BYTES),
        _column("kind", BYTES),
        _column("name", BYTES),
        _column("details", TEXT),
        _column("time_ms", BIG),
    )
    op.create_index("audit_by_workspace", "audit", ["workspace", "uid"])
    op.create_index("audit_by_time", "audit", ["time_ms"])
