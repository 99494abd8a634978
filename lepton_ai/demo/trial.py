"""One trial: an open loop runs, something is shot, and the time is taken until as many replicas are ready as before.

Owns the protocol that the demo and `bench/failover.py` share. "Full capacity" is the number of ready replicas before
the shot, reached again without those that were hit, as the API tells it (asked every 50 ms: more often would slow
down what it watches, on the same two cores).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any

from lepton_ai.demo.load import Result
from lepton_ai.demo.shoot import Shot
from lepton_ai.demo.traffic import LONGEST_S, Questions, Traffic
from lepton_ai.errors import LeptonError

POLL_S = 0.05
BEFORE_S, AFTER_S = 1.0, 1.0
FULL_TIMEOUT_S = 30.0
CALM_S = 1.5


@dataclass(frozen=True)
class Offer:
    """What the open loop offers, and where it keeps its files."""

    questions: Questions
    rate_per_s: float
    folder: Path
    retry: bool = False
    longest_s: float = LONGEST_S

    def traffic(self) -> Traffic:
        return Traffic(
            self.questions, self.folder, rate_per_s=self.rate_per_s, retry=self.retry, duration_s=self.longest_s
        )


@dataclass(frozen=True)
class Trial:
    """`full_s`: seconds from the shot to full capacity (infinite: not within the limit). uid -> node before, after."""

    shot: Shot
    full_s: float
    load: Result
    before: dict[str, str]
    after: dict[str, str]


def trial(
    client: Any,
    name: str,
    offer: Offer,
    fire: Callable[[], Shot],
    hit: Callable[[Mapping[str, str]], set[str]],
    *,
    before_s: float = BEFORE_S,
    after_s: float = AFTER_S,
) -> Trial:
    """Load, `fire`, wait for full capacity, and a little longer. `hit` says which of the ready replicas it takes."""
    with offer.traffic() as traffic:
        time.sleep(before_s)
        before = ready(client, name)
        lost = hit(before)
        shot = fire()
        full_s = until(lambda: len(ready(client, name).keys() - lost) >= len(before), since_s=shot.at_s)
        after = ready(client, name)
        time.sleep(after_s)
        return Trial(shot, full_s, traffic.stop(), before, after)


def ready(client: Any, name: str) -> dict[str, str]:
    """The replicas that take requests: uid -> node. Empty while nobody can say."""
    try:
        found = [fields(replica) for replica in client.replicas(name)]
    except LeptonError:
        return {}
    return {str(item["uid"]): str(item["node"]) for item in found if item["phase"] == "ready"}


def settled(client: Any, name: str, *, calm_s: float = CALM_S, timeout_s: float = FULL_TIMEOUT_S) -> bool:
    """Waits until nothing of `name` starts, moves or ends for `calm_s`; False when that does not come in time.

    What a kill set off (a surplus replica, one too many on a node) may still be under way when all are ready.
    """
    since_s, seen = time.monotonic(), frozenset[str]()
    calm_since_s = since_s
    while time.monotonic() - since_s < timeout_s:
        try:
            copies = [fields(item) for item in client.replicas(name)]
            calm = all(item["phase"] in ("ready", "exited") for item in copies)
            calm = calm and all(fields(node)["state"] == "ready" for node in client.nodes())
        except LeptonError:
            copies, calm = [], False
        now = frozenset(str(item["uid"]) for item in copies if item["phase"] == "ready")
        if not calm or now != seen:
            calm_since_s, seen = time.monotonic(), now
        elif time.monotonic() - calm_since_s >= calm_s:
            return True
        time.sleep(POLL_S)
    return False


def until(condition: Callable[[], bool], *, since_s: float, timeout_s: float = FULL_TIMEOUT_S) -> float:
    """Seconds from `since_s` (monotonic) until the condition holds; infinite when it does not in time."""
    while not condition():
        if time.monotonic() - since_s > timeout_s:
            return math.inf
        time.sleep(POLL_S)
    return time.monotonic() - since_s


def fields(value: Any) -> dict[str, Any]:
    """The fields of whatever object the client returned."""
    if isinstance(value, Mapping):
        return dict(value)
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    return dict(value.model_dump(mode="json"))


def figures(load: Result) -> dict[str, Any]:
    """What of a load goes into demo.json: all but the slices."""
    found = asdict(load)
    del found["slices"], found["broken_at_ms"]
    return found
