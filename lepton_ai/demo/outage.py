"""Stage 7: the control plane is killed under load; meanwhile one Envoy too; then the control plane comes back.

Owns the order and what is compared before and after; the parts are also `bench/failover.py`'s.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from lepton_ai.demo import cell, shoot
from lepton_ai.demo.kill import COMMAND, latency
from lepton_ai.demo.load import Result
from lepton_ai.demo.tour import NAME, Tour
from lepton_ai.demo.trial import Offer, figures, ready, settled, until
from lepton_ai.gateway.admin import Admin
from lepton_ai.gateway.sockets import sockets
from lepton_ai.node.identity import Identity

MUST_ENVOY_S = 1.0
MUST_USABLE_S = 5.0
DOWN_S = 3.0


def outage(tour: Tour) -> None:
    """Control killed; Envoy killed meanwhile; control back."""
    with tour.stage("control") as stage:
        offer = Offer(tour.asked, tour.rate_per_s, tour.folder)
        settled(tour.client, NAME)
        before = shoot.alive(tour.cell_dir)
        down, processes = without_control(tour.cell_dir, offer, DOWN_S)
        tour.say("control.down", processes=processes, failed=down.failed, sent=down.sent, seconds=DOWN_S)
        latency(tour, down)
        envoy_s, envoy = envoy_killed(tour.cell_dir, Offer(tour.asked, tour.rate_per_s, tour.folder, retry=True), 1)
        tour.say(
            "control.envoy", seconds=envoy_s, broken=envoy.broken, sent=envoy.sent, failed=envoy.failed
        )  # fmt: skip
        latency(tour, envoy)
        usable_s, back = control_back(offer, lambda: cell.start(tour), lambda: bool(ready(tour.client, NAME)))
        after = shoot.alive(tour.cell_dir)
        adopted = sum(after.get(uid) == pid for uid, pid in before.items())
        restarted = len(before) - adopted
        tour.say(
            "control.back", seconds=usable_s, adopted=adopted, restarted=restarted, failed=back.failed, sent=back.sent
        )
        board = tour.board
        board.at_most("control", down.failed + back.failed, 0, COMMAND)
        board.at_most("restarted", restarted, 0, COMMAND)
        board.at_most("usable", usable_s, MUST_USABLE_S, COMMAND, unit=" s")
        board.at_most("envoy_s", envoy_s, MUST_ENVOY_S, COMMAND, unit=" s")
        board.at_most("envoy", envoy.failed, 0, COMMAND)
        stage.figures.update(
            down_s=DOWN_S, down=figures(down), envoy_back_s=envoy_s, envoy=figures(envoy), usable_s=usable_s,
            back=figures(back), adopted=adopted, restarted=restarted, before=before, after=after,
        )  # fmt: skip


def without_control(cell_dir: Path, offer: Offer, seconds: float) -> tuple[Result, int]:
    """The load over the kill of the control plane and `seconds` without it; how many processes were killed."""
    with offer.traffic() as traffic:
        time.sleep(0.5)
        shot = shoot.control(cell_dir)
        time.sleep(seconds)
        return traffic.stop(), len(shot.pids)


def envoy_killed(cell_dir: Path, offer: Offer, number: int) -> tuple[float, Result]:
    """(seconds until a new process of that Envoy takes requests, the load over it)."""
    admin = Admin(sockets(cell_dir / "gateway") / f"envoy-{number}.sock", timeout_s=0.5)
    record = cell_dir / "system" / f"envoy-{number}" / "child.json"
    with offer.traffic() as traffic:
        time.sleep(0.5)
        old = Identity.read(record)
        shot = shoot.envoy(cell_dir, number)

        def back() -> bool:
            new = Identity.read(record)
            return new is not None and new != old and new.alive() and admin.live()

        back_s = until(back, since_s=shot.at_s)
        time.sleep(0.7)
        return back_s, traffic.stop()


def control_back(offer: Offer, start: Callable[[], None], usable: Callable[[], bool]) -> tuple[float, Result]:
    """(seconds from asking for it until it answers with what it knows, the load over it)."""
    with offer.traffic() as traffic:
        time.sleep(0.3)
        started_s = time.monotonic()
        start()
        usable_s = until(usable, since_s=started_s)
        time.sleep(0.7)
        return usable_s, traffic.stop()
