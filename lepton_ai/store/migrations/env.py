"""How Alembic runs here: always online, inside the one transaction that lepton_ai.store.migrate has begun."""

from alembic import context

from lepton_ai.store.tables import VERSION_TABLE, metadata

context.configure(
    connection=context.config.attributes["connection"], target_metadata=metadata, version_table=VERSION_TABLE
)
with context.begin_transaction():
    context.run_migrations()
