"""What kind of requests come: the statistics that placing rests on.

Owns counts only. They come from requests that have arrived, or from a training workload; never from those to come.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from lepton_ai.spec.workload import Resources

DEVICE_MILLI = 1000
"""The thousandths of one whole accelerator."""


@dataclass(slots=True)
class Mix:
    """Sums over the requests seen: `shares` how often each share of an accelerator, the rest over those that use any.

    `accelerator_milli`, `cpu_milli` and `memory_mib` together say what processor and memory an accelerator needs.
    """

    seen: float = 0.0
    shares: dict[int, float] = field(default_factory=dict)
    accelerator_milli: float = 0.0
    cpu_milli: float = 0.0
    memory_mib: float = 0.0

    def add(self, resources: Resources, count: float = 1.0) -> None:
        """`count` more requests for `resources`."""
        self.seen += count
        milli = resources.accelerator_milli
        if not milli:
            return
        self.accelerator_milli += count * milli
        self.cpu_milli += count * resources.cpu_milli
        self.memory_mib += count * resources.memory_mib
        if milli < DEVICE_MILLI:
            self.shares[milli] = self.shares.get(milli, 0.0) + count

    def copy(self) -> Mix:
        """One that can go on by itself."""
        return Mix(self.seen, dict(self.shares), self.accelerator_milli, self.cpu_milli, self.memory_mib)
