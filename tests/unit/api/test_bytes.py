"""Blobs and models: streamed, bounded, verified; tickets open one blob for a while."""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from lepton_ai.api import blobs as blob_routes
from lepton_ai.api import models as model_routes
from lepton_ai.api.upload import Upload
from lepton_ai.blobs import ticket
from lepton_ai.errors import DiskFull, Unauthorized
from lepton_ai.models import RecommenderModel

KEY = b"k" * 32


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def test_a_blob_goes_in_and_comes_out(stand: Any) -> None:
    client = stand.client("developer")
    data = bytes(range(256)) * 20_000
    digest = digest_of(data)
    assert client.get(f"/x/blobs/{digest}").status_code == 404
    put = client.put(f"/x/blobs/{digest}", content=data)
    assert (put.status_code, put.json()) == (201, {"digest": digest, "size_bytes": len(data)})
    got = stand.client("viewer").get(f"/x/blobs/{digest}")
    assert got.content == data
    assert got.headers["content-length"] == str(len(data))
    assert client.put(f"/x/blobs/{digest}", content=data).status_code == 201
    assert [entry.action for entry in stand.cell.audit.list("default")].count("upload") == 1


def test_a_blob_that_is_not_its_digest_is_refused_and_not_kept(stand: Any) -> None:
    client = stand.client()
    wrong = client.put(f"/x/blobs/{digest_of(b'this')}", content=b"that")
    assert wrong.status_code == 400
    assert wrong.json()["code"] == "InvalidParameter"
    for name in ("sha256:xyz", "md5:0", "sha256:" + "0" * 63):
        assert client.put(f"/x/blobs/{name}", content=b"x").status_code == 400
        assert client.get(f"/x/blobs/{name}").status_code == 400
    assert list(stand.cell.blobs.list()) == []
    assert list((stand.cell.blobs.root / "new").iterdir()) == []


def test_an_upload_is_bounded_whether_it_says_its_size_or_not(stand: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blob_routes, "BLOB_BYTES_MAX", 100)
    client, data = stand.client(), b"x" * 101
    assert client.put(f"/x/blobs/{digest_of(data)}", content=data).status_code == 413

    def pieces() -> Iterator[bytes]:
        for _ in range(101):
            yield b"x"

    assert client.put(f"/x/blobs/{digest_of(data)}", content=pieces()).status_code == 413
    assert list(stand.cell.blobs.list()) == []


def test_a_ticket_opens_its_blob_until_it_runs_out(stand: Any) -> None:
    digest, other = stand.cell.blobs.put(b"weights").digest, stand.cell.blobs.put(b"other").digest
    now_ms = stand.store.now_ms()
    good = ticket.sign(KEY, digest, now_ms + 60_000)
    agent = TestClient(stand.app, base_url="http://cell/api/v2/workspaces/system")
    assert agent.get(f"/x/blobs/{digest}", headers={ticket.HEADER: good}).content == b"weights"
    for path, value in (
        (digest, ticket.sign(KEY, digest, now_ms - 1)),
        (digest, ticket.sign(b"x" * 32, digest, now_ms + 60_000)),
        (digest, good.replace(good[:5], "9" * 5, 1)),
        (digest, "nonsense"),
        (digest, ""),
        (other, good),
    ):
        response = agent.get(f"/x/blobs/{path}", headers={ticket.HEADER: value})
        assert response.status_code == 401, (path, value)
    assert agent.get(f"/x/blobs/{digest}").status_code == 401
    # It opens nothing else, and lets nothing in.
    assert agent.put(f"/x/blobs/{digest}", content=b"weights", headers={ticket.HEADER: good}).status_code == 401
    assert agent.get("/x/cell", headers={ticket.HEADER: good}).status_code == 401


def test_a_ticket_is_checked_in_one_place() -> None:
    digest = digest_of(b"x")
    ticket.verify(KEY, digest, ticket.sign(KEY, digest, 1000), 999)
    for now_ms, text in ((1000, ticket.sign(KEY, digest, 1000)), (0, "1.2"), (0, "1" * 20 + "." + "0" * 64)):
        with pytest.raises(Unauthorized):
            ticket.verify(KEY, digest, text, now_ms)


@pytest.fixture(scope="module")
def saved() -> tuple[bytes, bytes]:
    """Two different saved models."""
    rng = np.random.default_rng(7)
    made = []
    for count in (400, 500):
        users, items = rng.integers(0, 20, count), rng.integers(0, 12, count)
        rows = np.column_stack([users, items, rng.integers(1, 6, count)])
        made.append(RecommenderModel().fit(rows).container().pack())
    return made[0], made[1]


def test_models_are_registered_and_listed_newest_first(stand: Any, saved: tuple[bytes, bytes]) -> None:
    client = stand.client("developer")
    first = client.post("/x/models/movies", content=saved[0], params={"lineage": '{"table": "ratings@1"}'})
    assert first.status_code == 201, first.text
    made = first.json()
    assert (made["model"], made["number"], made["ref"], made["kind"]) == ("movies", 1, "movies@1", "recommender")
    assert made["lineage"]["table"] == "ratings@1"
    again = client.post("/x/models/movies", content=saved[0], params={"lineage": '{"table": "ratings@1"}'})
    assert again.json()["number"] == 1
    assert client.post("/x/models/movies", content=saved[1]).json()["number"] == 2
    client.post("/x/models/books", content=saved[1])
    assert [item["ref"] for item in client.get("/x/models").json()] == ["books@1", "movies@2", "movies@1"]
    assert client.get("/x/models/movies").json()["number"] == 2
    assert client.get("/x/models/movies@1").json() == made
    assert client.get("/x/models/movies@3").status_code == 404
    assert client.get("/x/models/movies@x").status_code == 400
    other = stand.client(token=stand.foreign, ws="other")
    assert other.get("/x/models").json() == []
    assert other.get("/x/models/movies").status_code == 404


