"""Tables: versions from 1, time travel, writes that may be repeated, and clear words for broken files."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

import pandas
import pyarrow
import pytest

import lepton_ai.lake
from lepton_ai.errors import Conflict, Corrupt, Invalid, NotFound, Unsupported
from lepton_ai.lake import Lake, Table, commits, write
from lepton_ai.lake.commits import Progress
from lepton_ai.lake.place import Place
from lepton_ai.models import RecommenderModel

ROWS = {"user": [2, 1], "item": ["b", "a"], "rating": [1.0, 2.0]}


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return lepton_ai.lake.open(tmp_path / "lake")


@pytest.fixture
def table(lake: Lake) -> Table:
    made = lake.table("ratings")
    made.create(ROWS)
    made.append({"rating": [3.0], "user": [3], "item": ["c"]})
    return made


def test_versions_count_from_one_and_each_can_be_read(lake: Lake, table: Table) -> None:
    assert str(table.version()) == "ratings@2"
    assert table.read().column("user").to_pylist() == [2, 1, 3]
    assert lake.table("ratings@1").read().to_pydict() == ROWS
    assert str(table.overwrite({"other": [1]})) == "ratings@3"
    assert table.schema() == {"other": "int64"}
    assert table.at(2).schema() == {"user": "int64", "item": "string", "rating": "double"}
    assert [table.at(number).rows() for number in (1, 2, 3)] == [2, 3, 1]
    assert [str(item) for item in table.history()] == ["ratings@3", "ratings@2", "ratings@1"]
    assert [str(item) for item in table.at(2).history()] == ["ratings@2", "ratings@1"]
    assert [item.rows_added for item in table.history()] == [1, 1, 2]
    assert lake.tables() == ["ratings"]
    assert table.size_bytes() > 0


def test_rows_keep_the_order_in_which_they_were_appended(lake: Lake) -> None:
    table = lake.table("t")
    for number in range(12):
        table.append({"n": [number]})
    assert table.read().column("n").to_pylist() == list(range(12))
    assert table.at(5).read(columns=["n"]).column("n").to_pylist() == list(range(5))


def test_a_transaction_is_written_once(table: Table) -> None:
    first = table.append(ROWS, transaction="load-1")
    again = table.append(ROWS, transaction="load-1")
    assert str(first) == str(again) == "ratings@3"
    assert again.transaction == "load-1"
    table.append(ROWS, transaction="load-2")
    assert str(table.append(ROWS, transaction="load-1")) == "ratings@3"
    assert table.rows() == 7
    assert str(table.create(ROWS, transaction="load-2")) == "ratings@4"
    with pytest.raises(Invalid):
        table.append(ROWS, transaction="x" * 500)


def test_a_pinned_table_stays_and_cannot_be_written(table: Table) -> None:
    pinned = table.pin()
    table.append(ROWS)
    assert (pinned.lineage, pinned.rows(), table.rows()) == ("ratings@2", 3, 5)
    with pytest.raises(Invalid, match="ratings@2 is past"):
        pinned.append(ROWS)


def test_a_model_remembers_the_version_it_learnt_from(table: Table) -> None:
    model = RecommenderModel().fit(table, holdout=0)
    assert model.lineage == {"table": "ratings@2"}
    assert RecommenderModel().fit(table.at(1), holdout=0).lineage == {"table": "ratings@1"}


def test_data_may_be_arrow_a_frame_or_rows(lake: Lake) -> None:
    table = lake.table("t")
    table.append(pyarrow.table({"a": [1]}))
    table.append(pandas.DataFrame({"a": [2]}))
    table.append([{"a": 3}])
    table.append(pyarrow.record_batch({"a": [4]}))
    assert table.read().column("a").to_pylist() == [1, 2, 3, 4]


def test_what_does_not_fit_is_refused_and_nothing_is_half_made(lake: Lake, table: Table) -> None:
    for rows in (
        {"user": [1]},
        {**ROWS, "more": [1, 2]},
        {**ROWS, "rating": ["good", "bad"]},
        7,
        {},
        {"a": [1], "b": []},
    ):
        with pytest.raises(Invalid) as caught:
            table.append(rows)
        assert caught.value.hint
    assert str(table.version()) == "ratings@2"
    with pytest.raises(Conflict):
        table.create(ROWS)
    for ref in ("Ratings", "../x", "ratings@0", "ratings@x", "", "a b", "ratings@1@2"):
        with pytest.raises(Invalid):
            lake.table(ref)
    with pytest.raises(NotFound, match="no table films"):
        lake.table("films").read()
    with pytest.raises(NotFound, match="no version 9"):
        lake.table("ratings@9").read()
    with pytest.raises(NotFound, match="no version 9"):
        lake.table("ratings@9").history()
    with pytest.raises(NotFound, match="no column"):
        table.read(columns=["nope"])
    assert lake.tables() == ["ratings"]


def test_a_table_moves_as_files(table: Table, tmp_path: Path) -> None:
    shutil.copytree(table.folder, tmp_path / "elsewhere" / "ratings")
    moved = Table.of(Place.of(tmp_path / "elsewhere"), "ratings")
    assert moved.read().equals(table.read())
    assert moved.history() == table.history()


def test_a_broken_data_file_is_said_and_earlier_versions_still_read(table: Table) -> None:
    new = sorted(table.folder.glob("*.parquet"), key=lambda path: path.stat().st_mtime_ns)[-1]
    whole = new.read_bytes()
    for damage in (b"not parquet", whole[: len(whole) // 2], b""):
        new.write_bytes(damage)
        with pytest.raises(Corrupt, match="ratings") as caught:
            table.read()
        assert "ratings@1" in str(caught.value.hint)
    new.unlink()
    with pytest.raises(Corrupt, match="missing"):
        table.read()
    assert table.at(1).rows() == 2
    assert table.at(1).read().to_pydict() == ROWS


@pytest.mark.parametrize("damage", ["{broken", "", '{"add": 7}', "\0\0\0"])
def test_a_broken_log_is_said(lake: Lake, table: Table, damage: str) -> None:
    for entry in table.folder.glob("_delta_log/*.json"):
        entry.write_text(damage)
    for act in (table.read, table.history, table.version, table.schema, lambda: lake.table("ratings").append(ROWS)):
        with pytest.raises(Corrupt) as caught:
            act()
        assert caught.value.hint
        assert "\n" not in caught.value.message


def test_addresses(tmp_path: Path) -> None:
    assert lepton_ai.lake.open(f"file://{tmp_path}/a%20b").root == tmp_path / "a b"
    assert (tmp_path / "a b").stat().st_mode & 0o777 == 0o700
    with pytest.raises(Unsupported):
        lepton_ai.lake.open("ftp://bucket")
    for url in ("file://host/x", "file://", ""):
        with pytest.raises(Invalid):
            lepton_ai.lake.open(url)
    (tmp_path / "file").write_text("x")
    with pytest.raises(Invalid):
        lepton_ai.lake.open(tmp_path / "file")
    with pytest.raises(Invalid):
        lepton_ai.lake.open(tmp_path / "file" / "below")


def test_a_twin_that_commits_between_looking_and_writing_is_seen(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    look = write._written
    twins = [lake.table("fresh")]
    table = lake.table("fresh")
    table.create(ROWS)

    def look_then_lose(of: Table, opened: object, transaction: str | None) -> object:
        found = look(of, opened, transaction)
        if twins and of is table:
            # One that knows nothing of the table's lock, as any other Delta writer.
            with monkeypatch.context() as patch:
                patch.setattr(commits.Commits, "locked", lambda self: contextlib.nullcontext())
                twins.pop().overwrite(ROWS, transaction="load-1")
        return found

    monkeypatch.setattr(write, "_written", look_then_lose)
    assert str(table.overwrite(ROWS, transaction="load-1")) == "fresh@2"
    assert not twins
    assert table.rows() == 2


def test_a_stock_delta_writer_and_ours_share_a_table(table: Table) -> None:
    """Its commits are met as conflicts and built upon; it reads and continues ours, checkpoints included."""
    import deltalake

    for number in range(130):
        table.append({"user": [number], "item": ["x"], "rating": [0.5]}, transaction=f"t{number}")
        if number % 40 == 0:
            deltalake.write_deltalake(str(table.folder), table.at(1).read(), mode="append")
    stock = deltalake.DeltaTable(str(table.folder))

    assert stock.version() + 1 == table.version().version == 2 + 130 + 4
    assert stock.to_pyarrow_table().num_rows == table.rows() == 3 + 130 + 4 * 2
    assert (table.folder / "_delta_log" / "_last_checkpoint").is_file()
    again = Table.of(Place.of(table.folder.parent), "ratings")
    assert str(again.append(ROWS, transaction="t7")) == str(next(v for v in table.history() if v.transaction == "t7"))
    assert again.rows() == 3 + 130 + 4 * 2
    rows = stock.to_pyarrow_dataset().to_table(filter=deltalake_filter("user", 77)).num_rows
    assert rows == 1


def deltalake_filter(column: str, value: int) -> object:
    import pyarrow.dataset

    return pyarrow.dataset.field(column) == value


def test_progress_in_a_stream_is_taken_in_once(table: Table) -> None:
    def take(position: int, after: int | None, stream: str = "events/0") -> None:
        rows = {"user": [position], "item": ["x"], "rating": [1.0]}
        table.append(rows, progress=Progress(stream, position, after))

    assert table.position("events/0") is None
    take(5, None)
    take(5, None)
    take(3, None)
    take(9, 5)
    take(0, None, "events/1")
    for position, after in ((12, 5), (12, None)):  # what overlaps is not taken in beside what is there
        with pytest.raises(Conflict, match="went on"):
            take(position, after)
    with pytest.raises(Invalid):
        take(9, 9)

    assert table.read().column("user").to_pylist()[3:] == [5, 9, 0]
    assert table.position("events/0") == 9


def test_a_table_that_asks_more_of_its_writers_gets_it(lake: Lake) -> None:
    import deltalake

    table = lake.table("checked")
    table.create({"n": [1]})
    deltalake.DeltaTable(str(table.folder)).alter.add_constraint({"positive": "n > 0"})
    table.append({"n": [2]})
    with pytest.raises(Invalid):
        table.append({"n": [-1]})
    assert table.read().column("n").to_pylist() == [1, 2]
