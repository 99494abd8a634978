"""The schema of a cell's database, as SQLAlchemy tables. migrations/ makes it; a test holds the two equal.

Telemetry's tables are here too: one database has one chain of migrations. They are tables of their own and not
records, because each line of an event must not wake everybody who watches records.
"""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Index, Integer, MetaData, Table, Text, UniqueConstraint

VERSION_TABLE = "lepton_ai_version"
HEAD = "0002"
"""The newest revision in migrations/versions; a database that has it is opened without importing Alembic."""
VERSIONS = ("0001", "0002")
"""Every revision this release knows, oldest first."""

# Byte order on both engines: names and identities must not sort or compare by a server's locale.
Bytes = Text().with_variant(Text(collation="C"), "postgresql")
metadata = MetaData()

counter = Table(
    "counter",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("revision", BigInteger, nullable=False),
)
records = Table(
    "records",
    metadata,
    Column("uid", Bytes, primary_key=True),
    Column("workspace", Bytes, nullable=False),
    Column("kind", Bytes, nullable=False),
    Column("name", Bytes, nullable=False),
    Column("generation", BigInteger, nullable=False),
    Column("revision", BigInteger, nullable=False),
    Column("spec", Text, nullable=False),
    Column("status", Text, nullable=False),
    Column("owner_uid", Bytes),
    Column("created_ms", BigInteger, nullable=False),
    Column("updated_ms", BigInteger, nullable=False),
    Column("deleting_ms", BigInteger),
    Column("state", Bytes, nullable=False, server_default=""),
    UniqueConstraint("workspace", "kind", "name", name="records_by_name"),
    Index("records_by_kind", "kind", "uid"),
    Index("records_by_state", "kind", "state", "workspace", "uid"),
    Index("records_by_owner", "owner_uid", "kind", "uid"),
)
changes = Table(
    "changes",
    metadata,
    Column("revision", BigInteger, primary_key=True, autoincrement=False),
    Column("workspace", Bytes, nullable=False),
    Column("kind", Bytes, nullable=False),
    Column("name", Bytes, nullable=False),
    Column("uid", Bytes, nullable=False),
    Column("deleted", Integer, nullable=False),
)
leases = Table(
    "leases",
    metadata,
    Column("name", Bytes, primary_key=True),
    Column("holder", Bytes, nullable=False),
    Column("epoch", BigInteger, nullable=False),
    Column("renewals", BigInteger, nullable=False),
    Column("ttl_ms", BigInteger, nullable=False),
    Column("expires_ms", BigInteger, nullable=False),
)
events = Table(
    "events",
    metadata,
    Column("uid", Bytes, primary_key=True),
    Column("workspace", Bytes, nullable=False),
    Column("kind", Bytes, nullable=False),
    Column("name", Bytes, nullable=False),
    Column("object_uid", Bytes),
    Column("type", Bytes, nullable=False),
    Column("reason", Bytes, nullable=False),
    Column("message", Text, nullable=False),
    Column("digest", Bytes, nullable=False),
    Column("count", BigInteger, nullable=False),
    Column("first_ms", BigInteger, nullable=False),
    Column("last_ms", BigInteger, nullable=False),
    UniqueConstraint("workspace", "digest", name="events_by_digest"),
    Index("events_by_time", "workspace", "last_ms"),
    Index("events_by_object", "workspace", "kind", "name"),
)
segments = Table(
    "segments",
    metadata,
    Column("uid", Bytes, primary_key=True),
    Column("workspace", Bytes, nullable=False),
    Column("owner_kind", Bytes, nullable=False),
    Column("owner", Bytes, nullable=False),
    Column("replica_uid", Bytes, nullable=False),
    Column("replica_name", Bytes, nullable=False),
    Column("path", Bytes, nullable=False),
    Column("first_ns", BigInteger, nullable=False),
    Column("last_ns", BigInteger, nullable=False),
    Column("lines", BigInteger, nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    UniqueConstraint("path", name="segments_by_path"),
    Index("segments_by_owner", "workspace", "owner_kind", "owner", "first_ns"),
    Index("segments_by_replica", "workspace", "replica_uid"),
    Index("segments_by_age", "last_ns"),
)
audit = Table(
    "audit",
    metadata,
    Column("uid", Bytes, primary_key=True),
    Column("workspace", Bytes, nullable=False),
    Column("actor", Bytes, nullable=False),
    Column("action", Bytes, nullable=False),
    Column("kind", Bytes, nullable=False),
    Column("name", Bytes, nullable=False),
    Column("details", Text, nullable=False),
    Column("time_ms", BigInteger, nullable=False),
    Index("audit_by_workspace", "workspace", "uid"),
    Index("audit_by_time", "time_ms"),
)
