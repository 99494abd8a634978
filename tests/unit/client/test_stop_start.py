"""Pods and private work through the client, and what is stopped and started by one name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lepton_ai.errors import NotFound


def test_pods_private_work_and_all_that_stops_and_starts(stand: Any, tmp_path: Path) -> None:
    server = stand.serve()
    cloud = stand.cloud(server.url)
    path = tmp_path / "desk.toml"
    path.write_text(
        'name = "desk"\npod = true\nlabels = {team = "a"}\nvisibility = "private"\n'
        '[template]\nshape = "cpu.tiny"\ncommand = ["sleep", "600"]\nports = [{number = 2222, exposed = true}]\n'
    )
    desk = cloud.deploy(path, wait=False)
    assert (desk.kind, desk.url, desk.labels, desk.visibility, desk.created_by) == (
        "pod", "", {"team": "a"}, "private", "owner",
    )  # fmt: skip
    record = stand.store.get("default", "deployment", "desk")
    assert record.spec["template"]["resources"]["cpu_milli"] == 100
    assert [row.kind for row in cloud.ps()] == ["pod"]
    assert cloud.deploy(path, wait=False).release == 1
    # Changed by name it keeps the rest.
    assert cloud.deploy("desk", labels={"team": "b"}, wait=False).visibility == "private"
    assert stand.store.get("default", "deployment", "desk").spec["template"]["ports"][0]["number"] == 2222
    stopped = cloud.stop("desk")
    assert stopped.spec["replicas"] == {"min": 0, "max": 1}
    assert cloud.start("desk").spec["replicas"] == {"min": 1, "max": 1}
    job = cloud.run("true", job_retries=2, start_at_ms=4_000_000_000_000, workers=2, image="web:1")
    assert (job.job_retries, job.start_at_ms, job.rendezvous, job.image) == (2, 4_000_000_000_000, True, "advisory")
    assert cloud.stop(job).stopped
    assert not cloud.start(job.name).stopped
    with pytest.raises(NotFound):
        cloud.stop("nothing")
