"""Secrets as the public client knows them: names out, names and values in."""

from __future__ import annotations

from collections.abc import Iterable

from lepton_ai.errors import Invalid
from lepton_ai.wire.record import Json, rows

RESERVED = frozenset(
    {
        "LEPTON_WORKSPACE_ID", "LEPTON_DEPLOYMENT_NAME", "LEPTON_JOB_NAME", "LEPTON_RESOURCE_ACCELERATOR_TYPE",
        "LEPTON_WORKSPACE_ORIGIN_URL",
    }
)  # fmt: skip
"""Set by the cell in every replica."""


def shown(names: Iterable[str]) -> list[Json]:
    return [{"name": name} for name in names]


def given(body: object) -> list[tuple[str, str]]:
    """(name, value) of each secret of a POST. Raises Invalid."""
    pairs = []
    for item in rows(body, "the body"):
        name, value = item.get("name"), item.get("value")
        if not isinstance(name, str) or not isinstance(value, str):
            raise Invalid("a secret has a name and a value, both texts", hint='send [{"name": "A", "value": "…"}]')
        pairs.append((name, value))
    return pairs
