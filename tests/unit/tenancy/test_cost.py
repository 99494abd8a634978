"""Prices: what resources cost in an hour, from the settings or from a public list."""

from __future__ import annotations

import pytest

from lepton_ai import settings
from lepton_ai.errors import Invalid
from lepton_ai.spec.workload import Resources
from lepton_ai.tenancy import Prices


def test_the_default_is_the_public_price_of_a_whole_machine() -> None:
    # GCE n2-standard-2 in us-central1, on demand: 2 vCPU, 8 GiB, 0.097118 USD an hour.
    prices = Prices.of(settings.Settings())
    assert prices.per_hour(Resources(cpu_milli=2000, memory_mib=8192)) == pytest.approx(0.097118, abs=1e-6)
    assert prices.currency == "USD"


def test_a_price_is_a_share_and_grows_with_the_replicas() -> None:
    prices = Prices(core_hour=1.0, gib_hour=0.5)
    assert prices.per_hour(Resources(cpu_milli=250, memory_mib=512)) == 0.5
    assert prices.per_hour(Resources(cpu_milli=250, memory_mib=512), 3) == 1.5
    assert prices.per_hour(Resources(cpu_milli=250, memory_mib=512), 0) == 0.0


def test_own_prices_come_from_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEPTON_AI_PRICE_CORE_HOUR", "2")
    monkeypatch.setenv("LEPTON_AI_PRICE_GIB_HOUR", "0")
    assert Prices.of(settings.load()).per_hour(Resources(cpu_milli=500, memory_mib=1024)) == 1.0
    monkeypatch.setenv("LEPTON_AI_PRICE_CORE_HOUR", "-1")
    with pytest.raises(Invalid, match="is not a price"):
        settings.load()
