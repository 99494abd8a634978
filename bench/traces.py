"""The public traces that the measurements of the scheduler read, told apart by their columns; not a measurement itself.

    kind         columns                                 source                              read by
    hosts        .npz with 'cpu': (machines, samples) %  PlanetLab, one day                  hosts
    values       timestamp,value                         NAB (EC2 CPU, tweets, ELB)          values
    requests     TIMESTAMP,ContextTokens,GeneratedTokens Azure LLM inference 2023            requests
    minutes      t,tps[,norm]                            BurstGPT, tokens/s of each minute   minutes
    nodes, pods, published                               openb and FGD's results: placement  (bench/placement.py)

Files may end in .xz or .gz; a folder stands for the files in it. What cannot be read is refused with the columns that
were found. `series` reads any of the first four as evenly spaced series.
"""

from __future__ import annotations

import csv
import gzip
import io
import lzma
import re
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lepton_ai.errors import Invalid

Array = NDArray[np.float64]

COLUMNS = {
    "requests": ("timestamp", "contexttokens", "generatedtokens"),
    "values": ("timestamp", "value"),
    "minutes": ("t", "tps"),
    "nodes": ("sn", "cpu_milli", "memory_mib", "gpu"),
    "pods": ("name", "cpu_milli", "memory_mib", "num_gpu"),
    "published": ("workload", "sc_policy", "total_gpus"),
}
"""The columns a file of each kind has at least, in small letters; the first kind that fits counts."""
HOSTS_STEP_S = 300.0
MINUTE_S = 60.0
REQUESTS_STEP_S = 5.0
"""Requests are counted in steps of the autoscaler's tick where nothing else is asked."""
GRID_MOST = 2_000_000
HINT = "known columns: " + "; ".join(",".join(names) for names in COLUMNS.values()) + "; or .npz with 'cpu'"


@dataclass(frozen=True, slots=True)
class Requests:
    """Requests in order of arrival: seconds since the first one, tokens in, tokens out."""

    times_s: Array
    context: Array
    generated: Array


@dataclass(frozen=True, slots=True)
class Series:
    """Evenly spaced series of one file: `values` (series, samples), NaN where nothing was measured.

    `data` is the data set the file belongs to (files of one data set are judged together), `name` the file's own."""

    data: str
    name: str
    step_s: float
    values: Array


def files(paths: Iterable[Path]) -> list[Path]:
    """The files named, those of a folder in order of name. Raises Invalid where there is none."""
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            found += sorted(item for item in path.iterdir() if item.is_file() and not item.name.startswith("."))
        elif path.is_file():
            found.append(path)
        else:
            raise Invalid(f"{path}: no such file or folder", hint="give files of the documented columns to --data")
    return found


def kind(path: Path) -> str:
    """What a file holds, by its columns. Raises Invalid for any other file."""
    data = _bytes(path, most=4096)
    if data[:2] == b"PK":
        return "hosts"
    header = _header(data)
    for name, columns in COLUMNS.items():
        if set(columns) <= set(header):
            return name
    shown = ",".join(header)[:80] or "nothing"
    raise Invalid(f"{path.name}: not a trace that can be read: its first line is {shown!r}", hint=HINT)


def hosts(path: Path) -> tuple[tuple[str, ...], Array]:
    """PlanetLab: names, and (machines, samples) CPU % every 5 minutes."""
    try:
        with np.load(io.BytesIO(_bytes(path))) as archive:
            cpu = np.asarray(archive["cpu"], dtype=np.float64)
            names = tuple(str(name) for name in archive["names"]) if "names" in archive.files else ()
    except (KeyError, ValueError, OSError, zipfile.BadZipFile) as error:
        raise Invalid(f"{path.name}: no array 'cpu' of machines x samples ({error})", hint=HINT) from error
    if cpu.ndim != 2 or cpu.size == 0:
        raise Invalid(f"{path.name}: 'cpu' is {cpu.shape}, not machines x samples", hint=HINT)
    return (names if len(names) == len(cpu) else tuple(str(index) for index in range(len(cpu)))), cpu


def values(path: Path) -> tuple[float, Array]:
    """NAB: the step in seconds, and the values on an even grid; NaN where the file has a gap, the mean of doubles."""
    times_s, (amounts,) = _table(path, ("timestamp",), ("value",))
    times_s -= times_s[0]
    gaps = np.diff(np.unique(times_s))
    step_s = float(np.median(gaps)) if len(gaps) else HOSTS_STEP_S
    place = np.rint(times_s / step_s).astype(np.int64)
    if place[-1] > GRID_MOST:
        raise Invalid(f"{path.name}: {len(times_s)} values over {place[-1]} steps: too thin", hint=HINT)
    count = np.bincount(place)
    with np.errstate(invalid="ignore"):
        return step_s, np.bincount(place, weights=amounts) / np.where(count > 0, count, np.nan)


