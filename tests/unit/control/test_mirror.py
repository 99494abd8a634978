"""Records in memory: what others write is seen, and conflicts spoil nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from lepton_ai.control.mirror import Create, Delete, Mirror, Update
from lepton_ai.errors import Conflict, StaleEpoch
from lepton_ai.spec.workload import Resources
from lepton_ai.store import Lease, Store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(f"sqlite:///{tmp_path}/store.db") as opened:
        yield opened


@pytest.fixture
def lease(store: Store) -> Lease:
    lease = store.acquire("control", "me", 60.0)
    assert lease is not None
    return lease


@pytest.fixture
def mirror(store: Store) -> Mirror:
    made = Mirror(store)
    made.refresh()
    return made


def test_what_others_write_is_seen(store: Store, mirror: Mirror) -> None:
    owner = store.create("w", "deployment", "movies", {})
    copy = store.create("w", "replica", "movies-1", {}, owner_uid=owner.uid)
    store.create("w", "secret", "key", {})
    mirror.refresh()
    assert [record.name for record in mirror.list("deployment")] == ["movies"]
    assert [record.name for record in mirror.owned("replica", owner.uid)] == ["movies-1"]
    store.update(owner, status={"a": 1})
    store.delete(copy)
    mirror.refresh()
    assert mirror.list("deployment")[0].status == {"a": 1}
    assert mirror.owned("replica", owner.uid) == []
    assert mirror.get(copy.uid) is None
    assert mirror.revision == store.revision()


def test_a_mirror_that_is_too_old_starts_again(store: Store, mirror: Mirror, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = store.create("w", "deployment", "gone", {})
    mirror.refresh()
    monkeypatch.setattr("lepton_ai.store.store.KEEP_CHANGES", 3)
    store.delete(gone)
    for number in range(8):
        store.create("w", "deployment", f"d-{number}", {})
    mirror.refresh()
    assert [record.name for record in mirror.list("deployment")] == [f"d-{number}" for number in range(8)]


def test_independent_writes_survive_a_conflict_of_one(store: Store, mirror: Mirror, lease: Lease) -> None:
    stale, good, gone = (store.create("w", "job", name, {}) for name in ("stale", "good", "gone"))
    mirror.refresh()
    store.update(stale, status={"by": "another"})
    store.delete(gone)
    ops = [Update(stale, status={"by": "me"}), Update(good, status={"by": "me"}), Delete(gone), Update(gone, status={})]
    mirror.write_each(ops, lease)
    assert store.get("w", "job", "good").status == {"by": "me"}
    assert store.get("w", "job", "stale").status == {"by": "another"}
    held = mirror.get(stale.uid)
    assert held is not None
    assert held.status == {"by": "another"}
    assert mirror.get(gone.uid) is None


def test_together_is_all_or_nothing(store: Store, mirror: Mirror, lease: Lease) -> None:
    stale = store.create("w", "job", "stale", {})
    mirror.refresh()
    store.update(stale, status={"by": "another"})
    with pytest.raises(Conflict):
        mirror.write([Create("w", "replica", "one", {}), Update(stale, status={})], lease)
    assert store.list("replica") == []


def test_a_stale_leader_writes_nothing(store: Store, mirror: Mirror, lease: Lease) -> None:
    store.release(lease)
    assert store.acquire("control", "another", 60.0) is not None
    with pytest.raises(StaleEpoch):
        mirror.write_each([Create("w", "job", "one", {})], lease)
    assert store.list("job") == []


def test_a_spec_is_read_once_until_it_changes(store: Store, mirror: Mirror) -> None:
    made = store.create("w", "node", "n", {"cpu_milli": 5})
    mirror.refresh()
    first = mirror.parse(mirror.list("node")[0], Resources)
    store.update(made, status={"x": 1})
    mirror.refresh()
    assert mirror.parse(mirror.list("node")[0], Resources) is first
    store.update(mirror.list("node")[0], spec={"cpu_milli": 6})
    mirror.refresh()
    assert mirror.parse(mirror.list("node")[0], Resources).cpu_milli == 6
