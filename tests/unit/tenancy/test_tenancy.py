"""Tokens open what their role may do and nothing else; secrets open only where they were sealed."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import get_args

import pytest

from lepton_ai.errors import Conflict, Corrupt, Forbidden, Invalid, NotFound, TooLarge, Unauthorized, Unavailable
from lepton_ai.store import Store
from lepton_ai.telemetry import Audit
from lepton_ai.tenancy import Access, Principal, Secrets, access, load_key

KEY = bytes(range(32))


class Now:
    ms = 1_700_000_000_000

    def __call__(self) -> int:
        return self.ms


@pytest.fixture
def now() -> Now:
    return Now()


@pytest.fixture
def store(tmp_path: Path, now: Now) -> Iterator[Store]:
    with Store.open(f"sqlite:///{tmp_path}/store.db", now_ms=now) as opened:
        yield opened


def everything(tmp_path: Path) -> bytes:
    return b"".join(path.read_bytes() for path in tmp_path.glob("store.db*"))


class TestTokens:
    def test_issue_and_authenticate(self, store: Store, tmp_path: Path) -> None:
        tokens = Access(store)
        text, record = tokens.issue("w", "developer", "laptop")
        assert re.fullmatch(r"lta_[A-Za-z0-9_-]{43}", text)
        assert tokens.authenticate(text) == Principal("w", "developer", "laptop")
        assert text not in json.dumps(record.spec)
        assert text.encode() not in everything(tmp_path)
        assert tokens.issue("w", "developer", "other")[0] != text

    def test_what_is_not_a_token(self, store: Store) -> None:
        tokens = Access(store)
        text, record = tokens.issue("w", "owner", "laptop")
        changed = text[:-1] + ("A" if text[-1] != "A" else "B")
        for wrong in (
            "",
            "lta_",
            changed,
            text + "x",
            text + "\n",
            text.upper(),
            record.uid,
            record.spec["hash"],
            None,
        ):
            with pytest.raises(Unauthorized):
                tokens.authenticate(wrong)  # type: ignore[arg-type]

    def test_a_record_with_another_hash_opens_nothing(self, store: Store) -> None:
        tokens = Access(store)
        text, record = tokens.issue("w", "owner", "laptop")
        store.update(record, spec={**record.spec, "hash": "0" * 64})
        with pytest.raises(Unauthorized):
            tokens.authenticate(text)

    def test_expiry_and_revocation(self, store: Store, now: Now) -> None:
        tokens = Access(store)
        text, _ = tokens.issue("w", "viewer", "short", now.ms + 1000)
        now.ms += 999
        tokens.authenticate(text)
        now.ms += 1
        with pytest.raises(Unauthorized):
            tokens.authenticate(text)
        text, _ = tokens.issue("w", "viewer", "gone")
        tokens.revoke("w", "gone")
        with pytest.raises(Unauthorized):
            tokens.authenticate(text)
        with pytest.raises(NotFound):
            tokens.revoke("w", "gone")
        assert [entry.action for entry in Audit(store).list("w")] == ["revoke", "issue", "issue"]

    def test_the_list_is_masked_and_per_workspace(self, store: Store) -> None:
        tokens = Access(store)
        text, _ = tokens.issue("w", "viewer", "a")
        tokens.issue("v", "viewer", "b")
        shown = tokens.list("w")
        assert [item.name for item in shown] == ["a"]
        assert shown[0].masked == f"lta_…{text[-4:]}"

    @pytest.mark.parametrize(
        ("workspace", "role", "name", "expires_ms"),
        [("w", "root", "n", None), ("W", "owner", "n", None), ("w", "owner", "", None), ("w", "owner", "n", 1)],
    )
    def test_what_is_not_issued(
        self, store: Store, workspace: str, role: access.Role, name: str, expires_ms: int | None
    ) -> None:
        with pytest.raises(Invalid):
            Access(store).issue(workspace, role, name, expires_ms)
        assert store.revision() == 0

    def test_a_name_is_taken_once(self, store: Store) -> None:
        tokens = Access(store)
        tokens.issue("w", "viewer", "a")
        with pytest.raises(Conflict):
            tokens.issue("w", "owner", "a")


ALLOWED = {
    "caller": {"call"},
    "viewer": {"call", "read"},
    "developer": {"call", "read", "write", "secrets"},
    "admin": {"call", "read", "write", "secrets", "tokens", "cell"},
    "owner": {"call", "read", "write", "secrets", "tokens", "cell", "workspace", "workspaces"},
}


@pytest.mark.parametrize("role", get_args(access.Role))
@pytest.mark.parametrize("action", get_args(access.Action))
def test_the_table_of_roles(store: Store, role: access.Role, action: access.Action) -> None:
    principal = Principal("w", role, "t")
    if action in ALLOWED[role]:
        Access(store).require(principal, action)
    else:
        with pytest.raises(Forbidden, match=role) as caught:
            Access(store).require(principal, action)
        assert "owner" in str(caught.value.hint)


def test_an_unknown_action_is_refused_to_everyone(store: Store) -> None:
    with pytest.raises(Invalid):
        Access(store).require(Principal("w", "owner", "t"), "everything")  # type: ignore[arg-type]


class TestSecrets:
    def test_set_list_value_delete(self, store: Store, tmp_path: Path) -> None:
        kept = Secrets(store, KEY)
        kept.set("w", "api-key", "hush-hush é\0")
        kept.set("w", "other", "")
        assert kept.value("w", "api-key") == "hush-hush é\0"
        assert kept.value("w", "other") == ""
        kept.set("w", "api-key", "new")
        assert kept.value("w", "api-key") == "new"
        assert kept.list("w") == ["api-key", "other"]
        assert kept.list("v") == []
        kept.delete("w", "api-key")
        with pytest.raises(NotFound):
            kept.value("w", "api-key")
        assert b"hush-hush" not in everything(tmp_path)
        assert [entry.action for entry in Audit(store).list("w")] == ["delete", "set", "set", "set"]
        with pytest.raises(TooLarge):
            kept.set("w", "big", "x" * 65_537)

    def test_another_key_opens_nothing(self, store: Store) -> None:
        Secrets(store, KEY).set("w", "n", "value")
        with pytest.raises(Corrupt) as caught:
            Secrets(store, bytes(32)).value("w", "n")
        assert "secret.key" in str(caught.value.hint)
        with pytest.raises(Invalid):
            Secrets(store, b"short")

    def test_a_moved_value_does_not_open(self, store: Store) -> None:
        kept = Secrets(store, KEY)
        kept.set("w", "a", "value")
        kept.set("v", "a", "other")
        kept.set("w", "b", "other")
        for workspace, name in (("v", "a"), ("w", "b")):
            store.update(store.get(workspace, "secret", name), spec=store.get("w", "secret", "a").spec)
            with pytest.raises(Corrupt):
                kept.value(workspace, name)

    def test_every_bit_counts(self, store: Store) -> None:
        kept = Secrets(store, KEY)
        sealed = kept.seal("text", "w/endpoint/movies")
        assert kept.seal("text", "w/endpoint/movies") != sealed
        assert kept.unseal(sealed, "w/endpoint/movies") == "text"
        for place in range(len(sealed) - 1):
            changed = sealed[:place] + ("A" if sealed[place] != "A" else "B") + sealed[place + 1 :]
            with pytest.raises(Corrupt):
                kept.unseal(changed, "w/endpoint/movies")
        for wrong in ("", "lts1.", sealed[:-4], "🎬"):
            with pytest.raises(Corrupt):
                kept.unseal(wrong, "w/endpoint/movies")
        for context in ("w", "/x", "w/"):
            with pytest.raises(Invalid):
                kept.seal("text", context)


class TestKey:
    def test_made_once_and_private(self, tmp_path: Path) -> None:
        with ThreadPoolExecutor(8) as pool:
            keys = {item.result() for item in [pool.submit(load_key, tmp_path / "secret.key") for _ in range(16)]}
        assert len(keys) == 1
        assert len(keys.pop()) == 32
        assert (tmp_path / "secret.key").stat().st_mode & 0o777 == 0o600
        assert [path.name for path in tmp_path.iterdir()] == ["secret.key"]

    def test_refused_when_open_to_others_or_cut(self, tmp_path: Path) -> None:
        path = tmp_path / "secret.key"
        load_key(path)
        path.chmod(0o640)
        with pytest.raises(Unavailable, match="640") as caught:
            load_key(path)
        assert "chmod 600" in str(caught.value.hint)
        path.chmod(0o600)
        path.write_bytes(b"x")
        with pytest.raises(Corrupt):
            load_key(path)
        with pytest.raises(Unavailable):
            load_key(tmp_path / "none" / "secret.key")
