"""One lake: its objects, tables and queries, in one folder (`objects/`, `tables/`)."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType

from lepton_ai.lake.objects import Objects
from lepton_ai.lake.query import Answer, Limits, QueryWorker
from lepton_ai.lake.tables import Table, names


class Lake:
    """A lake on a folder; made by `lake.open(url)`. Close it, or use it in a `with`, to end its query worker."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.objects = Objects(root / "objects")
        self._worker: QueryWorker | None = None

    @property
    def url(self) -> str:
        return self.root.as_uri()

    def table(self, ref: str) -> Table:
        """The table `ratings`, or one version of it to read: `ratings@2`. It need not exist yet."""
        return Table.of(self.root / "tables", ref)

    def tables(self) -> list[str]:
        """The names of all tables, sorted."""
        return names(self.root / "tables")

    def query(self, sql: str, limits: Limits | None = None) -> Answer:
        """SQL over the tables, in a sealed process of its own; `ratings@2` reads version 2. See `QueryWorker`."""
        if self._worker is None:
            self._worker = QueryWorker(self.url)
        return self._worker.query(sql, limits)

    def close(self) -> None:
        """Ends the query worker, if there is one."""
        if self._worker is not None:
            self._worker.close()
            self._worker = None

    def __enter__(self) -> Lake:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()
