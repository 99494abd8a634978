"""JSON merge patch (RFC 7386): null deletes, objects merge, everything else replaces."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lepton_ai.errors import Invalid


def merge(document: Any, patch: Any) -> Any:
    """`document` with `patch` applied; neither is changed."""
    if not isinstance(patch, Mapping):
        return patch
    merged = dict(document) if isinstance(document, Mapping) else {}
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = merge(merged.get(key), value)
    return merged


def checked(patch: Any) -> dict[str, Any]:
    """`patch` if it is an object that says something. Raises Invalid in the public client's words."""
    if not isinstance(patch, dict):
        raise Invalid("a patch must be a JSON object", hint='for example {"spec": {…}}')
    head = patch.get("metadata") or {}
    if not isinstance(head, dict) or not isinstance(patch.get("spec") or {}, dict):
        raise Invalid("metadata and spec must be JSON objects", hint='for example {"spec": {…}}')
    if not patch.get("spec") and not any(key in head for key in ("labels", "visibility")):
        raise nothing('a patch changes fields of "spec", or the labels or visibility in "metadata"')
    return patch


def same_name(patch: Mapping[str, Any], name: str) -> None:
    """Raises Invalid when `patch` names another resource than the path."""
    head = patch.get("metadata") or {}
    for key in ("id", "name"):
        if head.get(key) not in (None, name):
            raise Invalid(f"metadata.{key} is not {name}: names do not change", hint="make another one")


def nothing(why: str) -> Invalid:
    """What is answered when a change would change nothing: the client tells its user that nothing was to be done."""
    return Invalid("no valid field to update", hint=why)
