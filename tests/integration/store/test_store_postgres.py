"""The suite of tests/unit/store on a real PostgreSQL, and what only PostgreSQL can do."""

from __future__ import annotations

import importlib.util
import inspect
from pathlib import Path

import pytest

from lepton_ai.errors import Unavailable
from lepton_ai.store import Store

_SUITE = Path(__file__).parents[2] / "unit" / "store" / "test_store_suite.py"
_spec = importlib.util.spec_from_file_location("store_suite_for_postgresql", _SUITE)
assert _spec is not None
assert _spec.loader is not None
_suite = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_suite)

cell, clock = _suite.cell, _suite.clock
TestRecords, TestBatch, TestChanges = _suite.TestRecords, _suite.TestBatch, _suite.TestChanges
TestRaces, TestLeases, TestSchema = _suite.TestRaces, _suite.TestLeases, _suite.TestSchema
TestMany, TestFirst = _suite.TestMany, _suite.TestFirst


def test_nothing_of_the_suite_is_left_out() -> None:
    classes = {name for name, value in vars(_suite).items() if name.startswith("Test") and inspect.isclass(value)}
    assert classes == {name for name in globals() if name.startswith("Test")}


def test_it_survives_the_loss_of_its_connections(url: str) -> None:
    import psycopg

    with Store.open(url) as opened, psycopg.connect(url, autocommit=True) as other:
        opened.create("w", "k", "before", {})
        assert opened.wait(0, 60.0) == 1
        other.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'lepton_ai'")
        opened.create("w", "k", "after", {})
        with Store.open(url) as second:
            second.create("w", "k", "third", {})
        assert opened.wait(2, 60.0) == 3


def test_a_server_that_is_away_says_so_without_the_password() -> None:
    with pytest.raises(Unavailable) as caught:
        Store.open("postgresql://lepton:hush-hush@127.0.0.1:1/none")
    assert "hush-hush" not in str(caught.value)
    assert "pg_isready" in str(caught.value.hint)