def requests(path: Path) -> Requests:
    """Azure LLM inference: every request, in order of arrival."""
    times_s, (context, generated) = _table(path, ("timestamp",), ("contexttokens", "generatedtokens"))
    return Requests(times_s - times_s[0], context, generated)


def minutes(path: Path) -> Array:
    """BurstGPT: tokens/s of every minute from the file's first to its last; a minute that is missing had none."""
    times, (tps,) = _table(path, ("t",), ("tps",))
    place = np.rint(times - times.min()).astype(np.int64)
    found = np.zeros(int(place.max()) + 1)
    np.add.at(found, place, tps)
    return found


def rate(times_s: Array, step_s: float, amounts: Array | None = None) -> Array:
    """Events (or their amounts) a second in each whole step; the last, unfinished step is left out."""
    place = np.floor(times_s / step_s).astype(np.int64)
    whole = int(np.floor(times_s[-1] / step_s)) if len(times_s) else 0
    return np.bincount(place, weights=amounts, minlength=whole)[:whole] / step_s


def series(path: Path, requests_step_s: float = REQUESTS_STEP_S) -> list[Series]:
    """A file of machines, values, requests or minutes as evenly spaced series.

    Requests give two: requests/s, and tokens/s (in and out). Raises Invalid for other kinds.
    """
    found, stem = kind(path), path.name.split(".")[0]
    if found == "hosts":
        return [Series("planetlab", stem, HOSTS_STEP_S, hosts(path)[1])]
    if found == "values":
        step_s, amounts = values(path)
        return [Series("nab", stem, step_s, amounts[None, :])]
    if found == "minutes":
        return [Series("burstgpt", stem, MINUTE_S, minutes(path)[None, :])]
    if found == "requests":
        read = requests(path)
        name = next((f"azure-{word}" for word in ("code", "conv") if word in stem.lower()), stem)
        tokens = rate(read.times_s, requests_step_s, read.context + read.generated)
        arrivals = rate(read.times_s, requests_step_s)
        return [
            Series(name, f"{stem}:requests", requests_step_s, arrivals[None, :]),
            Series(name, f"{stem}:tokens", requests_step_s, tokens[None, :]),
        ]
    raise Invalid(f"{path.name} holds {found}, no series over time", hint="give it to bench/placement.py")


def _bytes(path: Path, most: int = -1) -> bytes:
    opener = {".xz": lzma.open, ".gz": gzip.open}.get(path.suffix, open)
    try:
        with opener(path, "rb") as stream:
            return bytes(stream.read(most))
    except (OSError, EOFError, lzma.LZMAError) as error:
        raise Invalid(f"{path}: cannot be read ({error})", hint="is the file whole?") from error


def _header(data: bytes) -> list[str]:
    line = data.decode("utf-8-sig", "replace").splitlines()[:1]
    return [word.strip().lower() for word in next(csv.reader(line), [])]


def _table(path: Path, when: Sequence[str], what: Sequence[str]) -> tuple[Array, list[Array]]:
    """The rows of a CSV file in order of time: the time (seconds, or the number given), and the columns `what`.

    Raises Invalid for a file without these columns or rows, and for the first line that is no row of numbers.
    """
    text = _bytes(path).decode("utf-8-sig", "replace")
    header = _header(text[:4096].encode())
    missing = [name for name in (*when, *what) if name not in header]
    if missing:
        raise Invalid(f"{path.name}: no column {', '.join(missing)} among {','.join(header)[:80]}", hint=HINT)
    places = [header.index(name) for name in (*when, *what)]
    rows: list[list[float]] = []
    for number, row in enumerate(csv.reader(io.StringIO(text)), 1):
        if number == 1 or not row:
            continue
        try:
            rows.append([_seconds(row[places[0]]), *(float(row[place]) for place in places[1:])])
        except (ValueError, IndexError) as error:
            raise Invalid(
                f"{path.name}, line {number}: no row of numbers: {','.join(row)[:60]!r}", hint=HINT
            ) from error
    if not rows:
        raise Invalid(f"{path.name}: a header and no rows", hint=HINT)
    table = np.array(rows)
    table = table[np.argsort(table[:, 0], kind="stable")]
    return table[:, 0].copy(), [table[:, 1 + index].copy() for index in range(len(what))]


def _seconds(text: str) -> float:
    """A number as it stands, or a date and time (fractions of any length, any zone as if it were UTC) as seconds."""
    try:
        return float(text)
    except ValueError:
        moment = datetime.fromisoformat(re.sub(r"(\.\d{6})\d+", r"\1", text.strip()))  # it reads microseconds at most
        return (moment.replace(tzinfo=None) - datetime(1970, 1, 1)).total_seconds()
