"""The demo as a user runs it. What it found is read from demo.json; how long anything took is not asked here."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from lepton_ai.demo.cell import look
from lepton_ai.demo.dataset import WHEEL, wheel
from lepton_ai.demo.run import STAGES

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT_S = 400
TIMES = {"replica_s", "node_s", "usable", "envoy_s", "stages"}
"""claims about how fast: true of a quiet machine, measured by bench/"""


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """An empty home that has the wheel already, so that only the first test of all downloads it."""
    found = wheel(ROOT / ".cache")
    (tmp_path / "home" / "cache").mkdir(parents=True)
    os.link(found, tmp_path / "home" / "cache" / WHEEL)
    yield tmp_path / "home"
    left = look((tmp_path / "home" / "cells",), ())
    assert not left.processes, "a test left processes"


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "lepton_ai.cli", *words]


def environment(home: Path) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("LEPTON_AI_")}
    return {**kept, "LEPTON_AI_HOME": str(home), "PYTHONPATH": str(ROOT)}


def lepton(home: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*words), cwd=home.parent, env=environment(home), capture_output=True, text=True, timeout=TIMEOUT_S,
        check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip


def nothing_is_left(home: Path, document: dict[str, object] | None = None) -> None:
    ports = []
    for stage in (document or {}).get("stages", []):  # type: ignore[attr-defined]
        figures = stage["figures"]
        ports += [int(figures[key].rpartition(":")[2]) for key in ("api_url", "gateway_url") if key in figures]
    left = look((home / "cells",), ports)
    assert (left.processes, left.ports) == ((), ())
    assert list((home / "cells").glob("*")) == []


def test_the_demo(home: Path) -> None:
    done = lepton(home, "demo", "--out", "demo.json")
    assert done.returncode in (0, 1), done.stderr
    found = json.loads((home.parent / "demo.json").read_text("utf-8"))
    assert found["error"] is None
    assert [stage["name"] for stage in found["stages"]] == [
        "cell", "lake", "train", "article", "serve", "kill", "control", "refuse",
    ]  # fmt: skip
    missed = [claim for claim in found["scoreboard"] if not claim["met"] and claim["name"] not in TIMES]
    assert missed == [], done.stdout
    late = [claim["name"] for claim in found["scoreboard"] if not claim["met"]]
    assert done.returncode == (1 if late else 0)
    kill = found["stages"][5]["figures"]
    assert kill["replica"]["sent"] > 0
    assert set(kill["node"]["after"]) - set(kill["node"]["before"]), "nobody took the place of the dead"
    for text in ("one machine", "three nodes that are shares of it", "GroupLens", "not shown: ", "weights.bin"):
        assert text in done.stdout
    nothing_is_left(home, found)


SAMPLE = [(0, signal.SIGINT), (5, signal.SIGTERM)]
ALL = [(stage, number) for stage in range(len(STAGES)) for number in (signal.SIGINT, signal.SIGTERM)]
CASES = ALL if os.environ.get("LEPTON_AI_SOAK") == "1" else SAMPLE
"""(stage, signal)"""


@pytest.mark.soak
@pytest.mark.parametrize(("stage", "number"), CASES)
def test_an_interrupted_demo_leaves_nothing(home: Path, stage: int, number: int) -> None:
    process = subprocess.Popen(
        command("demo", "--out", "demo.json"), cwd=home.parent, env=environment(home), stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    lines = []
    try:
        for line in process.stdout:
            lines.append(line)
            if line.startswith(f"{stage + 1} "):
                process.send_signal(number)
        code = process.wait(TIMEOUT_S)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    assert code == 128 + number, "".join(lines)
    found = json.loads((home.parent / "demo.json").read_text("utf-8"))
    assert found["error"] == "interrupted"
    assert len(found["stages"]) == stage + 1
    assert found["left"] == {"processes": 0, "ports": 0, "folders": 0}
    nothing_is_left(home, found)


def test_ones_own_data_in_chinese_and_kept(home: Path) -> None:
    rows = [(user, item, 1 + (user * item) % 5) for user in range(60) for item in range(40) if (user * 7 + item) % 3]
    text = "用户,物品,评分\n" + "\n".join(f"{user},{item},{rating}" for user, item, rating in rows)
    (home.parent / "ratings.csv").write_bytes(text.encode("gb18030"))
    done = lepton(home, "demo", "--data", "ratings.csv", "--keep", "--lang", "zh", "--out", "demo.json")
    try:
        found = json.loads((home.parent / "demo.json").read_text("utf-8"))
        assert found["error"] is None, done.stderr
        shown = {claim["name"]: claim["met"] for claim in found["scoreboard"]}
        assert (shown["recall"], shown["ndcg"]) == (None, None), "the musts are MovieLens'"
        assert [name for name, met in shown.items() if met is False and name not in TIMES] == []
        assert "一台机器" in done.stdout
        assert "GroupLens" not in done.stdout
        url = found["stages"][4]["figures"]["url"]
        assert f"curl -s {url}" in done.stdout
        answer = httpx.post(url, json={"user": 7}, trust_env=False)
        assert (answer.status_code, answer.json()["known"]) == (200, True)
        again = lepton(home, "demo", "--keep")
        assert again.returncode == 1
        assert "hint: remove it first: lepton down demo --purge" in again.stderr
    finally:
        assert lepton(home, "down", "demo", "--purge", "--yes").returncode == 0
    nothing_is_left(home, found)


def test_a_bad_file_starts_nothing(home: Path) -> None:
    (home.parent / "bad.csv").write_text("user,item,rating\n1,2,good\n")
    done = lepton(home, "demo", "--data", "bad.csv")
    assert done.returncode == 1
    assert "line 2, column rating: 'good' is not a number" in done.stderr
    assert "hint: " in done.stderr
    assert not (home / "cells").exists()
