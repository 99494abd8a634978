"""Specs of deployments as they were read before: a list of a thousand validates none of them twice. Owns the memory."""

from __future__ import annotations

from lepton_ai.spec.workload import DeploymentSpec
from lepton_ai.store import Record

KEPT = 4096


class Parsed:
    """The spec of a record, remembered for as long as its generation is the same. Thread-safe: each step is one."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[int, DeploymentSpec]] = {}

    def deployment(self, record: Record) -> DeploymentSpec:
        """Raises what pydantic raises for a record that nobody can read."""
        known = self._known.get(record.uid)
        if known is not None and known[0] == record.generation:
            return known[1]
        spec = DeploymentSpec.model_validate(record.spec)
        if len(self._known) >= KEPT:
            self._known.clear()
        self._known[record.uid] = (record.generation, spec)
        return spec
