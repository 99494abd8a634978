"""Every command and every program that the README shows is run, in its order, as someone would who reads it.

Blocks marked `sh` are typed into one shell each, `python` blocks are programs; `text` is output or what cannot be run
without a network. `make demo` has a test of its own (test_demo).
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
KINDS = {"sh", "python", "text", "toml"}


def blocks(page: Path) -> list[tuple[str, str]]:
    return re.findall(r"^```([a-z]*)\n(.*?)^```", page.read_text("utf-8"), flags=re.S | re.M)


def test_every_block_has_a_kind() -> None:
    assert {kind for kind, _ in blocks(ROOT / "README.md")} <= KINDS


def test_the_readme_runs(tmp_path: Path) -> None:
    found = [(kind, text) for kind, text in blocks(ROOT / "README.md") if kind in ("sh", "python")]
    assert len(found) >= 3
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    # As after `pip install`: the command is on the path, whether or not this environment has it installed.
    (tmp_path / "bin").mkdir()
    command = tmp_path / "bin" / "lepton"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m lepton_ai.cli "$@"\n')
    command.chmod(0o755)
    env = {key: value for key, value in os.environ.items() if not key.startswith("LEPTON_AI_")}
    env["LEPTON_AI_HOME"] = str(tmp_path / "home")
    env["PATH"] = os.pathsep.join([str(tmp_path / "bin"), str(Path(sys.executable).parent), env["PATH"]])
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), env.get("PYTHONPATH", "")]))
    try:
        for number, (kind, text) in enumerate(found, 1):
            words = (
                ["bash", "-euo", "pipefail", "-c", text]
                if kind == "sh"
                else [sys.executable, "-W", "error", "-c", text]
            )
            done = subprocess.run(
                words, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300, check=False,
                stdin=subprocess.DEVNULL,
            )  # fmt: skip
            assert done.returncode == 0, f"block {number}:\n{text}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    finally:
        subprocess.run(
            [sys.executable, "-m", "lepton_ai.cli", "down", "--all", "--purge", "--yes"],
            env=env,
            check=False,
            timeout=180,
        )


@pytest.mark.parametrize("page", ["README.md", "README.zh-CN.md"])
def test_both_pages_say_who_is_not_behind_this(page: str) -> None:
    assert "NVIDIA" in (ROOT / page).read_text("utf-8")
