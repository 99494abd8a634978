"""Options of the public client that are kept and shown back, but not enforced by this release.

Owns which they are and what they may hold. They are recorded by their path ("log.enable_collection") in `advisory`
of a deployment or job, so that nothing that was asked for is dropped in silence. A path with brackets belongs to an
element of an array; whoever shows that array shows it too.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from lepton_ai.errors import Invalid
from lepton_ai.wire.record import Json, table, text, texts, truth, whole

BYTES_MAX = 16 * 1024
COUNT_MAX = 100
_KEY = re.compile(r"[A-Za-z0-9_-]+\Z")
_CHECKS: dict[str, Callable[[object, str], object]] = {
    "affinity.allowed_providers": texts,
    "auth_config.lepton_workspace_token_auth.remove_authorization_header": truth,
    "auto_scaler.scale_down.not_ready_timeout": lambda value, where: whole(value, where, 0),
    "auto_scaler.target_gpu_utilization_percentage": lambda value, where: whole(value, where, 0, 0, 100),
    "auto_scaler.target_throughput.methods": texts,
    "auto_scaler.target_throughput.paths": texts,
    "health.liveness.tcp.port": lambda value, where: whole(value, where, 0, 1, 65535),
    "log.enable_collection": truth,
    "log.save_termination_logs": truth,
    "metrics.disable_pulling_from_replica": truth,
    "resource_requirement.affinity.allowed_providers": texts,
    "resource_requirement.ephemeral_storage_in_gb": lambda value, where: whole(value, where, 0),
    "resource_requirement.resourse_affinity": text,
    "routing_policy.enable_header_based_replica_routing": truth,
    "segment_config.count_per_segment": lambda value, where: whole(value, where, 1, 1),
    "user_security_context.no_specific_user": truth,
}
"""By path below `spec`: what the client reads there must be of its kind, or it drops the whole object."""
_OFF_AT_ZERO = frozenset(
    {
        "auto_scaler.scale_down.no_traffic_timeout", "auto_scaler.scale_down.not_ready_timeout",
        "auto_scaler.target_gpu_utilization_percentage", "auto_scaler.target_throughput.qpm",
    }
)  # fmt: skip


def kept(spec: Mapping[str, Any], known: Iterable[str]) -> Json:
    """What `spec` asks for at other paths than the `known` ones, by path. Raises Invalid."""
    leaves = frozenset(known)
    inner = {prefix for path in (*leaves, *_CHECKS) for prefix in _prefixes(path)}
    found: Json = {}
    _walk(spec, "", leaves, inner, found)
    size = len(json.dumps(found))
    if size > BYTES_MAX or len(found) > COUNT_MAX:
        hint = f"at most {COUNT_MAX} options of together {BYTES_MAX} bytes are kept"
        raise Invalid("spec holds too much that is not known here", hint=hint)
    return found


def put_back(spec: Json, advisory: Mapping[str, Any]) -> Json:
    """`spec` with the kept options where they came from; it is changed and returned."""
    for path, value in advisory.items():
        if "[" in path:
            continue
        here = spec
        *above, last = path.split(".")
        for part in above:
            if not isinstance(here.setdefault(part, {}), dict):
                break
            here = here[part]
        else:
            here.setdefault(last, value)
    return spec


def extras(advisory: Mapping[str, Any], where: str, key: str) -> Json:
    """What is kept for the element `key` of the array `where`."""
    found = advisory.get(f"{where}[{key}]")
    return dict(found) if isinstance(found, dict) else {}


def _walk(value: Mapping[str, Any], at: str, leaves: frozenset[str], inner: set[str], found: Json) -> None:
    for key, item in value.items():
        path = f"{at}{key}"
        if path in leaves:
            continue
        if path in inner:
            _walk(table(item, f"spec.{path}"), path + ".", leaves, inner, found)
            continue
        if item is None or item in ({}, [], "") or (path in _OFF_AT_ZERO and item == 0 and item is not False):
            continue
        if not _KEY.match(key):
            raise Invalid(f"spec.{at}{key[:40]!r} is not a field", hint="use letters, digits, '_' and '-'")
        if path in _CHECKS:
            found[path] = _CHECKS[path](item, f"spec.{path}")
        elif isinstance(item, dict) and all(isinstance(part, str) and _KEY.match(part) for part in item):
            _walk(item, path + ".", leaves, inner, found)
        else:
            found[path] = item


def _prefixes(path: str) -> Iterable[str]:
    parts = path.split(".")
    return (".".join(parts[:length]) for length in range(1, len(parts)))
