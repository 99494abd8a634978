"""Volumes are mounted by those who were given them, and only where a rule covers; registry logins stay sealed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from lepton_ai.errors import Conflict, Corrupt, Forbidden, Invalid, NotFound, TooLarge, Unavailable
from lepton_ai.spec.container import Mount
from lepton_ai.store import Store
from lepton_ai.telemetry import Audit
from lepton_ai.tenancy import Secrets
from lepton_ai.tenancy.registries import Registries
from lepton_ai.tenancy.volumes import Rule, Volume, Volumes


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(f"sqlite:///{tmp_path}/store.db") as opened:
        yield opened


@pytest.fixture
def volumes(store: Store, tmp_path: Path) -> Volumes:
    return Volumes(store, closed=(tmp_path / "home",))


def volume(path: Path | str, name: str = "data", creation: str = "mkdir", **fields: object) -> Volume:
    values = {"size_gib": 1, "default_target": "/mnt/data", "workspaces": ("default",), **fields}
    return Volume(name, "nfs", str(path), creation=creation, **values)  # type: ignore[arg-type]


class TestVolumes:
    def test_the_nodes_own_is_always_there(self, volumes: Volumes) -> None:
        order = volumes.resolve("any", "", Mount(path="/x", target="/mnt/x", read_only=True))
        assert (order.volume, order.root, order.path, order.target) == ("local", None, "/x", "/mnt/x")
        assert order.read_only
        assert [item.name for item in volumes.list("any")] == ["local"]

    def test_only_who_was_given_it_may_mount(self, volumes: Volumes, tmp_path: Path) -> None:
        made = volumes.add(volume(tmp_path / "srv", workspaces=("default", "b")))
        assert (tmp_path / "srv").is_dir()
        mount = Mount(volume="data", path="/a", target="/mnt/x")
        for workspace in ("default", "b"):
            assert volumes.resolve(workspace, "me", mount).root == str(tmp_path / "srv")
        assert volumes.get("b", "data") == made
        with pytest.raises(NotFound, match="has no volume 'data'"):
            volumes.resolve("c", "me", mount)
        assert [item.name for item in volumes.list("c")] == ["local"]
        with pytest.raises(Conflict):
            volumes.add(volume(tmp_path / "other"))
        volumes.remove("data")
        with pytest.raises(NotFound):
            volumes.resolve("default", "me", mount)
        assert (tmp_path / "srv").is_dir()

    @pytest.mark.parametrize("path", ["", "srv", "/", "/etc", "/usr/share", "/var", "/dev/shm", "/srv/../etc", "/a\0b"])
    def test_folders_that_are_refused(self, volumes: Volumes, path: str) -> None:
        with pytest.raises(Invalid):
            volumes.add(volume(path))

    def test_the_cells_own_folder_is_refused(self, volumes: Volumes, tmp_path: Path) -> None:
        (tmp_path / "home").mkdir()
        (tmp_path / "link").symlink_to(tmp_path / "home")
        (tmp_path / "etc").symlink_to("/etc")
        for path in (tmp_path / "home", tmp_path / "home/cells", tmp_path, tmp_path / "link", tmp_path / "etc"):
            with pytest.raises(Invalid):
                volumes.add(volume(path))
        assert [item.name for item in volumes.list("default")] == ["local"]

    def test_how_a_folder_comes_to_be(self, volumes: Volumes, tmp_path: Path) -> None:
        with pytest.raises(Invalid, match="does not exist"):
            volumes.add(volume(tmp_path / "none", creation="mount"))
        (tmp_path / "file").write_text("x")
        with pytest.raises(Invalid, match="is not a folder"):
            volumes.add(volume(tmp_path / "file"))
        with pytest.raises(Unavailable, match="cannot be made"):
            volumes.add(volume(tmp_path / "file" / "below"))
        for name in ("local", "Bad", "a/b"):
            with pytest.raises((Conflict, Invalid)):
                volumes.add(volume(tmp_path / "ok", name=name))
        with pytest.raises(Invalid):
            volumes.remove("local")
        with pytest.raises(NotFound):
            volumes.remove("none")

    def test_rules(self, volumes: Volumes, tmp_path: Path) -> None:
        volumes.add(volume(tmp_path / "srv", workspaces=("default", "b")))

        def may(user: str, path: str, workspace: str = "default") -> bool:
            try:
                volumes.resolve(workspace, user, Mount(volume="data", path=path, target="/mnt/x"))
            except Forbidden:
                return False
            return True

        assert may("ann", "/")
        volumes.allow("default", "data", Rule("/team/", users=("ann",)))
        volumes.allow("default", "data", Rule("/people", policy="by_user"))
        volumes.allow("default", "data", Rule("/all", users=("*",)))
        assert may("ann", "/team/x")
        assert may("ann", "/people/ann/deep")
        assert may("bob", "/all")
        assert may("bob", "/people/bob")
        for user, path in (
            ("ann", "/"), ("ann", "/teamx"), ("bob", "/team"), ("ann", "/people"), ("ann", "/people/bob"),
            ("ann", "/people/annx"), ("", "/people"), ("", "/team"),
        ):  # fmt: skip
            assert not may(user, path), (user, path)
        assert may("ann", "/", workspace="b"), "a workspace's rules bind no other"
        assert [rule.prefix for rule in volumes.rules("default", "data")] == ["/all", "/people", "/team"]
        volumes.allow("default", "data", Rule("/team", users=("bob",)))
        assert not may("ann", "/team")
        for prefix in ("/team", "/people", "/all"):
            volumes.disallow("default", "data", prefix)
        assert may("ann", "/")
        with pytest.raises(NotFound):
            volumes.disallow("default", "data", "/team")

    def test_rules_that_are_refused(self, volumes: Volumes, tmp_path: Path) -> None:
        volumes.add(volume(tmp_path / "srv"))
        for rule in (Rule("/x"), Rule("x", ("*",)), Rule("/a/../b", ("*",)), Rule("/x", ("ann",), "by_user")):
            with pytest.raises(Invalid):
                volumes.allow("default", "data", rule)
        with pytest.raises(NotFound):
            volumes.allow("b", "data", Rule("/x", ("*",)))

    def test_rules_go_with_their_volume(self, store: Store, volumes: Volumes, tmp_path: Path) -> None:
        volumes.add(volume(tmp_path / "srv"))
        volumes.allow("default", "data", Rule("/x", ("ann",)))
        volumes.allow("default", "local", Rule("/x", ("ann",)))
        volumes.remove("data")
        assert [item.spec["volume"] for item in store.list("permission")] == ["local"]


class TestRegistries:
    def test_a_login_comes_back_only_as_a_login(self, store: Store, tmp_path: Path) -> None:
        logins = Registries(store, Secrets(store, b"k" * 32))
        logins.set("default", "hub", "127.0.0.1:5000", "me", "hunter2-hunter2", actor="ann")
        login = logins.login("default", "hub")
        assert (login.registry, login.username, login.password) == ("127.0.0.1:5000", "me", "hunter2-hunter2")
        assert "hunter2" not in repr(login)
        (shown,) = logins.list("default")
        assert (shown.name, shown.created_by) == ("hub", "ann")
        assert "hunter2" not in json.dumps([item.spec for item in store.list("registry")])
        assert b"hunter2" not in b"".join(path.read_bytes() for path in tmp_path.glob("store.db*"))
        assert "hunter2" not in str(Audit(store).list("default"))
        logins.set("default", "hub", "127.0.0.1:5000", "me", "other-word", actor="bob")
        assert logins.login("default", "hub").password == "other-word"
        assert logins.list("default")[0].created_by == "ann"
        assert logins.list("b") == []
        with pytest.raises(NotFound):
            logins.login("b", "hub")
        logins.delete("default", "hub")
        with pytest.raises(NotFound):
            logins.login("default", "hub")

    def test_a_login_that_was_moved_does_not_open(self, store: Store) -> None:
        logins = Registries(store, Secrets(store, b"k" * 32))
        logins.set("default", "hub", "r.example.com", "me", "hunter2")
        record = store.get("default", "registry", "hub")
        store.create("b", "registry", "hub", record.spec)
        with pytest.raises(Corrupt):
            logins.login("b", "hub")

    def test_what_is_refused(self, store: Store) -> None:
        logins = Registries(store, Secrets(store, b"k" * 32))
        for name, registry, user, password in (
            ("1x", "r", "u", "p"), ("a/b", "r", "u", "p"), ("n", "http://r", "u", "p"), ("n", "", "u", "p"),
            ("n", "r", "", "p"), ("n", "r", "a:b", "p"), ("n", "r", "u", ""), ("n", "r", "u", "a\nb"),
        ):  # fmt: skip
            with pytest.raises(Invalid):
                logins.set("default", name, registry, user, password)
        with pytest.raises(TooLarge):
            logins.set("default", "n", "r", "u", "x" * 70_000)