def test_what_is_no_model_is_refused_and_leaves_nothing(stand: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    client = stand.client()
    for data in (b"", b"no model", b"\x80\x04\x95pickle"):
        response = client.post("/x/models/movies", content=data)
        assert response.status_code == 400
        assert response.json()["hint"]
    for lineage in ("[]", "{", "5"):
        assert client.post("/x/models/movies", content=b"", params={"lineage": lineage}).status_code == 400
    assert client.post("/x/models/Bad!", content=b"x").status_code == 400
    monkeypatch.setattr(model_routes, "MODEL_BYTES_MAX", 10)
    assert client.post("/x/models/movies", content=b"x" * 11).status_code == 413
    assert client.get("/x/models").json() == []
    assert list((stand.cell.blobs.root / "new").iterdir()) == []


def test_a_full_disk_is_told_and_nothing_half_stays(stand: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    client = stand.client()
    with monkeypatch.context() as patch:
        patch.setattr("lepton_ai.blobs.local.os.fsync", full)
        response = client.put(f"/x/blobs/{digest_of(b'x')}", content=b"x")
    assert (response.status_code, response.json()["code"]) == (507, "DiskFull")

    class Full:
        """A device without room."""

        write = full

    class Body:
        """One piece, then the end."""

        left = b"x"

        def read(self, _: int) -> bytes:
            data, self.left = self.left, b""
            return data

    with pytest.raises(DiskFull) as caught:
        Upload.copy(Body(), Full())  # type: ignore[arg-type]
    assert caught.value.hint
    assert list((stand.cell.blobs.root / "new").iterdir()) == []
    assert list(stand.cell.blobs.list()) == []


def test_a_model_is_deployed_by_running_its_server_with_its_bytes(stand: Any, saved: tuple[bytes, bytes]) -> None:
    client = stand.client()
    client.post("/x/models/movies", content=saved[0])
    form = {"name": "films", "model": "movies", "template": {"env": {"A": "1"}, "health": {"interval_s": 2}}}
    plan = client.post("/x/plan", json=form).json()
    assert plan["summary"] == "new deployment films, 1 replica of movies@1"
    assert list(stand.cell.blobs.list()) == []
    made = client.put("/x/deployments/films", json=form).json()
    template = made["spec"]["template"]
    assert made["model"] == template["model"] == "movies@1"
    assert template["command"] == [
        "python", "-m", "lepton_ai.serve", "--model", "{blobs}/model.lepton", "--name", "films", "--version", "1",
        "--port", "{port}",
    ]  # fmt: skip
    assert (template["idempotent"], template["env"]) == (True, {"A": "1"})
    assert template["health"]["path"] == "/v2/health/ready"
    assert template["health"]["interval_s"] == 2
    (blob,) = template["blobs"]
    assert blob == {"digest": digest_of(saved[0]), "size_bytes": len(saved[0]), "path": "model.lepton"}
    assert stand.cell.blobs.path(blob["digest"]).read_bytes() == saved[0]
    # What was recorded can be sent back as it is; a newer version of the model is a release.
    assert client.put("/x/deployments/films", json=made["spec"]).json()["release"] == 1
    client.post("/x/models/movies", content=saved[1])
    newer = client.put("/x/deployments/films", json={**form, "model": "movies@2"}).json()
    assert (newer["release"], newer["model"]) == (2, "movies@2")


def test_a_plan_may_name_bytes_that_are_not_registered(stand: Any, saved: tuple[bytes, bytes]) -> None:
    client = stand.client()
    form = {"name": "movies", "model": f"movies@{digest_of(saved[0])}"}
    assert client.post("/x/plan", json=form).json()["summary"] == "new deployment movies, 1 replica of movies@1"
    assert client.put("/x/deployments/movies", json=form).status_code == 404
    client.post("/x/models/movies", content=saved[0])
    assert client.put("/x/deployments/movies", json=form).json()["model"] == "movies@1"
    again = client.post("/x/plan", json=form).json()
    assert again["summary"] == "nothing changes: movies#1 is this already"
    form["model"] = f"movies@{digest_of(saved[1])}"
    assert client.post("/x/plan", json=form).json()["summary"] == "movies#2 replaces movies#1, 1 replica of movies@2"


def test_a_model_decides_its_command_itself(stand: Any, saved: tuple[bytes, bytes]) -> None:
    client = stand.client()
    client.post("/x/models/movies", content=saved[0])
    for key, value in (("command", ["x"]), ("blobs", []), ("model", "movies@1")):
        form = {"name": "films", "model": "movies@1", "template": {key: value}}
        response = client.put("/x/deployments/films", json=form)
        assert response.status_code == 400
        assert f"template.{key} and model exclude each other" in response.json()["message"]
    wrong = client.put("/x/deployments/films", json={"name": "films", "model": "movies@1", "template": {"helth": 1}})
    assert wrong.json()["hint"] == "did you mean 'health'?"
    missing = client.put("/x/deployments/films", json={"name": "films", "model": "moveis"})
    assert missing.status_code == 404
