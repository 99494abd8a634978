"""Ratings out of people's own files: encodings, separators, headers, and bad rows named by line and column."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from lepton_ai.errors import Invalid, NotFound
from lepton_ai.lake.ingest import ingest

CHINESE = "用户,电影,评分,时间\n张三,霸王别姬,5,881250949\n李四,活着,4.5,881250950\n"


def made(folder: Path, data: bytes | str, name: str = "ratings.csv") -> Path:
    path = folder / name
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "gb18030", "gbk", "utf-16", "utf-16-le", "utf-16-be"])
def test_encodings_are_found(tmp_path: Path, encoding: str) -> None:
    text = CHINESE + "".join(f"用户{n},电影{n % 50},{n % 5 + 1},{n}\n" for n in range(5000))
    table = ingest(made(tmp_path, text.encode(encoding)))
    assert table.num_rows == 5002
    first = table.slice(0, 2).to_pydict()
    assert first["user"] == ["张三", "李四"]
    assert first["item"] == ["霸王别姬", "活着"]
    assert (first["rating"], first["timestamp"]) == ([5.0, 4.5], [881250949, 881250950])
    assert table.column("item")[5001].as_py() == "电影49"


def test_bytes_of_no_known_encoding_are_refused(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match="UTF-8, UTF-16 or GB18030") as caught:
        ingest(made(tmp_path, b"user,item,rating\n\xff\xff\xff,1,2\n"))
    assert "iconv" in str(caught.value.hint)


@pytest.mark.parametrize(
    "text",
    [
        "user,item,rating\n1,10,3\n2,20,4.5\n",
        "1,10,3\n2,20,4.5",
        "user_id\titem_id\trating\r\n1\t10\t3\r\n\r\n2\t20\t4.5\r\n",
        "userId;movieId;rating\n1;10;3\n2;20;4.5\n",
        "1::10::3\n2::20::4.5\n",
        "rating|item|user\n3|10|1\n4.5|20|2\n",
        'user,item,rating,comment\n1,10,3,"a, ""b"""\n2,20,4.5,"two\nlines"\n',
        "user_id:token\titem_id:token\trating:float\n1\t10\t3\n2\t20\t4.5\n",
        "who,what,stars\n1,10,3\n2,20,4.5\n",
    ],
)
def test_the_usual_forms_are_read(tmp_path: Path, text: str) -> None:
    table = ingest(made(tmp_path, text))
    assert table.to_pydict() == {"user": [1, 2], "item": [10, 20], "rating": [3.0, 4.5]}


def test_ids_that_are_not_plain_numbers_stay_text(tmp_path: Path) -> None:
    table = ingest(made(tmp_path, "user,item,rating\n007,1,3\n8,99999999999999999999,4\n"))
    assert table.column("user").to_pylist() == ["007", "8"]
    assert table.column("item").to_pylist() == ["1", "99999999999999999999"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("user,item,rating\n1,2,3\n1,3,good\n", r"line 3, column rating: 'good'"),
        ("user,item,rating\n1,2,nan\n", r"line 2, column rating: 'nan'"),
        ("user,item,rating\n\n\n1,,3\n", r"line 4, column item: no value"),
        ("user,item,rating\n1,2,3\n1,2\n", r"line 3: 2 values instead of 3"),
        ("user,item,rating,timestamp\n1,2,3,soon\n", r"line 2, column timestamp: 'soon'"),
        ('user,item,rating\n1,"2"x,3\n', r"line 2"),
        ("user,item,stars\n1,2,3\n", r"lack rating"),
        ("user,item\n1,2\n", r"line 1"),
        ("user,what,why\n1,2,3\n", r"lack item, rating"),
        ("user,item,rating\n", r"header and no rows"),
        ("", r"empty"),
        ("\n \n", r"empty"),
        ("just text\n", r"line 1"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(Invalid, match=says) as caught:
        ingest(made(tmp_path, text))
    assert caught.value.hint


def test_parquet(tmp_path: Path) -> None:
    table = pyarrow.table(
        {"userId": [1, 2], "movieId": ["a", "b"], "score": pyarrow.array([3, 4], "int32"), "x": [1, 2]}
    )
    pyarrow.parquet.write_table(table, tmp_path / "r.parquet")
    assert ingest(tmp_path / "r.parquet").to_pydict() == {"user": [1, 2], "item": ["a", "b"], "rating": [3.0, 4.0]}


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ({"user": [1, None], "item": [1, 2], "rating": [1.0, 2.0]}, "row 2, column user"),
        ({"user": [1, 2], "item": [1, 2], "rating": [1.0, float("inf")]}, "row 2, column rating"),
        ({"user": [1.5, 2], "item": [1, 2], "rating": [1.0, 1.0]}, "column user"),
        ({"user": [1, 2], "item": [1, 2], "rating": ["a", "b"]}, "column rating"),
        ({"user": [1], "item": [2], "c": [3.0]}, "lack rating"),
        ({"1": [1], "2": [2], "3": [3.0]}, "not user, item, rating"),
    ],
)
def test_bad_parquet_is_named(tmp_path: Path, columns: dict[str, Any], says: str) -> None:
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "r.parquet")
    with pytest.raises(Invalid, match=says):
        ingest(tmp_path / "r.parquet")


def test_what_is_no_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        ingest(tmp_path / "absent.csv")
    with pytest.raises(Invalid):
        ingest(tmp_path)
    with pytest.raises(Invalid, match="Parquet"):
        ingest(made(tmp_path, b"PAR1 and no more"))


def test_times_are_kept_to_the_last_digit(tmp_path: Path) -> None:
    path = tmp_path / "r.csv"
    path.write_text("user,item,rating,timestamp\n1,2,3,1700000000123456789\n1,3,3,17.0\n")
    assert ingest(path).column("timestamp").to_pylist() == [1700000000123456789, 17]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("1,2,3,1700000000.9", "timestamp"), ("1,2,3,1e300", "timestamp"), ("1,2,3,99999999999999999999", "timestamp"),
        ("1,2,1_0,5", "rating"), ("1,2,3,5,9", "5 values instead of 4"),
    ],
)  # fmt: skip
def test_nothing_is_guessed_over(tmp_path: Path, row: str, said: str) -> None:
    path = tmp_path / "r.csv"
    path.write_text(f"user,item,rating,timestamp\n{row}\n")
    with pytest.raises(Invalid, match=said) as caught:
        ingest(path)
    assert caught.value.hint
