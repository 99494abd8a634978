"""Stage 6: under an open loop, one replica is killed, then a node with everything on it.

Owns what is shot and what is said of it; the protocol is `trial`'s.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from lepton_ai.demo import cell, shoot
from lepton_ai.demo.load import Result
from lepton_ai.demo.tour import NAME, Tour
from lepton_ai.demo.trial import Offer, Trial, figures, ready, trial

MUST_FULL_S = 3.0
COMMAND = "python bench/failover.py --quick --out out"


def kill(tour: Tour) -> None:
    """A replica, then a node; after that the node is started again."""
    with tour.stage("kill") as stage:
        offer = Offer(tour.asked, tour.rate_per_s, tour.folder)
        first = _replica(tour, offer)
        stage.figures["replica"] = _figures(first)
        name, second = _node(tour, offer)
        stage.figures["node"] = {"name": name, **_figures(second)}
        cell.start(tour)
        tour.say("kill.back", node=name)


def _replica(tour: Tour, offer: Offer) -> Trial:
    uid = sorted(ready(tour.client, NAME))[0]
    done = trial(tour.client, NAME, offer, lambda: shoot.replica(tour.cell_dir, uid), lambda before: {uid})
    load = done.load
    tour.say(
        "kill.replica", replica=uid[-8:], node=done.before.get(uid, ""), failed=load.failed, sent=load.sent,
        seconds=done.full_s,
    )  # fmt: skip
    latency(tour, load)
    tour.board.at_most("replica", load.failed, 0, COMMAND)
    tour.board.at_most("replica_s", done.full_s, MUST_FULL_S, COMMAND, unit=" s")
    return done


def _node(tour: Tour, offer: Offer) -> tuple[str, Trial]:
    name = Counter(ready(tour.client, NAME).values()).most_common(1)[0][0]
    done = trial(
        tour.client, NAME, offer, lambda: shoot.node(tour.cell_dir, name),
        lambda before: {uid for uid, node in before.items() if node == name},
    )  # fmt: skip
    load = done.load
    new = sorted({node for uid, node in done.after.items() if uid not in done.before})
    tour.say(
        "kill.node", node=name, processes=len(done.shot.pids), failed=load.failed, sent=load.sent,
        seconds=done.full_s, where=", ".join(new) or "-",
    )  # fmt: skip
    latency(tour, load)
    tour.board.at_most("node", load.failed, 0, COMMAND)
    tour.board.at_most("node_s", done.full_s, MUST_FULL_S, COMMAND, unit=" s")
    return name, done


def latency(tour: Tour, load: Result) -> None:
    """What callers felt, and why requests failed where any did."""
    tour.say(
        "kill.latency", p50=load.latency_ms_p50, p99=load.latency_ms_p99, slowest=load.latency_ms_max,
        gap=load.longest_gap_ms,
    )  # fmt: skip
    if load.reasons:
        tour.say("kill.reasons", reasons="; ".join(f"{count} x {why}" for why, count in load.reasons.items()))


def _figures(done: Trial) -> dict[str, Any]:
    return {
        **figures(done.load),
        "full_capacity_s": round(done.full_s, 3),
        "killed_pids": list(done.shot.pids),
        "before": done.before,
        "after": done.after,
    }
