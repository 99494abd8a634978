"""The measurements of a running cell work as commands and write the common form; what they measure is not judged."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT_S = 400


@pytest.mark.parametrize(
    ("name", "goals"),
    [
        ("coldstart", {"4.launch", "4.from_zero"}),
        (
            "failover",
            {
                "6.replica", "6.node", "6.retries_off", "6.scaling", "7.control", "7.envoy", "8.releases", "8.changes",
            },
        ),
        ("hosts", {"6.hosts.replica", "6.hosts.node"}),
        ("api", {"api.lists", "api.pass", "api.memory"}),
        ("lake", {"15.folder"}),
        ("placement", {"9", "9.mean", "10", "10.growth", "10.large", "10.durable"}),
        ("forecast", {"11"}),
        ("autoscale", {"12 bursty", "12 smooth", "12 calm"}),
        ("cost", {"26"}),
        ("routing", {"13"}),
        ("rebalance", {"14 even", "14 measured"}),
        ("monitor", {"monitor.look", "monitor.file", "monitor.agent"}),
    ],
)  # fmt: skip
def test_the_command_works(name: str, goals: set[str], tmp_path: Path) -> None:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("LEPTON_AI_")}
    done = subprocess.run(
        [sys.executable, f"bench/{name}.py", "--quick", "--out", str(tmp_path)], cwd=ROOT, capture_output=True,
        text=True, timeout=TIMEOUT_S, check=False, env={**kept, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"},
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
    if done.stderr.startswith("not measured:"):
        pytest.skip(done.stderr.strip())
    assert done.returncode in (0, 1), done.stderr
    found = json.loads((tmp_path / f"{name}.json").read_text("utf-8"))
    assert set(found) == {"machine", "goals", "rows"}
    assert set(found["goals"]) == goals
    for line in found["goals"].values():
        assert {"value", "unit", "must", "aim", "met", "protocol"} <= set(line)
    assert done.returncode == (0 if all(line["met"] for line in found["goals"].values()) else 1)
    # Without --data: what anyone can fetch, or what is made from a seed.
    data = {str(row["data"]) for row in found["rows"] if "data" in row}
    assert all(name == "MovieLens 100K" or name.startswith("synthetic") for name in data), data
