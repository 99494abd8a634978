"""Deployments: what is asked for becomes a record and a numbered release, the same content never twice."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from lepton_ai.scheduler.snapshot import Node
from lepton_ai.spec.workload import DeploymentSpec, Resources

COMMAND = {"command": ["python", "-m", "http.server", "{port}"]}
FORM: dict[str, Any] = {"name": "web", "template": COMMAND}


def releases(stand: Any) -> list[tuple[str, str]]:
    return [(record.name, record.spec["note"]) for record in stand.store.list("release")]


def put(stand: Any, **fields: Any) -> dict[str, Any]:
    form = {**FORM, **fields}
    response = stand.client().put(f"/x/deployments/{form['name']}", json=form)
    assert response.status_code == 200, response.text
    return dict(response.json())


def test_a_new_deployment_is_recorded_with_its_first_release(stand: Any) -> None:
    made = put(stand, replicas={"min": 2, "max": 4}, survive=1, note="first")
    assert (made["release"], made["generation"], made["state"]) == (1, 1, "starting")
    assert made["reason"]
    assert made["url"] == "http://127.0.0.1:9/default/web/"
    record = stand.store.get("default", "deployment", "web")
    spec = DeploymentSpec.model_validate(record.spec)
    assert (spec.replicas.min, spec.replicas.max, spec.survive) == (2, 4, {"node": 1})
    (release,) = stand.store.list("release")
    assert (release.name, release.owner_uid) == ("web#1", record.uid)
    assert release.spec["template"] == record.spec["template"]
    entry = stand.cell.audit.list("default")[0]
    assert (entry.actor, entry.action, entry.name) == ("owner", "deploy", "web")


def test_the_same_content_again_changes_nothing(stand: Any) -> None:
    first = put(stand, replicas=2, tokens=["key-number-1"])
    revision = stand.store.revision()
    again = put(stand, replicas=2, tokens=["key-number-1"])
    assert again == first
    assert stand.store.revision() == revision
    assert releases(stand) == [("web#1", "")]


def test_only_another_template_makes_a_release(stand: Any) -> None:
    put(stand)
    scaled = put(stand, replicas=3)
    assert (scaled["release"], scaled["generation"]) == (1, 2)
    changed = put(stand, replicas=3, template={**COMMAND, "env": {"A": "1"}})
    assert (changed["release"], changed["generation"]) == (2, 3)
    back = put(stand, replicas=3)
    assert back["release"] == 3
    assert [name for name, _ in releases(stand)] == ["web#1", "web#2", "web#3"]


def test_what_was_taken_back_is_tried_again_when_it_is_asked_for_again(stand: Any) -> None:
    put(stand)
    record = stand.store.get("default", "deployment", "web")
    stand.store.update(record, status={"rollout": {"release": 1, "state": "failed"}})
    again = put(stand)
    assert (again["release"], again["generation"]) == (2, 2)
    assert put(stand)["release"] == 2, "but not while the second try is under way"


def test_a_plan_says_what_would_change_and_changes_nothing(stand: Any) -> None:
    client = stand.client("viewer")
    revision = stand.store.revision()
    plan = client.post("/x/plan", json={**FORM, "replicas": 2, "survive": 1}).json()
    assert plan["summary"] == "new deployment web, 2 replicas"
    assert [item["node"] for item in plan["placements"]] == ["node-1", "node-2"]
    assert all(item["reason"] for item in plan["placements"])
    assert plan["price_per_hour"] == pytest.approx(2 * (0.2 * 0.031611 + 0.25 * 0.004237), abs=1e-6)
    assert (plan["currency"], plan["release"], plan["unplaceable"]) == ("USD", 1, None)
    assert stand.store.revision() == revision
    put(stand, replicas=2)
    change = {**FORM, "replicas": {"min": 1, "max": 3}, "template": {**COMMAND, "env": {"A": "secret-value"}}}
    change["template"]["resources"] = {"cpu_milli": 500}
    plan = client.post("/x/plan", json=change).json()
    assert plan["summary"] == "web#2 replaces web#1, 1 replica"
    assert plan["changes"] == ["replicas 2 -> 1..3", "env changes: A", "resources.cpu_milli 200 -> 500"]
    assert "secret-value" not in str(plan)
    plan = client.post("/x/plan", json={**FORM, "replicas": 2}).json()
    assert plan["summary"] == "nothing changes: web#1 is this already"
    plan = client.post("/x/plan", json={**FORM, "replicas": 3, "tokens": ["key-number-1"]}).json()
    assert plan["summary"] == "web#1 stays, 3 replicas"
    assert plan["changes"] == ["replicas 2 -> 3", "may be called by its new tokens"]


def test_a_plan_names_who_sees_and_calls_it(stand: Any) -> None:
    stand.deploy(replicas=1)
    client = stand.client()
    form = {
        **FORM, "replicas": 1, "visibility": "private", "labels": {"team": "a"}, "spread": "required",
        "allowlist": ["10.0.0.0/8", "::1"], "balance": {"policy": "maglev"}, "target_requests_per_minute": 60,
    }  # fmt: skip
    assert client.post("/x/plan", json=form).json()["changes"] == [
        "spread preferred -> required",
        "target_requests_per_minute none -> 60.0",
        "visibility public -> private",
        "labels none -> {'team': 'a'}",
        "balance policy least_request -> policy maglev",
        "may be called by anyone who reaches the gateway from 10.0.0.0/8, ::1",
    ]
    pod = client.post("/x/plan", json={"name": "desk", "pod": True, "template": COMMAND}).json()
    assert pod["summary"].startswith("new pod desk, 1 replica")
    assert pod["changes"] == ["replicas 1", "may be called by whoever reaches its ports on the node"]


def test_a_plan_places_only_what_is_missing(stand: Any) -> None:
    record = stand.deploy(replicas=2)
    stand.replica(record, "node-1")
    stand.replica(record, "node-2", phase="exited")
    plan = stand.client().post("/x/plan", json={**FORM, "replicas": 3, "survive": 1}).json()
    assert [item["node"] for item in plan["placements"]] == ["node-2", "node-3"]


def test_what_finds_no_room_now_waits_and_what_never_can_is_refused(stand: Any) -> None:
    stand.nodes = [Node(n, Resources(cpu_milli=1000, memory_mib=1024), (900, 0, 0)) for n in ("node-1", "node-2")]
    plan = stand.client().post("/x/plan", json=FORM).json()
    assert plan["placements"][0]["node"] is None
    assert "full: cpu 200 wanted, 100 of 1000 free" in plan["unplaceable"]["node-1"]
    put(stand)
    huge = {**FORM, "name": "huge", "template": {**COMMAND, "resources": {"cpu_milli": 1001}}}
    for method, path in (("POST", "/x/plan"), ("PUT", "/x/deployments/huge")):
        response = stand.client().request(method, path, json=huge)
        assert response.status_code == 422
        body = response.json()
        assert body["code"] == "Unplaceable"
        assert set(body["details"]["nodes"]) == {"node-1", "node-2"}
        assert "too small: cpu 1001 wanted, 1000 in all" in body["details"]["nodes"]["node-1"]
        assert "lepton node ls" in body["hint"]
    assert stand.store.find("default", "deployment", "huge") is None
    assert stand.client().post("/x/jobs", json={"name": "huge", "template": huge["template"]}).status_code == 422
    stand.nodes = [Node("node-1", Resources(cpu_milli=2000), blocked="unreachable")]
    assert stand.client().put("/x/deployments/huge", json=huge).status_code == 200  # its node may come back
    stand.nodes = []
    assert stand.client().put("/x/deployments/later", json={**huge, "name": "later"}).status_code == 200


def test_tokens_are_sealed_kept_and_never_shown(stand: Any) -> None:
    put(stand, tokens=["key-number-1", "key-number-2"])
    record = stand.store.get("default", "deployment", "web")
    context = "default/endpoint/web"
    assert [stand.cell.secrets.unseal(text, context) for text in record.spec["tokens"]] == [
        "key-number-1",
        "key-number-2",
    ]
    shown = stand.client().get("/x/deployments/web")
    assert shown.json()["protected"] is True
    assert "key-number" not in shown.text
    assert record.spec["tokens"][0] not in shown.text
    put(stand, replicas=2)  # says nothing about tokens: they stay
    assert stand.store.get("default", "deployment", "web").spec["tokens"] == record.spec["tokens"]
    put(stand, tokens=["key-number-3"])
    put(stand, tokens=[])
    assert stand.store.get("default", "deployment", "web").spec["tokens"] is None
    assert "key-number" not in str(stand.cell.audit.list("default"))


def test_rollback_makes_a_new_release_with_the_old_content(stand: Any) -> None:
    client = stand.client()
    nothing = client.post("/x/deployments/web/rollback", json={})
    assert nothing.status_code == 404
    put(stand)
    first = client.post("/x/deployments/web/rollback", json={"to": None})
    assert first.status_code == 400
    assert "no earlier release" in first.json()["message"]
    put(stand, template={**COMMAND, "env": {"V": "2"}})
    put(stand, template={**COMMAND, "env": {"V": "3"}})
    back = client.post("/x/deployments/web/rollback", json={}).json()
    assert back["release"] == 4
    assert back["spec"]["template"]["env"] == {"V": "2"}
    back = client.post("/x/deployments/web/rollback", json={"to": 1}).json()
    assert (back["release"], back["spec"]["template"]["env"]) == (5, {})
    same = client.post("/x/deployments/web/rollback", json={"to": 1}).json()
    assert same["release"] == 5
    missing = client.post("/x/deployments/web/rollback", json={"to": 77})
    assert missing.status_code == 404
    assert "#5" in missing.json()["hint"]
    listed = client.get("/x/deployments/web/releases").json()
    assert [(item["number"], item["note"]) for item in listed] == [
        (5, "rollback to #1"),
        (4, "rollback to #2"),
        (3, ""),
        (2, ""),
        (1, ""),
    ]
    assert client.post("/x/deployments/web/rollback", json={"too": 1}).json()["hint"] == "did you mean 'to'?"


def test_rollback_of_a_release_that_never_served_goes_to_the_one_that_does(stand: Any) -> None:
    put(stand)
    for value in ("2", "3"):
        put(stand, template={**COMMAND, "env": {"V": value}})
    stand.act("deployment", "web", serving=1, state="ready")
    back = stand.client().post("/x/deployments/web/rollback", json={}).json()
    assert back["spec"]["template"]["env"] == {}


def test_restart_is_a_release_with_the_same_content(stand: Any) -> None:
    put(stand)
    made = stand.client().post("/x/deployments/web/restart").json()
    assert made["release"] == 2
    assert releases(stand) == [("web#1", ""), ("web#2", "restart of #1")]


def test_a_deployment_that_is_being_removed_takes_no_change(stand: Any) -> None:
    put(stand)
    client = stand.client()
    gone = client.delete("/x/deployments/web").json()
    assert gone["state"] == "deleting"
    for response in (
        client.put("/x/deployments/web", json=FORM),
        client.post("/x/deployments/web/rollback", json={}),
        client.post("/x/deployments/web/restart"),
    ):
        assert response.status_code in (400, 409), response.text
    assert client.put("/x/deployments/web", json=FORM).json()["code"] == "Conflict"
    assert client.delete("/x/deployments/web").status_code == 200
    assert client.delete("/x/deployments/wab").json()["hint"] == "did you mean web?"


def test_what_was_made_from_an_older_look_is_refused(stand: Any) -> None:
    client = stand.client()
    assert client.put("/x/deployments/web?generation=3", json=FORM).status_code == 409
    assert client.put("/x/deployments/web?generation=0", json=FORM).status_code == 200
    put(stand, replicas=2)
    stale = client.put("/x/deployments/web?generation=1", json={**FORM, "replicas": 5})
    assert stale.status_code == 409
    assert stale.json()["details"]["generation"] == 2
    # What it asks for is so already (its first answer was lost): no conflict.
    assert client.put("/x/deployments/web?generation=1", json={**FORM, "replicas": 2}).status_code == 200


def test_the_path_and_the_body_name_the_same_thing(stand: Any) -> None:
    response = stand.client().put("/x/deployments/other", json=FORM)
    assert response.status_code == 400
    assert "they must be equal" in response.json()["hint"]


def test_secrets_and_blobs_must_exist(stand: Any) -> None:
    client = stand.client()
    secret = {**FORM, "template": {**COMMAND, "secrets": {"KEY": "api-key"}}}
    response = client.put("/x/deployments/web", json=secret)
    assert response.status_code == 404
    assert "there is no secret 'api-key'" in response.json()["message"]
    assert client.put("/x/secrets/api-key", json={"value": "v"}).status_code == 200
    assert client.put("/x/deployments/web", json=secret).status_code == 200
    digest = stand.cell.blobs.put(b"weights").digest
    blob = {"digest": digest, "size_bytes": 7, "path": "w"}
    there = {**FORM, "template": {**COMMAND, "blobs": [blob]}}
    assert client.put("/x/deployments/web", json=there).status_code == 200
    absent = {**FORM, "template": {**COMMAND, "blobs": [{**blob, "digest": "sha256:" + "0" * 64}]}}
    assert client.put("/x/deployments/web", json=absent).status_code == 404


def test_the_form_that_is_shown_can_be_sent_back(stand: Any) -> None:
    made = put(stand, replicas={"min": 1, "max": 3}, survive=1, idle_timeout_s=60, target_in_flight=4)
    assert put(stand, **made["spec"]) == made


def test_replicas_and_events_are_listed(stand: Any) -> None:
    record = stand.deploy()
    end = {"code": 3, "signal": None, "out_of_memory": False, "reason": "", "started_ms": 1, "ended_ms": 2}
    stand.replica(record, "node-1", address="127.0.0.1", port=4000, started_ms=5, ready_ms=6)
    stand.replica(record, "node-2", phase="exited", exit={**end, "lost": False}, last_log="boom")
    first, second = stand.client().get("/x/deployments/web/replicas").json()
    assert (first["node"], first["phase"], first["port"], first["exit"]) == ("node-1", "ready", 4000, None)
    assert (second["exit"]["text"], second["exit"]["lost"], second["last_log"]) == ("exit code 3", False, "boom")
    stand.cell.events.add("default", "deployment", "web", "Normal", "State", "new -> ready")
    stand.cell.events.add("default", "job", "other", "Normal", "State", "x")
    (event,) = stand.client().get("/x/events?kind=deployment&name=web").json()
    assert (event["reason"], event["message"], event["count"]) == ("State", "new -> ready", 1)


def test_of_200_equal_puts_at_once_one_makes_the_deployment(stand: Any) -> None:
    async def all_at_once() -> list[int]:
        transport = httpx.ASGITransport(app=stand.app)
        headers = {"authorization": f"Bearer {stand.tokens['owner']}"}
        base = "http://cell/api/v2/workspaces/default"
        async with httpx.AsyncClient(transport=transport, base_url=base, headers=headers, timeout=120) as client:
            answers = await asyncio.gather(*(client.put("/x/deployments/web", json=FORM) for _ in range(200)))
            return [answer.status_code for answer in answers]

    assert asyncio.run(all_at_once()) == [200] * 200
    assert len(stand.store.list("deployment")) == 1
    assert releases(stand) == [("web#1", "")]
    assert stand.store.get("default", "deployment", "web").generation == 1


def test_changes_at_once_are_numbered_without_gap_or_twin(stand: Any) -> None:
    async def all_at_once() -> list[httpx.Response]:
        transport = httpx.ASGITransport(app=stand.app)
        headers = {"authorization": f"Bearer {stand.tokens['owner']}"}
        base = "http://cell/api/v2/workspaces/default"
        async with httpx.AsyncClient(transport=transport, base_url=base, headers=headers, timeout=120) as client:
            forms = [{**FORM, "template": {**COMMAND, "env": {"V": str(n)}}} for n in range(30)]
            return list(await asyncio.gather(*(client.put("/x/deployments/web", json=form) for form in forms)))

    answers = asyncio.run(all_at_once())
    good = [answer.json()["release"] for answer in answers if answer.status_code == 200]
    assert {answer.status_code for answer in answers} <= {200, 409}
    assert sorted(good) == list(range(1, len(good) + 1))
    assert len(good) >= 10
    record = stand.store.get("default", "deployment", "web")
    assert record.spec["release"] == len(good)
    assert len(stand.store.list("release", owner_uid=record.uid)) == len(good)


def test_patches_at_once_lose_nothing(stand: Any) -> None:
    put(stand)

    async def all_at_once() -> list[int]:
        transport = httpx.ASGITransport(app=stand.app)
        headers = {"authorization": f"Bearer {stand.tokens['owner']}"}
        base = "http://cell/api/v2/workspaces/default"
        patches = [
            {"spec": {"resource_requirement": {"min_replicas": 2, "max_replicas": 5}}},
            {"spec": {"auto_scaler": {"scale_down": {"no_traffic_timeout": 99}}}},
            {"spec": {"envs": [{"name": "A", "value": "1"}]}},
        ]
        async with httpx.AsyncClient(transport=transport, base_url=base, headers=headers, timeout=120) as client:
            answers = await asyncio.gather(*(client.patch("/deployments/web", json=patch) for patch in patches))
            return [answer.status_code for answer in answers]

    assert asyncio.run(all_at_once()) == [200, 200, 200]
    spec = DeploymentSpec.model_validate(stand.store.get("default", "deployment", "web").spec)
    assert (spec.replicas.min, spec.replicas.max) == (2, 5)
    assert spec.idle_timeout_s == 99
    assert spec.template.env == {"A": "1"}
