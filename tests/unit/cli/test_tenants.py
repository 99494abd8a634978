"""`lepton workspace` and `lepton registry` against the API itself, through the real client."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from typing import Any

import pytest

Lepton = Callable[..., int]


def test_a_workspace(lepton: Lepton, stand: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert lepton("workspace", "add", "team") == 1
    refused = capsys.readouterr().err
    assert "isolation none" in refused
    assert "lepton workspace add team --force" in refused
    assert lepton("workspace", "add", "team", "--force") == 0
    said = capsys.readouterr()
    token = said.out.strip()
    assert stand.cell.access.authenticate(token).workspace == "team"
    assert "warning: isolation is none" in said.err
    assert "lep login" in said.err
    assert lepton("workspace", "ls") == 0
    said = capsys.readouterr()
    assert [line.split()[0] for line in said.out.splitlines()] == ["NAME", "default", "other", "team"]
    assert "warning" in said.err, "it stays for as long as it is so"
    assert lepton("workspace", "ls", "--json") == 0
    assert [item["name"] for item in json.loads(capsys.readouterr().out)] == ["default", "other", "team"]
    assert lepton("workspace", "rm", "team", "--dry-run") == 0
    assert lepton("workspace", "rm", "team") == 2, "nobody was asked"
    stand.store.create("team", "job", "late", {})
    assert lepton("workspace", "rm", "team", "--yes") == 1
    assert "late" in capsys.readouterr().err
    stand.store.delete(stand.store.get("team", "job", "late"))
    assert lepton("workspace", "rm", "team", "--yes", "--purge") == 0
    assert "removed team" in capsys.readouterr().out
    assert [item.name for item in stand.cell.workspaces.list()] == ["default", "other"]
    assert lepton("workspace", "rm", "team", "--yes") == 1
    assert lepton("workspace", "add", "system", "--force") == 1


def test_a_registry_login(
    lepton: Lepton, stand: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("planted-word\n"))
    assert lepton("registry", "set", "hub", "r.example.com:5000", "--username", "me") == 0
    assert stand.cell.registries.login("default", "hub").password == "planted-word"
    assert lepton("registry", "ls") == 0
    said = capsys.readouterr()
    assert "r.example.com:5000" in said.out
    assert "planted" not in said.out + said.err
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    assert lepton("registry", "set", "hub", "r.example.com:5000", "--username", "me") == 2
    assert lepton("registry", "rm", "hub", "--yes") == 0
    assert lepton("registry", "rm", "hub", "--yes") == 1
    assert stand.cell.registries.list("default") == []
