"""Ratings out of people's own files: CSV in whatever encoding, or Parquet, to one Arrow table of known columns.

Owns reading and checking: `user`, `item` (whole numbers or text), `rating` (number), and `timestamp` (whole number,
kept in the file's own unit) where there is one. A bad row is named by its line and column; nothing is guessed over.
"""

from __future__ import annotations

import codecs
import csv
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lepton_ai.errors import Invalid, NotFound
from lepton_ai.evaluation import ITEM_NAMES, RATING_NAMES, USER_NAMES

TIMESTAMP_NAMES = ("timestamp", "time", "ts", "时间", "时间戳")
NAMES = {"user": USER_NAMES, "item": ITEM_NAMES, "rating": RATING_NAMES, "timestamp": TIMESTAMP_NAMES}
MARKS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))
ENCODINGS = ("utf-8", "gb18030")
PIECE_BYTES = 1 << 20
SAMPLE_BYTES = 64 << 10
DELIMITERS = ("::", "\t", ",", ";", "|", "，")
_WHOLE = re.compile(r"[+-]?[0-9]{1,20}\Z")
_HINT_COLUMNS = "the file needs columns user, item, rating and, if you like, timestamp"


def ingest(path: str | Path) -> Any:
    """The file's rows as a pyarrow Table (user, item, rating[, timestamp]); write it with `table.append`.

    Parquet is known by its first bytes, all else is CSV: encoding UTF-8, UTF-16 or GB18030, found by trying;
    separated by comma, tab, semicolon, bar or `::`; with or without a header line. Memory: some 20 times a CSV's size.
    Raises NotFound, Invalid (naming the line and column of the first bad value).
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            head = file.read(SAMPLE_BYTES)
    except FileNotFoundError:
        raise NotFound(f"no file {path}", hint="check the path") from None
    except OSError as error:
        raise Invalid(f"cannot read {path}: {error.strerror}", hint="check the path and its rights") from None
    if not head.strip():
        raise Invalid(f"{path} is empty", hint=_HINT_COLUMNS)
    return _parquet(path) if head[:4] == b"PAR1" else _csv(path, encoding(path))


def encoding(path: Path) -> str:
    """The encoding of a text file: its byte order mark, else the first of UTF-8 and GB18030 that fits it whole."""
    with path.open("rb") as file:
        head = file.read(SAMPLE_BYTES)
    for mark, name in MARKS:
        if head.startswith(mark):
            return name if _fits(path, name) else _unknown(path)
    if b"\0" in head:
        # Digits and separators are every row's: in UTF-16 their zero halves stand on one side.
        even, odd = head[0::2].count(0), head[1::2].count(0)
        name = "utf-16-le" if odd > even else "utf-16-be"
        return name if _fits(path, name) else _unknown(path)
    for name in ENCODINGS:
        if _fits(path, name):
            return name
    return _unknown(path)


def _fits(path: Path, name: str) -> bool:
    decoder = codecs.getincrementaldecoder(name)("strict")
    try:
        with path.open("rb") as file:
            while piece := file.read(PIECE_BYTES):
                decoder.decode(piece)
            decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return False
    return True


def _unknown(path: Path) -> str:
    hint = f"convert it first: iconv -f YOUR_ENCODING -t UTF-8 {path.name} > utf8.csv"
    raise Invalid(f"{path} is not text in UTF-8, UTF-16 or GB18030", hint=hint)


def _csv(path: Path, name: str) -> Any:
    import pyarrow

    columns: dict[str, list[str]] = {}
    lines: list[int] = []
    where: dict[str, int] = {}
    width = 0
    for line, row in _rows(path, name):
        if not where:
            where, is_header = _columns(row)
            columns = {column: [] for column in where}
            width = len(row)
            if is_header:
                continue
        if len(row) != width:
            other = f"{path}, line {line}: {len(row)} values instead of {width}"
            hint = "write decimals with a point" if len(row) > width else "repair or remove that line"
            raise Invalid(other, hint=hint)
        lines.append(line)
        for column, index in where.items():
            columns[column].append(row[index].strip())
    if not lines:
        raise Invalid(f"{path} has a header and no rows", hint=_HINT_COLUMNS)
    data: dict[str, Any] = {"user": _ids(path, "user", columns["user"], lines)}
    data["item"] = _ids(path, "item", columns["item"], lines)
    data["rating"] = pyarrow.array(_numbers(path, "rating", columns["rating"], lines), pyarrow.float64())
    if "timestamp" in columns:
        data["timestamp"] = pyarrow.array(_times(path, columns["timestamp"], lines), pyarrow.int64())
    return pyarrow.table(data)


def _rows(path: Path, name: str) -> Iterator[tuple[int, list[str]]]:
    """(line number, values) of each line that is not empty."""
    with path.open("r", encoding=name, newline="") as file:
        sample = file.readline()
        # A real header or first row has at least two separators; the one that splits most wins.
        delimiter = max(DELIMITERS, key=lambda item: (sample.count(item) * len(item), -DELIMITERS.index(item)))
        if sample.count(delimiter) < 2:
            raise Invalid(f"{path}, line 1: {sample.strip()[:80]!r} is not user, item, rating", hint=_HINT_COLUMNS)
        file.seek(0)
        if len(delimiter) > 1:
            for line, text in enumerate(file, 1):
                if text.strip():
                    yield line, text.rstrip("\r\n").lstrip("\ufeff").split(delimiter)
            return
        reader = csv.reader(file, delimiter=delimiter, strict=True)
        try:
            for row in reader:
                if any(value.strip() for value in row):
                    row[0] = row[0].lstrip("\ufeff")
                    yield reader.line_num, row
        except csv.Error as error:
            raise Invalid(f"{path}, line {reader.line_num}: {error}", hint="repair the quotes in that line") from None


def _columns(row: Sequence[str]) -> tuple[dict[str, int], bool]:
    """(index of each known column, whether the row is a header)."""
    names = [value.strip().strip('"').lower().split(":")[0] for value in row]
    found = {}
    for column, spellings in NAMES.items():
        index = next((names.index(spelling) for spelling in spellings if spelling in names), -1)
        if index >= 0:
            found[column] = index
    if {"user", "item", "rating"} <= found.keys():
        return found, True
    if found or len(row) < 3:
        missing = [column for column in ("user", "item", "rating") if column not in found]
        raise Invalid(f"columns {list(row)} lack {', '.join(missing)}", hint=_HINT_COLUMNS)
    positions = {"user": 0, "item": 1, "rating": 2}
    if len(row) > 3 and _number(row[3]) is not None:
        positions["timestamp"] = 3
    # Without known names the first line is data if its rating is a number, else a header in other words.
    return positions, _number(row[2]) is None


def _ids(path: Path, column: str, values: list[str], lines: list[int]) -> Any:
    import pyarrow

    for value, line in zip(values, lines, strict=True):
        if not value:
            raise Invalid(f"{path}, line {line}, column {column}: no value", hint="repair or remove that line")
    try:
        numbers = [int(value) for value in values]
        # "007" and "+7" must stay what they are: only plain numbers are numbers.
        if all(str(number) == value for number, value in zip(numbers, values, strict=True)):
            return pyarrow.array(numbers, pyarrow.int64())
    except (ValueError, OverflowError):
        pass
    return pyarrow.array(values, pyarrow.string())


def _numbers(path: Path, column: str, values: list[str], lines: list[int]) -> list[float]:
    numbers = []
    for value, line in zip(values, lines, strict=True):
        number = _number(value)
        if number is None:
            message = f"{path}, line {line}, column {column}: {value!r} is not a number"
            raise Invalid(message, hint="repair or remove that line")
        numbers.append(number)
    return numbers


def _times(path: Path, values: list[str], lines: list[int]) -> list[int]:
    """Whole numbers as they are: nanoseconds do not fit a float."""
    times = []
    for value, line in zip(values, lines, strict=True):
        text = value.removesuffix(".0")
        if not _WHOLE.match(text) or not -(2**63) <= int(text) < 2**63:
            message = f"{path}, line {line}, column timestamp: {value[:40]!r} is not a whole number"
            raise Invalid(message, hint="repair or remove that line")
        times.append(int(text))
    return times


def _number(value: str) -> float | None:
    if "_" in value:  # Python reads 1_0 as 10; whoever wrote the file did not mean that
        return None
    try:
        number = float(value)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _parquet(path: Path) -> Any:
    import pyarrow
    import pyarrow.compute as compute
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
    except (pyarrow.ArrowException, OSError) as error:
        cause = str(error).splitlines()[0]
        raise Invalid(f"{path} is not a whole Parquet file: {cause}", hint="copy the file again") from None
    where, is_header = _columns(table.column_names)
    if not is_header:
        raise Invalid(f"{path}: columns {table.column_names} are not user, item, rating", hint=_HINT_COLUMNS)
    if not table.num_rows:
        raise Invalid(f"{path} has no rows", hint=_HINT_COLUMNS)
    data: dict[str, Any] = {}
    for column, index in where.items():
        values = table.column(index)
        if pyarrow.types.is_dictionary(values.type):
            values = values.cast(values.type.value_type)
        text = pyarrow.types.is_string(values.type) or pyarrow.types.is_large_string(values.type)
        if column in ("user", "item"):
            target = pyarrow.string() if text else pyarrow.int64()
        else:
            target = pyarrow.float64() if column == "rating" else pyarrow.int64()
        if column == "timestamp" and pyarrow.types.is_timestamp(values.type):
            values = values.cast(pyarrow.timestamp("ms"), safe=False)
        try:
            cast = values.cast(target)
        except (pyarrow.ArrowException, ValueError) as error:
            raise Invalid(f"{path}, column {column}: {str(error).splitlines()[0]}", hint=_HINT_COLUMNS) from None
        good = compute.is_finite(cast) if column == "rating" else compute.is_valid(cast)
        bad = compute.index(compute.fill_null(good, False), False).as_py()
        if bad >= 0:
            message = f"{path}, row {bad + 1}, column {column}: {cast[bad].as_py()!r} is not a value"
            raise Invalid(message, hint="repair or remove that row")
        data[column] = cast
    return pyarrow.table(data)
