"""What resources cost: a price per core-hour and per GiB-hour, so that a plan can name a sum before anything runs.

Owns the arithmetic and the default prices. The defaults are the on-demand list prices of Google Compute Engine's n2
machines in us-central1 (per vCPU-hour and per GiB-hour): a public figure to compare with, not a bill. A person's own
prices go into the settings `price_core_hour` and `price_gib_hour`. Accelerators have no default price and cost nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from lepton_ai.settings import Settings
from lepton_ai.spec.workload import Resources

CURRENCY = "USD"


@dataclass(frozen=True, slots=True)
class Prices:
    """USD per core and hour, and per GiB of memory and hour."""

    core_hour: float
    gib_hour: float
    currency: str = CURRENCY

    @classmethod
    def of(cls, settings: Settings) -> Prices:
        return cls(settings.price_core_hour, settings.price_gib_hour)

    def per_hour(self, resources: Resources, replicas: int = 1) -> float:
        """What `replicas` copies of `resources` cost in an hour, to a millionth."""
        cores, gib = resources.cpu_milli / 1000, resources.memory_mib / 1024
        return round((cores * self.core_hour + gib * self.gib_hour) * replicas, 6)
