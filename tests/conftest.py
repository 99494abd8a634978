"""What every test shares: how many rounds the randomised ones run, and that none depends on the machine's speed."""

from __future__ import annotations

import os

import hypothesis
import pytest

SOAK = os.environ.get("LEPTON_AI_SOAK") == "1"

# No deadline, and no health check that reads a clock. `make test` runs the same seeded sample every time.
hypothesis.settings.register_profile(
    "sample", deadline=None, derandomize=True, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.register_profile("soak", hypothesis.settings.get_profile("sample"), derandomize=False)
hypothesis.settings.load_profile("soak" if SOAK else "sample")


@pytest.fixture(scope="session")
def soak() -> bool:
    """Whether the long counts are wanted (`make soak`)."""
    return SOAK
