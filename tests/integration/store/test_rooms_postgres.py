"""The rooms whose rows live in the store's database (telemetry, tenancy), by their own tests, on a real PostgreSQL."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from lepton_ai.store import Store


def suite(room: str) -> ModuleType:
    path = Path(__file__).parents[2] / "unit" / room / f"test_{room}.py"
    spec = importlib.util.spec_from_file_location(f"{room}_for_postgresql", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


telemetry, tenancy = suite("telemetry"), suite("tenancy")
now, logs = telemetry.now, telemetry.logs
TestEvents, TestQuery, TestArchive = telemetry.TestEvents, telemetry.TestQuery, telemetry.TestArchive
TestRetention, test_audit = telemetry.TestRetention, telemetry.test_audit
TestTokens, TestSecrets = tenancy.TestTokens, tenancy.TestSecrets


@pytest.fixture
def store(url: str, now: object) -> Iterator[Store]:
    with Store.open(url, now_ms=now) as opened:  # type: ignore[arg-type]
        yield opened


def test_it_is_postgresql_that_is_tested(store: Store) -> None:
    with store.reading() as connection:
        assert connection.dialect.name == "postgresql"
