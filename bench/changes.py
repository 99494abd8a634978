"""Goal 8's changes of configuration: weights, canary, add, remove, and sets that must be refused, under load.

Not a measurement of its own: `failover.py` runs it. Two Envoys and four model servers as plain processes, the
gateway's own `publish` (the same code that the control plane runs), one load through the gateway's port.
"""

from __future__ import annotations

import random
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import report

from lepton_ai.demo.traffic import SHARE, Questions, capacity
from lepton_ai.demo.trial import Offer, figures, until
from lepton_ai.errors import Invalid
from lepton_ai.gateway import envoy as module
from lepton_ai.gateway.envoy import EnvoyGateway
from lepton_ai.gateway.listener import Listen
from lepton_ai.gateway.resources import Rendered, render
from lepton_ai.models import RecommenderModel
from lepton_ai.spec.route import Backend, Endpoint, Route, Routes

SEED = 8
HEALTH = "/v2/health/ready"
SERVERS = 4
LONGEST_S = 3600.0


def measure(model: RecommenderModel, rows: list[dict[str, object]], count: int) -> dict[str, dict[str, object]]:
    """`count` changes, one in ten of them a set that must be refused."""
    dice = random.Random(SEED)
    refused = accepted = down = 0
    with tempfile.TemporaryDirectory(prefix="lepton-bench-") as folder, gateway(Path(folder), model) as (envoys, ends):
        envoys.publish(Routes(routes=(route("movies", ends[:2]),)))
        questions = Questions.of(
            f"http://127.0.0.1:{envoys.listen.port}/default/movies/", model, model.users[:200].tolist()
        )
        until(lambda: envoys.live() == 2, since_s=time.monotonic())
        full = capacity(questions, Path(folder) / "load", duration_s=2.0)
        offer = Offer(questions, full.rate_per_s * SHARE, Path(folder) / "load", longest_s=LONGEST_S)
        with offer.traffic() as traffic:
            started_s = time.monotonic()
            for number in range(count):
                if number % 10 == 5:
                    refused += publish_invalid(envoys, dice, ends, number // 10)
                else:
                    envoys.publish(valid(dice, ends))
                    accepted += 1
                down += envoys.live() < 2
            seconds = time.monotonic() - started_s
            load = traffic.stop()
    rows.append({"what": "configuration changes", "changes": count, "seconds": round(seconds, 1), **figures(load)})
    wanted = sum(number % 10 == 5 for number in range(count))
    value = {"failed": load.failed, "accepted": accepted, "refused": refused, "listeners_down": down}
    met = load.failed == 0 and refused == wanted and down == 0
    return {
        "8.changes": report.goal(
            value, "requests, sets, sets, times", must=f"0 failed, {wanted} refused, 0 down", met=met,
            protocol=f"{count} published sets (weights, canary, releases and routes added and removed, tokens) in "
            f"{seconds:.0f} s, {wanted} of them invalid (for our checks, for Envoy's, for the running Envoys), "
            f"seed {SEED}; {load.sent} requests in an open loop at 70 % of "
            "capacity, 2 Envoys, 4 model servers",
        )
    }  # fmt: skip


def publish_invalid(envoys: EnvoyGateway, dice: random.Random, ends: list[Endpoint], turn: int) -> bool:
    """Whether it was refused: in turn by our checks, by Envoy's before it is written, by the running Envoys after."""
    honest = (module.render, module.validate)
    try:
        if turn % 3 == 0:
            envoys.publish(invalid(dice))
        else:
            module.render = broken  # type: ignore[assignment]
            if turn % 3 == 2:
                module.validate = lambda *_: None  # type: ignore[assignment]
            envoys.publish(valid(dice, ends))
    except Invalid:
        return True
    finally:
        module.render, module.validate = honest
    return False


def broken(*given: Any, **more: Any) -> Rendered:
    """What only Envoy can see is wrong: a virtual host without a domain."""
    rendered = render(*given, **more)
    rendered.routes[0]["virtual_hosts"][0]["domains"] = []
    return rendered


def valid(dice: random.Random, ends: list[Endpoint]) -> Routes:
    """Another set: one or two releases with other weights, and other routes beside it."""
    old, new = dice.sample(ends, dice.randint(1, 3)), dice.sample(ends, dice.randint(0, 2))
    weights = (dice.randint(1, 100), dice.choice([0, 1, 5, 50, 100]))
    others = [route(f"other-{index}", [dice.choice(ends)]) for index in range(dice.randint(0, 3))]
    if dice.random() < 0.3:
        others.append(route("locked", old, tokens=("a-token",)))
    return Routes(routes=(route("movies", old, new, weights=weights), *others))


def route(
    name: str, *releases: list[Endpoint], weights: tuple[int, ...] = (), tokens: tuple[str, ...] | None = None
) -> Route:
    backends = tuple(
        Backend(release=number, weight=weights[number - 1] if weights else 100, endpoints=tuple(ends))
        for number, ends in enumerate(releases, 1)
    )
    return Route(
        workspace="default", name=name, backends=backends, tokens=tokens, idempotent=True, health_path=HEALTH
    )  # fmt: skip


def invalid(dice: random.Random) -> Routes:
    """A set that no gateway may take."""
    good = Backend(release=1, endpoints=(Endpoint(replica="x", address="127.0.0.1", port=1),))
    nowhere = Backend(release=1, endpoints=(Endpoint(replica="x", address="no.such.host", port=1),))
    base: dict[str, Any] = {"workspace": "default", "name": "movies"}
    choices = (
        (Route(**base, backends=(nowhere,)),),
        (Route(**base, backends=(good,)),) * 2,
        (Route(**base, backends=(good,), tokens=("a\nb",)),),
        (Route(**base, backends=(good,), health_path="no slash"),),
        (Route(**base, backends=(good,), request_timeout_s=-1),),
    )
    return Routes(routes=dice.choice(choices))


@contextmanager
def gateway(folder: Path, model: RecommenderModel) -> Iterator[tuple[EnvoyGateway, list[Endpoint]]]:
    """Two Envoys and four servers of the model."""
    saved = model.save(folder / "model.lepton")
    ports = [free() for _ in range(SERVERS)]
    made = EnvoyGateway(folder / "gateway", Listen("127.0.0.1", free()))
    serve = [sys.executable, "-m", "lepton_ai.serve", "--model", str(saved), "--name", "movies", "--port"]
    commands = [[*serve, str(port)] for port in ports] + [made.argv(number) for number in (1, 2)]
    quiet: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    processes = [subprocess.Popen(command, **quiet) for command in commands]
    try:
        ready_s = until(lambda: all(map(answers, ports)) and made.live() == 2, since_s=time.monotonic())
        assert ready_s < 30, "servers and Envoys did not start"
        yield made, [Endpoint(replica=f"r{port}", address="127.0.0.1", port=port) for port in ports]
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            process.wait()


def answers(port: int) -> bool:
    import httpx

    try:
        return httpx.get(f"http://127.0.0.1:{port}{HEALTH}", trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


def free() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
