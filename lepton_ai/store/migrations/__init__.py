"""Alembic's folder: env.py runs inside a connection that lepton_ai.store.migrate hands over; versions/ is the chain."""
