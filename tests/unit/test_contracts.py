"""Who may import whom: the contracts of pyproject.toml, kept; and a proof that breaking one is seen."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    code = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_the_contracts_hold() -> None:
    done = lint(ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_broken_contract_is_seen(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "lepton_ai", tmp_path / "lepton_ai", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "lepton_ai" / "spec" / "intruder.py").write_text("import sqlalchemy\nimport lepton_ai.store\n")
    (tmp_path / "lepton_ai" / "node" / "intruder.py").write_text("import lepton_ai.store\n")
    done = lint(tmp_path)
    assert done.returncode != 0
    assert "lepton_ai.spec is not allowed to import lepton_ai.store" in done.stdout
    assert "lepton_ai.node is not allowed to import lepton_ai.store" in done.stdout
