"""Records in memory: what others write is seen, and conflicts spoil nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lepton_ai.control.mirror import Create, Delete, Mirror, Update
from lepton_ai.control.rest import Rest
from lepton_ai.errors import Conflict, StaleEpoch
from lepton_ai.spec.workload import Resources
from lepton_ai.store import Lease, Record, Store


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


class TestWhatIsNotKept:
    """Jobs that rest and releases: read when they are needed, whoever wrote them and in whatever order."""

    def job(self, store: Store, state: str, phase: str = "exited", **spec: Any) -> tuple[Record, Record]:
        made = store.create(
            "w", "job", f"job-{len(store.list('job'))}", spec, status={"state": state, "ended_ms": 1000}
        )
        copy = store.create("w", "replica", f"{made.name}-0", {}, status={"phase": phase}, owner_uid=made.uid)
        return made, copy

    def kept(self, mirror: Mirror) -> list[str]:
        return [record.name for kind in ("job", "replica") for record in mirror.list(kind)]

    @pytest.mark.parametrize("fresh", [False, True])
    def test_a_finished_job_of_which_nothing_runs_rests(self, store: Store, mirror: Mirror, fresh: bool) -> None:
        self.job(store, "succeeded")
        self.job(store, "stopped", stopped=True)
        self.job(store, "stopped", stopped=False)  # to be started again
        self.job(store, "running", "ready")
        self.job(store, "failed", "unknown")  # its node may come back
        mirror = Mirror(store) if fresh else mirror
        mirror.refresh()
        assert self.kept(mirror) == ["job-2", "job-3", "job-4", "job-2-0", "job-3-0", "job-4-0"]
        assert len(mirror.rest) == 2
        assert [record.name for record in mirror.running()] == ["job-3-0", "job-4-0"]

    @pytest.mark.parametrize("fresh", [False, True])
    def test_it_is_kept_again_with_its_replicas_when_something_is_wanted_of_it(
        self, store: Store, mirror: Mirror, fresh: bool
    ) -> None:
        made, _ = self.job(store, "stopped", stopped=True)
        mirror.refresh()
        store.update(made, spec={"stopped": False})
        mirror = Mirror(store) if fresh else mirror
        mirror.refresh()
        assert self.kept(mirror) == ["job-0", "job-0-0"]
        assert len(mirror.rest) == 0

    def test_a_replica_that_runs_after_all_wakes_its_job(self, store: Store, mirror: Mirror) -> None:
        _, copy = self.job(store, "failed")
        mirror.refresh()
        copy = store.update(copy, status={"phase": "ready"})
        mirror.refresh()
        assert self.kept(mirror) == ["job-0", "job-0-0"]
        store.update(copy, status={"phase": "exited"})
        mirror.refresh()
        assert self.kept(mirror) == []
        assert len(mirror.rest) == 1

    def test_one_that_is_removed_is_forgotten(self, store: Store, mirror: Mirror) -> None:
        made, _ = self.job(store, "failed", ttl_s=0)
        mirror.refresh()
        assert mirror.rest.over(10**13, 9) == [made.uid]
        store.delete(made)
        mirror.refresh()
        assert (len(mirror.rest), mirror.rest.over(10**13, 9)) == (0, [])

    def test_what_the_loops_write_comes_to_rest_at_once(self, store: Store, mirror: Mirror, lease: Lease) -> None:
        made, copy = self.job(store, "running", "ready")
        mirror.refresh()
        ops = [Update(copy, status={"phase": "exited"}), Update(made, status={"state": "succeeded"})]
        mirror.write(ops, lease)
        assert self.kept(mirror) == []
        mirror.refresh()
        assert (self.kept(mirror), len(mirror.rest)) == ([], 1)

    def test_releases_are_known_by_number_and_read_by_it(self, store: Store, mirror: Mirror) -> None:
        owner = store.create("w", "deployment", "movies", {})
        made = []
        for number in (1, 2, 10):
            spec = {"number": number, "template": {"command": ["run", str(number)]}}
            made.append(store.create("w", "release", f"movies#{number}", spec, owner_uid=owner.uid))
        mirror.refresh()
        assert [number for number, _ in mirror.releases(owner.uid)] == [1, 2, 10]
        found = mirror.release(owner.uid, 2)
        assert found is not None
        assert found.template.command == ("run", "2")
        assert mirror.get(made[1].uid) is None
        store.delete(made[1])
        mirror.refresh()
        assert mirror.release(owner.uid, 2) is None
        assert [number for number, _ in mirror.releases(owner.uid)] == [1, 10]


def test_times_to_live_are_told_in_order_until_they_are_dealt_with() -> None:
    rest = Rest()

    def job(uid: str, ttl_s: int | None) -> Record:
        spec = {} if ttl_s is None else {"ttl_s": ttl_s}
        return Record("w", "job", uid, uid, 1, 1, spec, {"state": "failed", "ended_ms": 1000}, None, 0, 0, None)

    for uid, ttl_s in (("a", 5), ("b", 3), ("c", None), ("d", 9)):
        rest.add(job(uid, ttl_s))
    assert rest.over(3_999, 9) == []
    assert rest.over(6_000, 9) == ["b", "a"]
    assert rest.over(6_000, 1) == ["b"]
    rest.drop("b")
    rest.add(job("a", 60))
    assert rest.over(10_000, 9) == ["d"]
    assert rest.over(61_000, 9) == ["d", "a"]
    rest.add(job("a", 60))  # nothing new
    assert rest.over(61_000, 9) == ["d", "a"]
