"""Secrets as the public client knows them: names out, names and values in."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from lepton_ai.errors import Invalid
from lepton_ai.wire.record import Json, rows

RESERVED = frozenset(
    {
        "LEPTON_WORKSPACE_ID", "LEPTON_DEPLOYMENT_NAME", "LEPTON_JOB_NAME", "LEPTON_RESOURCE_ACCELERATOR_TYPE",
        "LEPTON_WORKSPACE_ORIGIN_URL",
    }
)  # fmt: skip
"""Set by the cell in every replica."""


TAGS_MAX = 32


@dataclass(frozen=True, slots=True)
class Given:
    """A secret as it was sent. What is None stays as it is."""

    name: str
    value: str
    visibility: Literal["public", "private"] | None
    tags: list[str] | None


def shown(name: str, owner: str, visibility: str, tags: Iterable[str]) -> Json:
    """A secret, without its value."""
    return {"name": name, "owner": owner, "visibility": visibility, "tags": list(tags)}


def given(body: object) -> list[Given]:
    """The secrets of a POST. Raises Invalid."""
    found = []
    for item in rows(body, "the body"):
        name, value, visibility, tags = (item.get(field) for field in ("name", "value", "visibility", "tags"))
        if not isinstance(name, str) or not isinstance(value, str):
            raise Invalid("a secret has a name and a value, both texts", hint='send [{"name": "A", "value": "…"}]')
        if visibility not in (None, "public", "private"):
            raise Invalid(f"visibility is {str(visibility)[:40]!r}", hint="use public or private")
        if tags is not None and not (
            isinstance(tags, list) and len(tags) <= TAGS_MAX and all(isinstance(t, str) and len(t) <= 63 for t in tags)
        ):
            raise Invalid("tags is not a list of short texts", hint=f'for example ["prod"], at most {TAGS_MAX}')
        found.append(Given(name, value, visibility, tags))
    if not found:
        raise Invalid("no secret is given", hint='send [{"name": "A", "value": "…"}]')
    names = [item.name for item in found]
    if len(set(names)) != len(names):
        raise Invalid("a secret is given twice", hint="send each name once")
    return found
