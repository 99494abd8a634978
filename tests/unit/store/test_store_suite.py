"""What a store promises, on whichever engine the fixture `url` names."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import QueuePool, text

from lepton_ai.errors import Conflict, Invalid, LeptonError, NotFound, StaleEpoch, TooLarge, Unavailable
from lepton_ai.store import Create, Delete, Shelf, Store, Update, store
from lepton_ai.store.tables import HEAD, VERSION_TABLE, metadata


class Clock:
    def __init__(self) -> None:
        self.ms = 1_700_000_000_000

    def __call__(self) -> int:
        return self.ms


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def cell(url: str, clock: Clock) -> Iterator[Store]:
    with Store.open(url, now_ms=clock) as opened:
        yield opened


class TestRecords:
    def test_what_is_created_is_found(self, cell: Store, clock: Clock) -> None:
        made = cell.create("w", "deployment", "movies", {"a": [1, "é\0", None]}, status={"s": 1}, owner_uid="o")
        assert (made.generation, made.revision, made.created_ms, made.deleting) == (1, 1, clock.ms, False)
        assert cell.get("w", "deployment", "movies") == made == cell.get_uid(made.uid)
        assert cell.list("deployment", workspace="w", owner_uid="o") == [made]
        assert cell.find("v", "deployment", "movies") is None
        with pytest.raises(NotFound):
            cell.get("w", "job", "movies")
        with pytest.raises(NotFound):
            cell.get_uid("nothing")

    def test_a_name_is_taken_once(self, cell: Store) -> None:
        made = cell.create("w", "k", "n", {})
        with pytest.raises(Conflict):
            cell.create("w", "k", "n", {"other": 1})
        with pytest.raises(Conflict):
            cell.create("w", "k", "other", {}, uid=made.uid)
        assert cell.list("k") == [made]
        assert cell.revision() == 1

    def test_update_compares_the_revision(self, cell: Store, clock: Clock) -> None:
        first = cell.create("w", "k", "n", {"a": 1})
        clock.ms += 5
        second = cell.update(first, status={"x": 1})
        assert (second.generation, second.revision, second.spec) == (1, 2, {"a": 1})
        assert (second.created_ms, second.updated_ms) == (clock.ms - 5, clock.ms)
        third = cell.update(second, spec={"a": 2}, deleting=True)
        assert (third.generation, third.status, third.deleting_ms) == (2, {"x": 1}, clock.ms)
        with pytest.raises(Conflict) as caught:
            cell.update(second, spec={"a": 3})
        assert caught.value.details["revision"] == 3
        with pytest.raises(Conflict):
            cell.delete(second)
        cell.delete(third)
        with pytest.raises(Conflict, match="was deleted"):
            cell.update(third, spec={})

    def test_an_update_that_changes_nothing_writes_nothing(self, cell: Store) -> None:
        first = cell.create("w", "k", "n", {"a": 1, "b": 2})
        assert cell.update(first, spec={"b": 2, "a": 1}, status={}) == first
        assert cell.revision() == 1

    def test_pages(self, cell: Store) -> None:
        made = [cell.create("w", "k", f"n{i}", {}) for i in range(7)]
        cell.create("w", "other", "n", {})
        assert cell.list("k", limit=3) == made[:3]
        assert cell.list("k", limit=3, after=made[2].uid) == made[3:6]
        assert cell.list("k", limit=0) == []

    @pytest.mark.parametrize(
        "name",
        [
            "a'; DROP TABLE records; --",
            "100%_x",
            "a/b/../c",
            "é",
            "e\u0301",
            "🎬",
            " ",
            "A",
            "x\n",
            "\\",
            "n" * 255,
            ":p",
        ],
    )
    def test_names_with_tricks(self, cell: Store, name: str) -> None:
        cell.create("w", "k", "a", {})
        made = cell.create(name, name, name, {name: name})
        assert cell.get(name, name, name) == made
        assert cell.list(name) == [made]
        assert cell.find("w", "k", name) is None
        assert cell.changes(1)[0].name == name

    @pytest.mark.parametrize("name", ["", "a\0b", "\ud800", "n" * 256])
    def test_names_that_cannot_be_stored(self, cell: Store, name: str) -> None:
        with pytest.raises(Invalid):
            cell.create("w", "k", name, {})
        assert cell.find("w", "k", name) is None
        assert cell.revision() == 0

    @pytest.mark.parametrize("spec", [{"a": float("nan")}, {"a": object()}, {"a": {1, 2}}, [1], "text"])
    def test_only_json_objects_are_stored(self, cell: Store, spec: dict[str, object]) -> None:
        with pytest.raises(Invalid):
            cell.create("w", "k", "n", spec)
        with pytest.raises(TooLarge):
            cell.create("w", "k", "n", {"a": "x" * (4 << 20)})
        assert cell.list("k") == []


class TestBatch:
    def test_all_or_nothing(self, cell: Store) -> None:
        kept = cell.create("w", "k", "kept", {})
        before = cell.revision()
        ops = [Create("w", "k", "new", {}), Update(kept, spec={"a": 1}), Delete(kept)]
        with pytest.raises(Conflict):
            cell.batch(ops)
        assert cell.list("k") == [kept]
        assert cell.revision() == before
        assert cell.changes(before) == []
        done = cell.batch([Create("w", "k", "new", {}), Update(kept, spec={"a": 1})])
        assert [item.name for item in done if item] == ["new", "kept"]
        assert [change.revision for change in cell.changes(before)] == [before + 1, before + 2]
        assert cell.batch([Delete(item) for item in done if item]) == [None, None]
        assert cell.list("k") == []


class TestChanges:
    def test_every_write_is_told_in_order(self, cell: Store) -> None:
        made = cell.create("w", "k", "n", {})
        cell.delete(cell.update(made, status={"a": 1}))
        told = cell.changes(0)
        assert [(item.revision, item.name, item.deleted) for item in told] == [
            (1, "n", False),
            (2, "n", False),
            (3, "n", True),
        ]
        assert cell.changes(1, limit=1) == [told[1]]
        assert cell.changes(3) == []

    def test_too_old_and_too_new(self, cell: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(store, "KEEP_CHANGES", 10)
        monkeypatch.setattr(store, "PRUNE_EVERY", 4)
        record = cell.create("w", "k", "n", {})
        for i in range(30):
            record = cell.update(record, status={"i": i})
        assert [item.revision for item in cell.changes(21)] == list(range(22, 32))
        with pytest.raises(Invalid, match="too old"):
            cell.changes(20)
        with pytest.raises(Invalid, match="newer"):
            cell.changes(32)

    def test_wait_hears_another_store(self, url: str, cell: Store) -> None:
        with Store.open(url) as other, ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(cell.wait, 0, 60.0)
            other.create("w", "k", "n", {})
            assert waiting.result(60) == 1
        assert cell.wait(0, 60.0) == 1
        assert cell.wait(1, 0.0) == 1

    def test_close_while_one_reads_leaves_no_connection_open(self, url: str) -> None:
        opened = Store.open(url)
        pool = opened._engine.pool
        assert isinstance(pool, QueuePool)
        with opened.reading() as connection:
            opened.close()
            assert connection.execute(text("SELECT 1")).scalar_one() == 1
        assert (pool.checkedin(), pool.checkedout()) == (0, 0)

    def test_close_ends_a_wait(self, url: str) -> None:
        opened = Store.open(url)
        with ThreadPoolExecutor(1) as pool:
            started = threading.Event()

            def waiter() -> int:
                started.set()
                return opened.wait(0, 120.0)

            waiting = pool.submit(waiter)
            started.wait(60)
            opened.close()
            # A wait that had not begun is refused; one that had ends with what it knew.
            with contextlib.suppress(Unavailable):
                assert waiting.result(60) == 0
        opened.close()
        with pytest.raises(Unavailable):
            opened.revision()


class TestRaces:
    def test_one_of_many_threads_wins_each_round(self, url: str) -> None:
        with Store.open(url) as one, Store.open(url) as two:
            record = one.create("w", "k", "n", {"count": 0})
            wins = []

            def add(opened: Store) -> None:
                for _ in range(12):
                    while True:
                        now = opened.get_uid(record.uid)
                        try:
                            opened.update(now, spec={"count": now.spec["count"] + 1})
                        except Conflict:
                            continue
                        wins.append(1)
                        break

            with ThreadPoolExecutor(4) as pool:
                for done in [pool.submit(add, opened) for opened in (one, two, one, two)]:
                    done.result(120)
            last = one.get_uid(record.uid)
            assert last.spec["count"] == len(wins) == 48
            assert last.generation == 49
            assert [change.revision for change in one.changes(0)] == list(range(1, 50))

    def test_one_creator_wins(self, url: str) -> None:
        with Store.open(url) as one, Store.open(url) as two, ThreadPoolExecutor(8) as pool:

            def create(opened: Store) -> bool:
                try:
                    opened.create("w", "k", "n", {})
                except Conflict:
                    return False
                return True

            results = [pool.submit(create, opened) for opened in (one, two) * 4]
            assert sum(item.result(120) for item in results) == 1


class TestLeases:
    def test_one_holder_and_growing_epochs(self, cell: Store, clock: Clock) -> None:
        first = cell.acquire("control", "a", 5)
        assert first is not None
        assert first.epoch == 1
        assert cell.acquire("control", "b", 5) is None
        again = cell.acquire("control", "a", 5)
        assert again is not None
        assert again.epoch == 1
        cell.release(again)
        assert cell.leader("control") is None
        second = cell.acquire("control", "b", 5)
        assert second is not None
        assert second.epoch == 2
        assert cell.leader("control") == second

    def test_takeover_after_the_time_to_live_and_fencing(self, cell: Store, clock: Clock) -> None:
        old = cell.acquire("control", "a", 5)
        assert old is not None
        record = cell.create("w", "k", "n", {}, lease=old)
        clock.ms += 4_000
        old = cell.renew(old, 5)
        clock.ms += 4_999
        assert cell.acquire("control", "b", 5) is None
        clock.ms += 1
        new = cell.acquire("control", "b", 5)
        assert new is not None
        assert new.epoch == old.epoch + 1
        for late in (
            lambda: cell.create("w", "k", "m", {}, lease=old),
            lambda: cell.update(record, spec={"a": 1}, lease=old),
            lambda: cell.delete(record, lease=old),
            lambda: cell.batch([Create("w", "k", "m", {})], lease=old),
            lambda: cell.renew(old, 5),
        ):
            with pytest.raises(StaleEpoch):
                late()
        assert cell.list("k") == [record]
        assert cell.update(record, spec={"a": 1}, lease=new).generation == 2
        cell.release(old)
        assert cell.leader("control") == new

    def test_a_newcomer_trusts_only_its_own_clock(self, url: str, cell: Store) -> None:
        held = cell.acquire("control", "a", 5)
        assert held is not None
        later = Clock()
        later.ms += 86_400_000
        with Store.open(url, now_ms=later) as newcomer:
            assert newcomer.acquire("control", "b", 5) is None, "a wall clock that is a day ahead proves nothing"
            later.ms += 4_000
            cell.renew(held, 5)
            later.ms += 2_000
            assert newcomer.acquire("control", "b", 5) is None, "it was renewed since"
            later.ms += 5_000
            taken = newcomer.acquire("control", "b", 5)
            assert taken is not None
            assert taken.epoch == 2

    def test_a_dead_holder_is_replaced_at_once(self, cell: Store) -> None:
        cell.acquire("control", "boot/12/34", 3600)
        asked: list[str] = []
        assert cell.acquire("control", "b", 5, is_dead=lambda holder: bool(asked.append(holder))) is None
        taken = cell.acquire("control", "b", 5, is_dead=lambda holder: True)
        assert asked == ["boot/12/34"]
        assert taken is not None
        assert taken.epoch == 2

    def test_only_one_of_many_takes_it(self, url: str) -> None:
        with Store.open(url) as one, Store.open(url) as two, ThreadPoolExecutor(8) as pool:
            tries = [pool.submit(o.acquire, "control", f"h{i}", 60.0) for i, o in enumerate((one, two) * 4)]
            assert sum(item.result(120) is not None for item in tries) == 1

    @pytest.mark.parametrize(("name", "holder", "ttl_s"), [("", "a", 5), ("l", "", 5), ("l", "a", 0), ("l", "a", 1e9)])
    def test_what_is_not_a_lease(self, cell: Store, name: str, holder: str, ttl_s: float) -> None:
        with pytest.raises(Invalid):
            cell.acquire(name, holder, ttl_s)


class TestMany:
    """What lists of many records are made with: an index of states, pages by uid, and a shelf of shorts."""

    def test_those_that_have_not_ended_are_found_by_index(self, cell: Store) -> None:
        for number, status in enumerate(({}, {"phase": "ready"}, {"phase": "exited"}, {"state": "running"})):
            cell.create("default", "replica", f"r{number}", {}, status=status)
        cell.create("other", "replica", "r9", {}, status={"phase": "exited"})
        live = cell.list("replica", but="exited")
        assert [record.name for record in live] == ["r0", "r1", "r3"]
        assert cell.count("replica") == 5
        assert cell.count("replica", workspace="default", but="exited") == 3
        cell.update(live[1], status={"phase": "exited"})
        assert [record.name for record in cell.list("replica", workspace="default", but="exited")] == ["r0", "r3"]
        ended = cell.get("default", "replica", "r2")
        cell.update(ended, status={"phase": ["not", "a", "text"]})
        assert cell.count("replica", but="exited") == 3
        assert cell.counts("replica") == {"default": 4, "other": 1}

    def test_states_that_no_index_holds_are_none(self, cell: Store) -> None:
        for number, state in enumerate(("x" * 65, "a\0b", "\ud800", 7, "")):
            made = cell.create("default", "thing", f"t{number}", {}, status={"state": state})
            assert cell.get("default", "thing", made.name).status == {"state": state}
        assert cell.count("thing", but="x") == 5

    def test_names_and_pages_by_uid(self, cell: Store) -> None:
        made = [cell.create("default", "job", name, {"n": name}) for name in ("b", "c", "a")]
        cell.create("other", "job", "z", {})
        assert cell.names("job", workspace="default") == ["a", "b", "c"]
        assert cell.names("job") == ["a", "b", "c", "z"]
        wanted = [made[2].uid, made[0].uid]
        assert [record.name for record in cell.fetch([*wanted, "nothing", "\0"])] == ["a", "b"]
        assert cell.fetch([]) == []

    def test_a_shelf_follows_every_change(self, url: str, cell: Store) -> None:
        shelf = Shelf(cell, "job", lambda record: (record.name, record.status.get("state")))
        assert shelf.list("default") == []
        first = cell.create("default", "job", "first", {})
        second = cell.create("default", "job", "second", {})
        cell.create("other", "job", "third", {})
        cell.create("default", "deployment", "first", {})
        assert shelf.list("default") == [(second.uid, ("second", None)), (first.uid, ("first", None))]
        with Store.open(url) as another:
            another.update(second, status={"state": "running"})
            another.delete(first)
        assert shelf.list("default") == [(second.uid, ("second", "running"))]
        assert [short for _, short in shelf.list("other")] == [("third", None)]
        assert shelf.list("nobody") == []

    def test_a_shelf_that_was_away_for_long_begins_anew(self, cell: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("lepton_ai.store.store.KEEP_CHANGES", 3)
        shelf = Shelf(cell, "job", lambda record: record.name)
        gone = cell.create("default", "job", "gone", {})
        assert [name for _, name in shelf.list("default")] == ["gone"]
        cell.delete(gone)
        for number in range(8):
            cell.create("default", "job", f"j{number}", {})
        assert [name for _, name in shelf.list("default")] == [f"j{number}" for number in reversed(range(8))]


class TestSchema:
    def test_the_migrations_make_the_tables(self, cell: Store) -> None:
        from alembic.autogenerate import compare_metadata
        from alembic.migration import MigrationContext

        with cell.reading() as connection:
            context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE})
            assert context.get_current_revision() == HEAD
            assert compare_metadata(context, metadata) == []

    def test_a_newer_schema_is_refused(self, url: str, cell: Store) -> None:
        from sqlalchemy import text

        with cell.writing() as connection:
            connection.execute(text("UPDATE lepton_ai_version SET version_num = '9999'"))
        with pytest.raises(LeptonError, match="9999") as caught:
            Store.open(url)
        assert caught.value.code == "Unsupported"
        assert "pip install --upgrade" in str(caught.value.hint)

    def test_many_open_a_new_store_at_once(self, url: str) -> None:
        with ThreadPoolExecutor(4) as pool:
            for opened in [item.result(120) for item in [pool.submit(Store.open, url) for _ in range(4)]]:
                assert opened.revision() == 0
                opened.close()


class TestFirst:
    """A store that the first commit which had one wrote: what was in it is there, and it goes on from there."""

    def test_it_opens_with_every_record(self, first: str) -> None:
        with Store.open(first, now_ms=Clock()) as cell:
            movies = cell.get("default", "deployment", "movies")
            assert (movies.generation, movies.revision, movies.status) == (2, 3, {"ready": 1})
            assert (movies.created_ms, movies.updated_ms) == (1_700_000_000_000, 1_700_000_001_000)
            assert movies.spec == {
                "release": 2,
                "text": '电影 é 🎬 \\ "quoted" it\'s\n',
                "nested": [1, 2.5, None, True, {"a": {}}],
                "large": 2**53 - 1,
            }
            assert [record.name for record in cell.list("replica", owner_uid=movies.uid)] == ["movies-1"]
            train = cell.get("default", "job", "train")
            assert (train.deleting, train.status, train.generation) == (True, {"state": "running"}, 1)
            assert (cell.count("job"), cell.count("job", but="running")) == (1, 0)
            assert [record.workspace for record in cell.list("deployment")] == ["default", "other"]
            assert cell.find("default", "job", "gone") is None
            assert [(item.revision, item.name, item.deleted) for item in cell.changes(4)] == [
                (5, "gone", False),
                (6, "gone", True),
                (7, "train", False),
                (8, "train", False),
                (9, "movies", False),
            ]

    def test_it_goes_on_from_there(self, first: str) -> None:
        clock = Clock()
        with Store.open(first, now_ms=clock) as cell:
            movies = cell.get("default", "deployment", "movies")
            assert cell.acquire("control", "new", 5) is None, "its lease is held, for all we know"
            clock.ms += 5_000
            held = cell.acquire("control", "new", 5)
            assert held is not None
            assert held.epoch == 2
            written = cell.update(movies, spec={**movies.spec, "release": 3}, lease=held)
            assert (written.generation, written.revision) == (3, 10)
            with pytest.raises(Conflict):
                cell.update(movies, status={})
            with pytest.raises(Conflict):
                cell.create("default", "deployment", "movies", {})
            cell.delete(cell.get("default", "job", "train"))
            assert cell.create("default", "job", "train", {}).revision == 12
        with Store.open(first) as again:
            assert again.get("default", "deployment", "movies") == written
            with again.reading() as connection:
                version = connection.exec_driver_sql(f"SELECT version_num FROM {VERSION_TABLE}").scalar()
            assert version == HEAD
