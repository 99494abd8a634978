"""What a status says of itself, as a column with an index: the few that have not ended are found among the many.

Revision ID: 0002
"""

import json

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

BYTES = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
BATCH = 500


def upgrade() -> None:
    op.add_column("records", sa.Column("state", BYTES, nullable=False, server_default=""))
    _fill(op.get_bind())
    op.create_index("records_by_state", "records", ["kind", "state", "workspace", "uid"])


def _fill(connection: sa.Connection) -> None:
    records = sa.table("records", sa.column("uid"), sa.column("status"), sa.column("state"))
    query = sa.select(records.c.uid, records.c.status).order_by(records.c.uid).limit(BATCH)
    after = ""
    while rows := connection.execute(query.where(records.c.uid > after)).all():
        for uid, status in rows:
            if state := _state(status):
                connection.execute(records.update().where(records.c.uid == uid).values(state=state))
        after = rows[-1][0]


def _state(status: str) -> str:
    try:
        document = json.loads(status)
        value = document.get("state") or document.get("phase")
    except (ValueError, AttributeError):
        return ""  # whoever reads the record is told that it is broken
    fits = isinstance(value, str) and len(value) <= 64 and value.isascii() and value.isprintable()
    return str(value) if fits else ""
