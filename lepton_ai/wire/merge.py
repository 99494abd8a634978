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
    """`patch` if it is an object that changes something. Raises Invalid in the public client's words."""
    if not isinstance(patch, dict):
        raise Invalid("a patch must be a JSON object", hint='for example {"spec": {…}}')
    if not patch.get("spec"):
        raise Invalid("no valid field to update", hint='a patch changes fields of "spec"')
    return patch
