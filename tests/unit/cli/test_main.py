"""Exit codes, and that every failure is words: no traceback, always a hint."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest

from lepton_ai.cli.__main__ import main
from lepton_ai.errors import NotFound, Unavailable
from lepton_ai.settings import Settings


def raising(problem: BaseException) -> Callable[[Any], Any]:
    def connect(_: object) -> object:
        raise problem

    return connect


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.delenv("LEPTON_AI_DEBUG", raising=False)
    monkeypatch.setenv("LEPTON_AI_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)


def test_a_known_error_is_two_lines_and_exit_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ps"], connect=raising(Unavailable("cell local is not running", hint="lepton up"))) == 1
    got = capsys.readouterr()
    assert got.out == ""
    assert got.err == "error: cell local is not running\nhint: lepton up\n"


def test_usage_is_exit_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["deplyo"]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "error: unknown command 'deplyo'",
        "hint: did you mean: lepton deploy",
    ]


def test_ctrl_c_is_130(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ps"], connect=raising(KeyboardInterrupt())) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_a_bug_is_said_to_be_one_without_a_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ps"], connect=raising(ZeroDivisionError("division by zero"))) == 1
    got = capsys.readouterr().err
    assert got.startswith("error: internal: ZeroDivisionError: division by zero\nhint: ")
    assert "Traceback" not in got


def test_the_traceback_is_there_for_who_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEPTON_AI_DEBUG", "1")
    with pytest.raises(NotFound):
        main(["ps"], connect=raising(NotFound("no")))


def test_an_operating_system_error_names_the_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ps"], connect=raising(PermissionError(13, "Permission denied", "/x/cell.json"))) == 1
    assert capsys.readouterr().err.splitlines()[0] == "error: /x/cell.json: Permission denied"


def test_a_wrong_setting_is_answered_before_anything_starts(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LEPTON_AI_GATEWAY_HOST", "0.0.0.0")
    assert main(["ps"]) == 1
    got = capsys.readouterr().err.splitlines()
    assert "without TLS" in got[0]
    assert got[1].startswith("hint: set tls_cert")


class FakeCell(ModuleType):
    """Stands for lepton_ai.cloud: records what it is asked."""

    def __init__(self, names: list[str]) -> None:
        super().__init__("lepton_ai.cloud")
        self.names, self.asked = names, []  # type: ignore[var-annotated]

    def cells(self, *, settings: Settings) -> list[str]:
        return self.names

    def state(self, name: str, *, settings: Settings) -> None:
        return None

    def down(self, name: str, *, settings: Settings, purge: bool, say: Callable[[str], None]) -> None:
        self.asked.append((name, purge))


@pytest.fixture
def cell(monkeypatch: pytest.MonkeyPatch) -> FakeCell:
    import lepton_ai

    fake = FakeCell(["a", "b"])
    monkeypatch.setitem(sys.modules, "lepton_ai.cloud", fake)
    monkeypatch.setattr(lepton_ai, "cloud", fake, raising=False)
    return fake


def test_down_keeps_the_data_and_purge_asks(cell: FakeCell, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["down"]) == 0
    assert cell.asked == [("local", False)]
    assert main(["down", "a", "--purge"]) == 2  # nobody is there to say yes
    assert "hint: add --yes" in capsys.readouterr().err
    assert main(["down", "--all", "--purge", "--yes"]) == 0
    assert cell.asked[1:] == [("a", True), ("b", True)]


def test_a_dry_run_changes_nothing(cell: FakeCell, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["down", "--all", "--purge", "--dry-run"]) == 0
    assert main(["up", "--dry-run", "--nodes", "2"]) == 0
    assert cell.asked == []
    out = capsys.readouterr().out
    assert "would stop cell a and delete its data" in out
    assert "2 nodes" in out


def test_config_says_where_each_value_came_from(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LEPTON_AI_GATEWAY_PORT", "8600")
    assert main(["config", "--cell", "other"]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert "LEPTON_AI_GATEWAY_PORT" in lines["gateway_port"]
    assert "flag" in lines["cell"]
    assert "default" in lines["tick_s"]
