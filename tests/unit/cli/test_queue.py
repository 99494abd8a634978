"""`lepton run --priority`, `node taint`, `node label`, `workspace set` against the API itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

Lepton = Callable[..., int]


def test_how_a_job_waits_and_where_it_may_stand(lepton: Lepton, stand: Any, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--priority", "high", "--can-preempt", "--preemptible", "--tolerate", "gpu=yes", "--checkpoint"]
    assert lepton("run", "true", "--detach", *flags) == 0
    (record,) = stand.store.list("job")
    assert (record.spec["priority"], record.spec["can_preempt"], record.spec["preemptible"]) == (7000, True, True)
    assert (record.spec["checkpoint"], record.spec["template"]["tolerations"]) == (True, ["gpu=yes"])
    assert lepton("run", "true", "--priority", "soon") == 2
    assert "use 0 to 9999, low, mid or high" in capsys.readouterr().err
    assert lepton("run", "true", "--detach", "--priority", "mid-9000") == 1
    assert "use one of: low-1000" in capsys.readouterr().err
    assert lepton("run", "true", "--detach", "--on", "zone=z") == 1  # no node carries it
    assert lepton("run", "true", "--detach", "--reservation", "none") == 1
    assert "there is no reservation 'none'" in capsys.readouterr().err


def test_marks_of_a_node(lepton: Lepton, stand: Any, capsys: pytest.CaptureFixture[str]) -> None:
    stand.node("node-1", state="ready")
    assert lepton("node", "taint", "node-1", "gpu=yes", "--dry-run") == 0
    assert "taints" not in stand.store.get("system", "node", "node-1").spec
    assert lepton("node", "taint", "node-1", "gpu=yes", "a=b") == 0
    assert lepton("node", "label", "node-1", "zone=a", "disk=ssd") == 0
    assert lepton("node", "label", "node-1", "disk-") == 0
    assert lepton("node", "untaint", "node-1", "a=b") == 0
    assert capsys.readouterr().out.splitlines()[-1] == "node-1 zone=a, taint gpu=yes"
    assert lepton("node", "ls") == 0
    assert "zone=a, taint gpu=yes" in capsys.readouterr().out
    for words in (("node", "taint", "node-1", "gpu"), ("node", "label", "node-1", "zone")):
        assert lepton(*words) == 2
        assert "hint:" in capsys.readouterr().err


def test_what_a_workspace_is_granted(lepton: Lepton, stand: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert lepton("workspace", "set", "default") == 2
    assert lepton("workspace", "set", "default", "--weight", "3", "--dry-run") == 0
    assert lepton("workspace", "set", "default", "--weight", "3", "--priority-most", "5000") == 0
    assert capsys.readouterr().out.splitlines()[-1] == "default weight 3, priorities up to 5000"
    assert lepton("run", "true", "--detach", "--priority", "6000") == 1
    assert "hint: ask for 5000 or less" in capsys.readouterr().err
    assert lepton("workspace", "ls") == 0
    assert "5000" in capsys.readouterr().out
