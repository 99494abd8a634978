"""What is wanted and what is so: the only truth of a cell (records, changes, leases), in SQLite or PostgreSQL.

    store.py    Store: open, read, compare-and-set, batch, changes, wait
    record.py   Record and Change, the values that come out        op.py      Create, Update, Delete
    lease.py    who leads, with a growing epoch that fences writes  watch.py   how a waiter hears of a commit
    reads.py    what can be asked of records                          shelf.py    a kind in short, in memory
    tables.py   the schema   migrate.py + migrations/  its versions   engine.py  connections   faults.py  errors

Does not know what the records mean (spec does) and makes no network call inside a transaction.
"""

from __future__ import annotations

from lepton_ai.store.lease import Lease
from lepton_ai.store.op import Create, Delete, Op, Update
from lepton_ai.store.record import Change, Record
from lepton_ai.store.shelf import Shelf
from lepton_ai.store.store import Store

__all__ = ["Change", "Create", "Delete", "Lease", "Op", "Record", "Shelf", "Store", "Update"]
