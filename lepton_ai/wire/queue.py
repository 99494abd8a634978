"""How work waits, as the public client says it (`queue_config`, `reservation_config`), and our form of it.

Owns the names of priorities: "low-1000" to "high-9000". The word follows from the number: below 4000 low, below 7000
mid, else high. What was not asked for is not shown.
"""

from __future__ import annotations

import re

from lepton_ai.errors import Invalid
from lepton_ai.spec.container import PRIORITY_MOST, Owned
from lepton_ai.spec.workload import Template
from lepton_ai.wire.record import Json, table, text, truth

KNOWN = (
    "queue_config.priority_class", "queue_config.can_be_preempted", "queue_config.can_preempt",
    "reservation_config.reservation_id", "reservation_config.allow_burst_to_other_reservations",
)  # fmt: skip
CLASSES = tuple(f"{'low' if n < 4 else 'mid' if n < 7 else 'high'}-{n}000" for n in range(1, 10))
"""Those that the client offers."""
WORDS = {"low": 1000, "mid": 4000, "high": 7000}
_CLASS = re.compile(r"(low|mid|high)-([0-9]{1,4})\Z")


def priority(name: str, where: str = "priority") -> int:
    """The number of a priority class, or of its word alone. Raises Invalid."""
    if name in WORDS:
        return WORDS[name]
    found = _CLASS.match(name)
    number = int(found[2]) if found else -1
    if not found or not 0 <= number <= PRIORITY_MOST or word(number) != found[1]:
        raise Invalid(f"{where} is {name[:40]!r}, which is no priority", hint=f"use one of: {', '.join(CLASSES)}")
    return number


def word(number: int) -> str:
    """low, mid or high."""
    return "low" if number < WORDS["mid"] else "mid" if number < WORDS["high"] else "high"


def given(spec: Json, template: Json) -> Json:
    """Priority and preemption in our form; what concerns its nodes is put into `template`. Raises Invalid."""
    queue = table(spec.get("queue_config"), "spec.queue_config")
    held = table(spec.get("reservation_config"), "spec.reservation_config")
    where = "spec.queue_config.priority_class"
    name, found = queue.get("priority_class"), Json()
    found["priority"] = None if name in (None, "") else priority(text(name, where, 63), where)
    for field, theirs in (("can_preempt", "can_preempt"), ("preemptible", "can_be_preempted")):
        value = queue.get(theirs)
        found[field] = None if value is None else truth(value, f"spec.queue_config.{theirs}")
    reservation = held.get("reservation_id")
    template["reservation"] = text(reservation or "", "spec.reservation_config.reservation_id", 63)
    at = "spec.reservation_config.allow_burst_to_other_reservations"
    template["burst"] = truth(held.get("allow_burst_to_other_reservations"), at)
    return found


def shown(spec: Owned, template: Template) -> Json:
    """The reverse of :func:`given`."""
    queue: Json = {}
    if spec.priority is not None:
        queue["priority_class"] = f"{word(spec.priority)}-{spec.priority}"
    if spec.preemptible is not None:
        queue["can_be_preempted"] = spec.preemptible
    if spec.can_preempt is not None:
        queue["can_preempt"] = spec.can_preempt
    held: Json = {}
    if template.reservation:
        held["reservation_id"] = template.reservation
    if template.burst:
        held["allow_burst_to_other_reservations"] = True
    found: Json = {"queue_config": queue} if queue else {}
    return {**found, "reservation_config": held} if held else found
