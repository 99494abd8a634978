"""Host names over HTTP: what is made of what the public client sends, whose a domain is, and what is said of it."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

import pytest

from lepton_ai.api import app
from lepton_ai.spec.base import uuid7

PRIVATE = {"visibility": "private", "created_by": "somebody"}


def create(client: Any, domain: str, **spec: Any) -> Any:
    return client.post("/ingress", json={"metadata": {}, "spec": {"domain_name": domain, **spec}})


def made(client: Any, domain: str = "shop.example.com", **spec: Any) -> str:
    answer = create(client, domain, **spec)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["metadata"]["name"])


def deployment(stand: Any, name: str, state: str = "ready", **spec: Any) -> Any:
    return stand.store.create("default", "deployment", name, {"template": {}, **spec}, status={"state": state})


def ends(shown: dict[str, Any]) -> dict[str, int]:
    return {item["deployment"]: item["weight"] for item in shown["spec"]["endpoints"]}


def test_from_the_creation_to_the_end(stand: Any) -> None:
    client = stand.client("developer")
    deployment(stand, "blue")
    deployment(stand, "green")
    name = made(client, " Shop.Example.COM. ")
    (shown,) = client.get("/ingress").json()
    assert shown["metadata"]["id"] == shown["metadata"]["name"] == name
    assert shown["metadata"]["created_at"] > 0
    assert shown["metadata"]["created_by"] == "developer"
    assert shown["spec"] == {"domain_name": "shop.example.com", "endpoints": []}
    assert shown["status"]["validation_status"] == "pending"
    assert shown["status"]["expected_cname_target"] == shown["expected_cname_target"] == "127.0.0.1"
    added = client.post(f"/ingress/{name}/endpoint/deployment", json={"deployment": "blue", "weight": 70})
    assert ends(added.json()) == {"blue": 70}
    added = client.post(f"/ingress/{name}/endpoint/deployment", json={"deployment": "green", "weight": 30})
    assert ends(added.json()) == {"blue": 70, "green": 30}
    assert added.json()["status"]["validation_status"] == "active"
    again = client.post(f"/ingress/{name}/endpoint/deployment", json={"deployment": "green", "weight": 5})
    assert ends(again.json()) == {"blue": 70, "green": 5}
    # The client sends the whole object back with other endpoints.
    whole = client.get(f"/ingress/{name}").json()
    whole["spec"]["endpoints"] = [{"deployment": "green", "weight": 1}]
    assert ends(client.patch(f"/ingress/{name}", json=whole).json()) == {"green": 1}
    assert ends(client.delete(f"/ingress/{name}/endpoint/deployment/green").json()) == {}
    assert client.delete(f"/ingress/{name}/endpoint/deployment/green").status_code == 404
    assert client.delete(f"/ingress/{name}").status_code == 200
    assert client.get(f"/ingress/{name}").status_code == 404
    assert client.get("/ingress").json() == []


def test_what_is_said_of_its_deployments_is_so(stand: Any) -> None:
    client = stand.client("developer")
    blue, green = deployment(stand, "blue"), deployment(stand, "green", state="starting")
    name = made(client, endpoints=[{"deployment": "blue", "weight": 1}, {"deployment": "green", "weight": 1}])

    def status() -> tuple[str, str]:
        found = client.get(f"/ingress/{name}").json()
        assert ends(found) == {"blue": 1, "green": 1}
        return found["status"]["validation_status"], found["status"]["message"]

    assert status()[0] == "active"
    stand.store.update(blue, status={"state": "failed"})
    assert status() == ("pending", "no deployment behind it takes requests now")
    stand.store.delete(stand.store.get("default", "deployment", "blue"))
    assert status()[0] == "pending"
    stand.store.update(green, status={"state": "idle"})
    assert status() == ("active", "deployment blue does not exist any more; the others take its share")
    stand.store.delete(stand.store.get("default", "deployment", "green"))
    assert status()[0] == "failed"
    # What is gone may stay where it is; what never was cannot come.
    patch = {"spec": {"endpoints": [{"deployment": "blue", "weight": 2}]}}
    assert client.patch(f"/ingress/{name}", json=patch).status_code == 200
    patch = {"spec": {"endpoints": [{"deployment": "never", "weight": 2}]}}
    assert client.patch(f"/ingress/{name}", json=patch).status_code == 404


def test_a_domain_is_one_workspaces_and_nobody_learns_whose(stand: Any) -> None:
    mine, theirs = stand.client("developer"), stand.client(token=stand.foreign, ws="other")
    made(mine)
    answer = create(theirs, "SHOP.example.com")
    assert answer.status_code == 409
    assert "default" not in answer.text
    assert "developer" not in answer.text
    assert create(mine, "shop.example.com").status_code == 409
    assert theirs.get("/ingress").json() == []
    name = mine.get("/ingress").json()[0]["metadata"]["name"]
    assert theirs.get(f"/ingress/{name}").status_code == 404
    assert theirs.delete(f"/ingress/{name}").status_code == 404
    assert mine.delete(f"/ingress/{name}").status_code == 200
    assert create(theirs, "shop.example.com").status_code == 201


def test_the_gateways_own_name_is_nobodys(stand: Any) -> None:
    stand.app = app(replace(stand.cell, gateway_url="https://cloud.example.com:8443"))
    client = stand.client("owner")
    assert create(client, "Cloud.Example.com.").status_code == 409
    assert create(client, "shop.cloud.example.com").status_code == 201
    assert client.get("/ingress").json()[0]["expected_cname_target"] == "cloud.example.com"


def test_of_many_creations_at_once_in_two_workspaces_one_wins(stand: Any) -> None:
    clients = [stand.client("developer") if n % 2 else stand.client(token=stand.foreign, ws="other") for n in range(12)]
    codes: list[int] = []
    threads = [
        threading.Thread(target=lambda client=client: codes.append(create(client, "one.example.com").status_code))
        for client in clients
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(codes) == [201] + [409] * 11
    assert len(stand.store.list("ingress")) == 1


@pytest.mark.parametrize(
    "domain",
    [
        "", " ", "nodot", "a..b", "-a.com", "a-.com", "*.example.com", "http://a.com", "a.com/x", "a.com:80", "a b.com",
        "movies.default.localhost", "127.0.0.1", "[::1]", "x" * 64 + ".com", ".".join(["x" * 60] * 5), "a.com\n",
        "\0.com", "under_score.com", 7, None, ["a.com"], "ß" * 200 + ".de",
    ],
)  # fmt: skip
def test_what_is_no_domain_is_refused(stand: Any, domain: Any) -> None:
    answer = create(stand.client("developer"), domain)
    # A line's end is what people paste; it is cut off like blanks.
    assert answer.status_code == (201 if domain == "a.com\n" else 400), answer.text


def test_a_domain_of_another_script_is_kept_in_its_ascii_form(stand: Any) -> None:
    client = stand.client("developer")
    made(client, "BÜCHER.example.com")
    assert client.get("/ingress").json()[0]["spec"]["domain_name"] == "xn--bcher-kva.example.com"
    assert create(client, "xn--bcher-kva.example.com").status_code == 409


@pytest.mark.parametrize(
    "spec",
    [
        {"endpoints": [{"deployment": "blue", "weight": -1}]},
        {"endpoints": [{"deployment": "blue", "weight": 10**9}]},
        {"endpoints": [{"deployment": "blue", "weight": "many"}]},
        {"endpoints": [{"deployment": "blue"}, {"deployment": "blue"}]},
        {"endpoints": [{"weight": 1}]},
        {"endpoints": {"deployment": "blue"}},
        {"auth_config": {"ip_allowlist": ["10.0.0.0/99"]}},
        {"auth_config": {"ip_allowlist": "10.0.0.0/8"}},
        {"traffic_shadowing_config": {"percentage": 5, "endpoint": "x"}},
    ],
)
def test_what_cannot_be_kept_is_refused_by_name(stand: Any, spec: dict[str, Any]) -> None:
    deployment(stand, "blue")
    answer = create(stand.client("developer"), "shop.example.com", **spec)
    assert answer.status_code in (400, 422, 501), answer.text
    assert any(word in answer.text for word in ("weight", "endpoints", "ip_allowlist", "traffic_shadowing_config"))
    assert stand.store.list("ingress") == []


def test_networks_are_kept_and_the_domain_does_not_change(stand: Any) -> None:
    client = stand.client("developer")
    name = made(client, auth_config={"ip_allowlist": ["10.0.0.0/8", "192.0.2.7"]})
    assert client.get(f"/ingress/{name}").json()["spec"]["auth_config"]["ip_allowlist"][0] == "10.0.0.0/8"
    assert client.patch(f"/ingress/{name}", json={"spec": {"auth_config": None}}).status_code == 200
    assert "auth_config" not in client.get(f"/ingress/{name}").json()["spec"]
    assert client.patch(f"/ingress/{name}", json={"spec": {"domain_name": "b.example.com"}}).status_code == 400
    nothing = client.patch(f"/ingress/{name}", json={"spec": {}})
    assert nothing.status_code == 400
    assert "no valid field to update" in nothing.text


def test_pods_and_what_is_private_cannot_stand_behind_it(stand: Any) -> None:
    client = stand.client("developer")
    deployment(stand, "box", pod=True)
    deployment(stand, "hidden", **PRIVATE)
    for name in ("box", "hidden"):
        answer = create(client, "shop.example.com", endpoints=[{"deployment": name, "weight": 1}])
        assert answer.status_code == 404, answer.text
    near = create(client, "shop.example.com", endpoints=[{"deployment": "hiden", "weight": 1}])
    assert "hidden" not in near.text
    admin = stand.client("admin")
    assert create(admin, "shop.example.com", endpoints=[{"deployment": "hidden", "weight": 1}]).status_code == 201
    assert create(stand.client("viewer"), f"{uuid7()}.example.com").status_code == 403
