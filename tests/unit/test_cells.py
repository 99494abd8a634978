"""Cells on a machine by name: never by path, and where the settings say."""

from __future__ import annotations

from pathlib import Path

import pytest

from lepton_ai import cloud
from lepton_ai.cli.session import attach
from lepton_ai.control.folder import State
from lepton_ai.errors import Invalid, LeptonError, NotFound
from lepton_ai.settings import Settings


@pytest.mark.parametrize("name", ["{other}", ".", "..", "../..", "../../precious", "", "a/b", "UPPER", "/"])
def test_nothing_but_a_cell_is_ended_or_deleted(tmp_path: Path, name: str) -> None:
    home = tmp_path / "home"
    (home / "cells" / "local" / "system").mkdir(parents=True)
    precious = tmp_path / "precious" / "file"
    precious.parent.mkdir()
    precious.write_text("mine")
    for act in (cloud.down, cloud.attach, cloud.state):
        with pytest.raises(Invalid) as caught:
            act(name.replace("{other}", str(precious.parent)), settings=Settings(home=home))
        assert caught.value.hint
    with pytest.raises(Invalid):
        cloud.down(name.replace("{other}", str(precious.parent)), settings=Settings(home=home), purge=True)
    assert precious.read_text() == "mine"
    assert (home / "cells" / "local" / "system").is_dir()


def test_a_folder_that_is_no_cell_is_left_alone(tmp_path: Path) -> None:
    other = tmp_path / "cells" / "notes"
    other.mkdir(parents=True)
    (other / "file").write_text("mine")
    with pytest.raises(NotFound):
        cloud.down("notes", settings=Settings(home=tmp_path), purge=True)
    assert [path.name for path in other.iterdir()] == ["file"]


def test_a_home_from_a_file_counts_for_every_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEPTON_AI_HOME", str(tmp_path / "default"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "default" / "cells" / "local" / "system").mkdir(parents=True)
    (tmp_path / "lepton.toml").write_text(f'[settings]\nhome = "{tmp_path / "chosen"}"\n')
    monkeypatch.delenv("LEPTON_AI_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "default"))
    assert cloud.cells() == []
    with pytest.raises(NotFound, match="chosen"):
        cloud.down("local", purge=True)
    assert (tmp_path / "default" / "cells" / "local" / "system").is_dir()


def test_the_workspace_that_is_asked_for_is_the_one_that_is_talked_to(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, workspace="team")
    folder = tmp_path / "cells" / "local"
    folder.mkdir(parents=True)
    ports = {"api_host": "127.0.0.1", "api_port": 1, "gateway_host": "127.0.0.1", "gateway_port": 2}
    State(
        name="local", uid="x", dir=folder, nodes=("n",), created_ms=0, settings=Settings(home=tmp_path), **ports
    ).write()
    (folder / "token").write_text("lta_x")
    try:
        with attach(settings) as connection:
            assert "team" in repr(connection)
    except LeptonError as error:
        pytest.fail(str(error))
