"""What lists of jobs are searched by: `short` is what is remembered of each, `Filter` the queries of GET /jobs.

Owns the grammar of label selectors: `k`, `!k`, `k=v`, `k==v`, `k!=v`, `k in (a, b)`, `k notin (a, b)`, joined by
commas that all must hold.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from lepton_ai.errors import Invalid
from lepton_ai.wire import jobs
from lepton_ai.wire.record import Json, Record

MODES = ("alive_only", "archive_only", "alive_and_archive")
_KEY = r"([A-Za-z0-9][A-Za-z0-9._/-]{0,316})"
_VALUE = r"([A-Za-z0-9._-]{0,63})"
_SET = re.compile(_KEY + r"\s+(in|notin)\s*\(([^()]*)\)\Z")
_EQUAL = re.compile(_KEY + r"\s*(==|=|!=)\s*" + _VALUE + r"\Z")
_EXISTS = re.compile(r"(!?)\s*" + _KEY + r"\Z")
_COMMA = re.compile(r",(?![^()]*\))")
Test = Callable[[Mapping[str, str]], bool]


def short(record: Record) -> Json:
    """What a job is found by, without parsing it. "own" is its state in our words."""
    spec, gone = record.spec, record.kind == "archive"
    job = spec.get("spec") or {} if gone else spec
    return {
        "id": record.name,
        "name": str(job.get("title") or record.name),
        "state": jobs.ARCHIVED if gone else jobs.state(record.status, deleting=record.deleting),
        "own": str(record.status.get("state") or ""),
        "labels": job.get("labels") or {},
        "created_by": str(job.get("created_by") or ""),
        "visibility": str(job.get("visibility") or "public"),
        "created_ms": int(spec.get("created_ms") or record.created_ms) if gone else record.created_ms,
    }


@dataclass(frozen=True)
class Filter:
    """`groups`: the names of the one node group that every job here is in."""

    mode: str = "alive_only"
    text: str = ""
    states: tuple[str, ...] = ()
    node_groups: tuple[str, ...] = ()
    created_by: tuple[str, ...] = ()
    labels: tuple[Test, ...] = ()
    groups: tuple[str, ...] = ()

    @property
    def nothing(self) -> bool:
        """Whether no job at all can be meant."""
        wanted = [item.lower() for item in self.node_groups if item]
        return bool(wanted) and not any(item in group.lower() for item in wanted for group in self.groups)

    def takes(self, job: Mapping[str, Any]) -> bool:
        if self.text and self.text not in job["name"].lower() and self.text not in job["id"].lower():
            return False
        if self.states and not job["state"].lower().startswith(self.states):
            return False
        if self.created_by and not job["created_by"].lower().startswith(self.created_by):
            return False
        return not self.labels or all(test(job["labels"]) for test in self.labels)


def filter_of(
    mode: str | None,
    text: str | None,
    states: list[str],
    node_groups: list[str],
    created_by: list[str],
    query: str | None,
    groups: tuple[str, ...],
) -> Filter:
    """The filter that the query parameters mean; cases of letters do not matter. Raises Invalid."""
    return Filter(
        mode=mode_of(mode),
        text=(text or "").lower(),
        states=tuple(item.lower() for item in states if item),
        node_groups=tuple(node_groups),
        created_by=tuple(item.lower() for item in created_by if item),
        labels=selector(query or ""),
        groups=groups,
    )


def mode_of(text: str | None) -> str:
    """Raises Invalid."""
    if text and text not in MODES:
        raise Invalid(f"job_query_mode {text[:40]!r} is not known", hint=f"use one of: {', '.join(MODES)}")
    return text or MODES[0]


def selector(text: str) -> tuple[Test, ...]:
    """The tests that a label selector means. Raises Invalid."""
    if not text.strip():
        return ()
    return tuple(_test(part.strip()) for part in _COMMA.split(text))


def _test(part: str) -> Test:
    if found := _SET.match(part):
        key, verb, values = found[1], found[2], frozenset(item.strip() for item in found[3].split(","))
        if verb == "in":
            return lambda labels: labels.get(key) in values
        return lambda labels: labels.get(key) not in values
    if found := _EQUAL.match(part):
        key, sign, value = found[1], found[2], found[3]
        if sign == "!=":
            return lambda labels: labels.get(key) != value
        return lambda labels: labels.get(key) == value
    if found := _EXISTS.match(part):
        negated, key = bool(found[1]), found[2]
        return lambda labels: (key in labels) != negated
    hint = "for example team=research,stage!=test,gpu in (a, b)"
    raise Invalid(f"{part[:80]!r} is not a label selector", hint=hint)
