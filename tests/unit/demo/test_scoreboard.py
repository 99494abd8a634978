"""What is missed is marked and decides; demo.json holds all of it."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from lepton_ai.demo.scoreboard import Scoreboard, Stage, pad, width
from lepton_ai.demo.texts import Texts


@pytest.fixture
def board() -> Scoreboard:
    return Scoreboard(Texts("en"))


def test_claims_are_met_or_missed(board: Scoreboard) -> None:
    board.at_least("recall", 0.2415, 0.240, "see")
    board.at_most("replica", 0, 0, "see")
    board.at_most("replica_s", 3.0, 3.0, "see", unit=" s")
    board.holds("forms", True, "see")
    assert board.missed == []
    board.at_least("ndcg", 0.4449, 0.445, "see")
    board.at_most("node", 1, 0, "see")
    board.at_most("node_s", math.inf, 3.0, "see", unit=" s")
    board.holds("graph", False, "see")
    assert [claim.name for claim in board.missed] == ["ndcg", "node", "node_s", "graph"]


def test_a_figure_without_a_must_misses_nothing(board: Scoreboard) -> None:
    board.at_least("recall", 0.01, None, "see")
    board.at_most("stages", 1e9, None, "see")
    assert board.missed == []
    assert board.table().count("shown") == 2


def test_the_table_marks_each_line(board: Scoreboard) -> None:
    board.at_most("replica", 0, 0, "python bench/failover.py")
    board.at_most("node", 3, 0, "python bench/failover.py")
    heading, good, bad = board.table().splitlines()
    assert "measured" in heading
    assert good.startswith("✓")
    assert bad.startswith("✗")
    assert bad.endswith("python bench/failover.py")


def test_columns_line_up_in_chinese() -> None:
    board = Scoreboard(Texts("zh"))
    board.at_most("replica", 0, 0, "COMMAND")
    board.at_least("recall", 0.25, 0.24, "COMMAND")
    starts = {width(line.partition("COMMAND")[0]) for line in board.table().splitlines() if "COMMAND" in line}
    assert len(starts) == 1
    assert width("击杀") == 4
    assert pad("击杀", 6) == "击杀  "


def test_demo_json_holds_everything(board: Scoreboard, tmp_path: Path) -> None:
    board.facts = {"cores": 2}
    board.stages.append(Stage("cell", 1, 2.5, ["up"], {"up_s": 2.4}))
    board.stages.append(Stage("lake", 2, 1.0, figures={"never_s": math.inf, "exact_s": 1 / 3}))
    board.at_most("replica", 0, 0, "see")
    board.write(tmp_path / "demo.json")
    found = json.loads((tmp_path / "demo.json").read_text("utf-8"))
    assert (found["met"], found["cores"], found["stages_s"]) == (True, 2, 3.5)
    assert found["stages"][0]["figures"] == {"up_s": 2.4}
    assert found["stages"][1]["figures"] == {"never_s": None, "exact_s": 0.3333}
    assert found["scoreboard"][0]["met"] is True
    assert found["scoreboard"][0]["claim"] == "replica killed: failed requests"
    assert found["not_shown"].startswith("not shown: ")
    assert list(tmp_path.iterdir()) == [tmp_path / "demo.json"]


def test_a_broken_demo_is_not_met(board: Scoreboard) -> None:
    board.error = "no"
    assert board.document()["met"] is False
