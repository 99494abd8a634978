"""Tokens and secrets: given and taken by those who may, shown to nobody."""

from __future__ import annotations

from typing import Any

from lepton_ai.wire.secrets import RESERVED


def test_a_token_is_shown_once_and_works(stand: Any) -> None:
    admin = stand.client("admin")
    made = admin.post("/x/tokens", json={"name": "ci", "role": "viewer", "days": 7})
    assert made.status_code == 201
    text = made.json()["token"]
    assert stand.client(token=text).get("/x/cell").json()["role"] == "viewer"
    listed = {item["name"]: item for item in admin.get("/x/tokens").json()}
    assert (listed["ci"]["role"], listed["ci"]["masked"][-4:]) == ("viewer", text[-4:])
    week_ms = 7 * 86_400_000
    assert week_ms - 60_000 < listed["ci"]["expires_ms"] - stand.store.now_ms() <= week_ms
    assert text not in admin.get("/x/tokens").text
    assert admin.post("/x/tokens", json={"name": "ci"}).status_code == 409
    for form in ({}, {"name": "x", "role": "king"}, {"name": "x", "days": 0}, {"name": "X!"}, {"name": "x", "dys": 1}):
        assert admin.post("/x/tokens", json=form).status_code == 400, form


def test_only_an_owner_makes_or_removes_owners_and_the_last_one_stays(stand: Any) -> None:
    admin, owner = stand.client("admin"), stand.client("owner")
    assert admin.post("/x/tokens", json={"name": "second", "role": "owner"}).status_code == 403
    assert admin.delete("/x/tokens/owner").status_code == 403
    last = owner.delete("/x/tokens/owner")
    assert last.status_code == 409
    assert "last owner" in last.json()["message"]
    assert owner.post("/x/tokens", json={"name": "second", "role": "owner"}).status_code == 201
    assert owner.delete("/x/tokens/owner").status_code == 200
    assert owner.get("/x/cell").status_code == 401


def test_a_token_that_is_not_there_has_a_hint(stand: Any) -> None:
    response = stand.client().delete("/x/tokens/develper")
    assert (response.status_code, response.json()["hint"]) == (404, "did you mean developer?")


def test_secrets_are_set_listed_and_removed_but_never_shown(stand: Any) -> None:
    client = stand.client("developer")
    assert client.put("/x/secrets/API_KEY", json={"value": "sw0rdfish"}).status_code == 200
    assert stand.cell.secrets.value("default", "API_KEY") == "sw0rdfish"
    assert client.put("/x/secrets/API_KEY", json={"value": "another"}).status_code == 200
    (listed,) = client.get("/x/secrets").json()
    assert (listed["name"], listed["owner"], listed["visibility"]) == ("API_KEY", "developer", "public")
    one = client.get("/x/secrets/API_KEY")
    assert one.json()["name"] == "API_KEY"
    assert "another" not in one.text
    assert stand.client("viewer").put("/x/secrets/API_KEY", json={"value": "x"}).status_code == 403
    assert client.delete("/x/secrets/API_KEY").status_code == 200
    assert client.delete("/x/secrets/API_KEY").status_code == 404
    raw = (stand.folder / "store.db").read_bytes()
    assert b"sw0rdfish" not in raw


def test_wrong_secrets_are_refused(stand: Any) -> None:
    client = stand.client()
    for name in (*RESERVED, "1A", "a b", "a" * 129):
        assert client.put(f"/x/secrets/{name}", json={"value": "x"}).status_code == 400, name
    assert client.put("/x/secrets/big", json={"value": "x" * 70_000}).status_code == 413
    assert client.put("/x/secrets/a", json={"value": 5}).status_code == 400
    assert client.put("/x/secrets/a", json={}).status_code == 400


def test_the_public_client_finds_its_token_and_sets_secrets(stand: Any) -> None:
    client = stand.client("developer")
    (own,) = client.get("/tokens").json()
    start, dots, end = own["masked_value"].partition("...")
    text = stand.tokens["developer"]
    assert dots == "..."
    assert text.startswith(start)
    assert text.endswith(end)
    assert isinstance(own["expires_at"], int)
    assert client.post("/usersecrets", json=[{"name": "A", "value": "1", "visibility": "public"}]).status_code == 201
    assert client.get("/usersecrets").json() == [
        {"name": "A", "owner": "developer", "visibility": "public", "tags": []}
    ]
    assert client.post("/usersecrets", json={"name": "A"}).status_code == 400
    assert client.post("/usersecrets", json=[{"name": "A"}]).status_code == 400
    assert client.delete("/usersecrets/A").status_code == 200
