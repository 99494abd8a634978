"""Common mistakes, typed against a real cell: each is answered with what is wrong and what to do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_mistakes_are_answered_in_words(tmp_path: Path) -> None:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("LEPTON_AI_")}
    done = subprocess.run(
        [sys.executable, "bench/firstminutes.py", "--quick", "--out", str(tmp_path)], cwd=ROOT, capture_output=True,
        text=True, timeout=400, check=False, env={**kept, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"},
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode in (0, 1), done.stderr
    found = json.loads((tmp_path / "firstminutes.json").read_text("utf-8"))
    answers = [row for row in found["rows"] if "typed" in row]
    assert len(answers) >= 20
    bad = {row["typed"]: (row["faults"], row["answer"]) for row in answers if row["faults"]}
    assert not bad, bad
    assert found["goals"]["24.mistakes"]["met"]
    assert found["goals"]["24.left"]["met"], "a mistake left a process behind"
