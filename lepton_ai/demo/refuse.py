"""Stage 8: a release that never becomes healthy is stopped, its last log line is shown, and the old one serves on.

Owns the bad release; that it is refused is the control loops' doing.
"""

from __future__ import annotations

import time
from typing import Any

from lepton_ai.demo.kill import COMMAND, latency
from lepton_ai.demo.tour import NAME, Tour
from lepton_ai.demo.trial import Offer, figures, ready
from lepton_ai.errors import Failed

DEADLINE_S = 1.5
TIMEOUT_S = 60.0
SCRIPT = """\
import time
print("reading weights.bin", flush=True)
print("error: weights.bin holds 0 of 11317248 bytes; waiting for the rest", flush=True)
time.sleep(600)
"""


def bad() -> dict[str, Any]:
    """The deployment as it would be with a command that never listens."""
    return {
        "name": NAME,
        "replicas": {"min": 2, "max": 4},
        "survive": {"node": 1},
        "template": {
            "command": ["python3", "-I", "-S", "-c", SCRIPT],
            "health": {"path": "/v2/health/ready", "startup_deadline_s": DEADLINE_S},
            "idempotent": True,
        },
    }


def refuse(tour: Tour) -> None:
    """Deploys it under load; it must fail, with its log, and nobody may notice."""
    with tour.stage("refuse") as stage:
        with Offer(tour.asked, tour.rate_per_s, tour.folder).traffic() as traffic:
            started_s = time.monotonic()
            failure = _deploy(tour)
            seconds = time.monotonic() - started_s
            time.sleep(0.5)
            load = traffic.stop()
        serving = ready(tour.client, NAME)
        log = _lines(failure)
        reason = failure.message if failure is not None else "it was accepted"
        release = tour.release + 1
        if failure is not None:
            release = int(str(failure.details.get("release", release)))
        tour.say("refuse.failed", release=f"{NAME}#{release}", seconds=seconds, reason=reason)
        tour.say("refuse.log", line=log[-1] if log else "-")
        tour.say("refuse.served", release=f"{NAME}#{tour.release}", failed=load.failed, sent=load.sent)
        latency(tour, load)
        refused = failure is not None and bool(log) and "weights.bin" in log[-1] and len(serving) >= 2
        tour.board.holds("refused", refused, f"lepton logs {NAME} --cell demo")
        tour.board.at_most("refuse", load.failed, 0, COMMAND)
        stage.figures.update(
            refused_after_s=seconds, reason=reason, log=log, serving=serving, load=figures(load)
        )  # fmt: skip


def _deploy(tour: Tour) -> Failed | None:
    try:
        tour.client.deploy(bad(), wait=True, say=tour.whisper, timeout_s=TIMEOUT_S)
    except Failed as failure:
        return failure
    return None


def _lines(failure: Failed | None) -> list[str]:
    log = failure.details.get("log") if failure is not None else None
    if isinstance(log, str):
        log = log.splitlines()
    return [str(line) for line in log if str(line).strip()] if isinstance(log, list) else []
