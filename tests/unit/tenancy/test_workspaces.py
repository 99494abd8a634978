"""A second workspace is let in only where something keeps it apart; one that goes leaves nothing that it could use."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from lepton_ai.errors import Conflict, Invalid, NotFound
from lepton_ai.settings import Settings
from lepton_ai.store import Store
from lepton_ai.telemetry import Audit
from lepton_ai.tenancy import Access, Secrets
from lepton_ai.tenancy.workspaces import Workspaces, isolation


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(f"sqlite:///{tmp_path}/store.db") as opened:
        yield opened


def cell(store: Store, **settings: str) -> Workspaces:
    return Workspaces(store, Settings(**settings))  # type: ignore[arg-type]


def test_what_isolates() -> None:
    assert isolation(Settings()) == "none"
    assert isolation(Settings(isolation="uid")) == "uid"
    assert isolation(Settings(runtime="docker:///var/run/docker.sock")) == "container"
    assert isolation(Settings(runtime="docker:///x", isolation="uid")) == "container"


def test_a_second_one_needs_isolation_or_force(store: Store) -> None:
    plain = cell(store)
    assert [item.name for item in plain.list()] == ["default"]
    with pytest.raises(Conflict, match="isolation none") as caught:
        plain.add("b")
    assert "--force" in str(caught.value.hint)
    assert plain.warning() == ""
    made = plain.add("b", force=True, actor="ann")
    assert (made.forced, made.created_by, made.first) == (True, "ann", False)
    assert "b is not kept apart" in plain.warning()
    assert cell(store, isolation="uid").warning() == ""
    assert not cell(store, isolation="uid").add("c").forced
    assert not cell(store, runtime="docker:///x").add("d", force=True).forced
    with pytest.raises(Conflict, match="exists already"):
        plain.add("b", force=True)
    assert [item.name for item in plain.list()] == ["default", "b", "c", "d"]
    assert [item.action for item in Audit(store).list("default")] == ["add", "add", "add"]


@pytest.mark.parametrize("name", ["system", "cell", "public", "private", "Bad", "", "a/b", "-a", "a" * 64, "default"])
def test_names_that_are_refused(store: Store, name: str) -> None:
    with pytest.raises((Invalid, Conflict)):
        cell(store).add(name, force=True)
    assert store.list("workspace") == []


def test_one_of_an_older_cell_is_known_by_its_tokens(store: Store) -> None:
    Access(store).issue("old", "owner", "laptop")
    plain = cell(store)
    assert [item.name for item in plain.list()] == ["default", "old"]
    assert "old" in plain.warning()
    with pytest.raises(Conflict):
        plain.add("old", force=True)


def test_removal(store: Store) -> None:
    plain = cell(store)
    plain.add("b", force=True)
    token, _ = Access(store).issue("b", "owner", "owner")
    Secrets(store, b"k" * 32).set("b", "KEY", "hush")
    store.create("b", "template", "t", {})
    store.create("system", "volume", "v", {"workspaces": ["default", "b"]})
    work = store.create("b", "deployment", "web", {})
    with pytest.raises(Conflict, match="still has web"):
        plain.remove("b")
    assert Access(store).authenticate(token).workspace == "b"
    store.delete(work)
    plain.remove("b", actor="ann")
    assert [item for item in store.list("token") if item.workspace == "b"] == []
    assert store.list("secret") == store.list("template") == store.list("workspace") == []
    assert store.get("system", "volume", "v").spec["workspaces"] == ["default"]
    with pytest.raises(NotFound):
        plain.remove("b")
    with pytest.raises(Invalid, match="first workspace"):
        plain.remove("default")
    assert Audit(store).list("default")[0].action == "remove"


def test_work_that_comes_while_it_is_removed_is_not_lost(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = cell(store)
    plain.add("b", force=True)
    Access(store).issue("b", "owner", "owner")
    monkeypatch.setattr(plain, "_refuse_work", lambda name: store.create(name, "job", "late", {}))
    with pytest.raises(Conflict, match="late was added meanwhile"):
        plain.remove("b")
    assert store.get("b", "job", "late").deleting
    assert [item for item in store.list("token") if item.workspace == "b"] == []
    assert [item.name for item in plain.list()] == ["default", "b"]
