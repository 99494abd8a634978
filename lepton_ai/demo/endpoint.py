"""Stage 5: the registered model becomes an endpoint of two replicas on two nodes, and is asked something.

Owns what is asked and how the capacity is found; placing, starting and routing are the cell's.
"""

from __future__ import annotations

import json
import os
import time
from typing import Any

import httpx

from lepton_ai.demo.tour import NAME, Tour
from lepton_ai.demo.traffic import SHARE, Questions, Traffic, capacity
from lepton_ai.demo.trial import fields, ready
from lepton_ai.errors import Failed

REPLICAS = (2, 4)
USERS = 400
LONE_S = 0.8
MEMORY_MIB = 256
PERSON = 7


def endpoint(tour: Tour) -> None:
    """Deploys, shows why which node was chosen and what it costs, answers for a person, measures."""
    with tour.stage("serve") as stage:
        options = {"name": NAME, "replicas": REPLICAS, "survive": 1, "memory_mib": _memory_mib(tour)}
        plan = fields(tour.client.plan(tour.version, **options))
        started_s = time.monotonic()
        deployed = fields(tour.client.deploy(tour.version, **options, wait=True, say=tour.whisper))
        seconds = time.monotonic() - started_s
        tour.release = deployed["release"]
        on = ready(tour.client, NAME)
        nodes = sorted(set(on.values()))
        tour.say(
            "serve.ready", release=f"{NAME}#{tour.release}", replicas=len(on), nodes=len(nodes),
            spread=", ".join(nodes), seconds=seconds,
        )  # fmt: skip
        for placement in map(fields, plan["placements"]):
            tour.say("serve.why", **{key: placement[key] for key in ("replica", "node", "reason")})
        currency = plan.get("currency", "USD")
        tour.say("serve.price", price=plan["price_per_hour"], currency=currency)
        tour.board.holds(
            "nodes", len(nodes) >= 2, f"lepton ps {NAME} --cell demo", ", ".join(nodes), "≥ 2"
        )  # fmt: skip
        stage.figures.update(
            deploy_s=seconds, replicas=on, placements=plan["placements"],
            price_per_hour=plan["price_per_hour"], currency=currency,
        )  # fmt: skip
        _ask(tour, str(deployed["url"]), stage.figures)
        _measure(tour, stage.figures)


def _memory_mib(tour: Tour) -> int:
    """What a replica needs: the server, and the weights some times over while they load."""
    weights_mib = len(tour.model.export()) >> 20
    return MEMORY_MIB + 4 * weights_mib if weights_mib > 16 else MEMORY_MIB


def _ask(tour: Tour, url: str, figures: dict[str, Any]) -> None:
    """One person's question in both forms, and the answer in titles."""
    users = tour.model.users
    tour.questions = Questions.of(url, tour.model, users[:: max(1, len(users) // USERS)][:USERS].tolist())
    user = PERSON if PERSON in users else users[0].item()
    with httpx.Client(timeout=10.0, trust_env=False) as http:
        plain = _post(http, url, {"user": user})
        sent = {"name": "user", "shape": [1], "datatype": tour.model.signature["inputs"][0]["datatype"], "data": [user]}
        found = _post(http, f"{url.rstrip('/')}/v2/models/{NAME}/infer", {"inputs": [sent]})
    v2 = next(output["data"] for output in found["outputs"] if output["name"] == "items")
    alike = v2 == plain["items"] == tour.model.predict([user], k=10).items[0].tolist()
    title = tour.source.title
    liked = " · ".join(title(item) for item, _ in tour.model.history(user, 2))
    recommended = " · ".join(title(item) for item in plain["items"][:3])
    tour.say("serve.answer", user=user, liked=liked, recommended=recommended)
    tour.board.holds("forms", alike, f"lepton call {NAME} '{json.dumps({'user': user})}' --cell demo")
    figures.update(url=url, user=user, liked=liked, recommended=recommended, forms_alike=alike)


def _post(http: httpx.Client, url: str, body: dict[str, Any]) -> dict[str, Any]:
    answer = http.post(url, json=body)
    if answer.status_code != 200:
        raise Failed(f"{url} answered {answer.status_code}: {answer.text[:200]}", hint=f"lepton logs {NAME}")
    return dict(answer.json())


def _measure(tour: Tour, figures: dict[str, Any]) -> None:
    """One caller's latency, then what everything together can answer, of which 70 % are offered from here on."""
    with Traffic(tour.asked, tour.folder, connections=1, duration_s=LONE_S) as traffic:
        lone = traffic.result()
    tour.say("serve.forms", p50=lone.latency_ms_p50, p99=lone.latency_ms_p99)
    full = capacity(tour.asked, tour.folder)
    tour.capacity_per_s, tour.rate_per_s = full.rate_per_s, full.rate_per_s * SHARE
    tour.say("serve.capacity", rate=full.rate_per_s, offered=tour.rate_per_s, cores=cores())
    if lone.failed or full.failed:
        raise Failed(
            f"requests failed before anything was shot: {lone.reasons | full.reasons}", hint=f"lepton logs {NAME}"
        )
    figures.update(
        latency_ms_p50=lone.latency_ms_p50, latency_ms_p99=lone.latency_ms_p99,
        capacity_per_s=round(full.rate_per_s), offered_per_s=round(tour.rate_per_s),
    )  # fmt: skip


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
