"""Every answer of every route, parsed by the public client's own models: nothing dropped, nothing unknown."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from lep import Lep

SCRIPT = Path(__file__).with_name("models.py")


@pytest.mark.parametrize("part", ["secrets", "jobs", "deployments", "pods", "storage", "others"])
def test_the_sdk_reads_every_answer(lep: Lep, part: str, tmp_path: Path) -> None:
    folder = tmp_path / "volume"
    folder.mkdir()
    done = lep.run([str(lep.bin / "python"), str(SCRIPT), str(folder), part], lep.credentials, timeout_s=300)
    assert done.code == 0, f"{done.out}\n{done.err}"
    assert "Skipped" not in done.out + done.err, done.err
    checked = re.search(r"checked (\d+)$", done.out.strip())
    assert checked is not None
    assert int(checked[1]) > 10
