from __future__ import annotations

from pathlib import Path

from lepton_ai.api import parsed
from lepton_ai.spec.workload import DeploymentSpec, Template
from lepton_ai.store import Store


def test_a_spec_is_read_again_when_it_changed(tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    known = parsed.Parsed()
    spec = DeploymentSpec(template=Template(command=("a",)))
    with Store.open(f"sqlite:///{tmp_path}/store.db") as store:
        record = store.create("default", "deployment", "web", spec.model_dump(mode="json"))
        assert known.deployment(record) == spec
        again = store.update(record, status={"state": "ready"})
        assert known.deployment(again) is known.deployment(record), "a new status is not a new spec"
        changed = DeploymentSpec(template=Template(command=("b",)))
        record = store.update(again, spec=changed.model_dump(mode="json"))
        assert known.deployment(record) == changed
        monkeypatch.setattr(parsed, "KEPT", 1)
        other = store.create("default", "deployment", "other", spec.model_dump(mode="json"))
        assert known.deployment(other) == spec
        assert known.deployment(record) == changed
