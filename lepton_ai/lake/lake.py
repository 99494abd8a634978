"""One lake: its objects, tables and queries, in one place (`objects/`, `tables/`, and `keys/` when it is sealed)."""

from __future__ import annotations

import threading
from pathlib import Path
from types import TracebackType

from lepton_ai.errors import Invalid, Unsupported
from lepton_ai.lake.keys import Keyring
from lepton_ai.lake.objects import Objects
from lepton_ai.lake.place import Place
from lepton_ai.lake.query import Answer, Limits, QueryWorker
from lepton_ai.lake.tables import Table, names


class Lake:
    """A lake in a place; made by `lake.open(url)`. Close it, or use it in a `with`, to end its query worker."""

    def __init__(self, place: Place, key: bytes | None = None) -> None:
        self.place = place
        self.keys = None if key is None else Keyring(place, key)
        self.objects = Objects(place.below("objects"), self.keys)
        self._tables = place.below("tables")
        self._worker: QueryWorker | None = None
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        return self.place.url

    @property
    def root(self) -> Path:
        """The lake's folder. Raises Invalid when it lies in a bucket."""
        if self.place.folder is None:
            raise Invalid(f"{self.url} is no folder of this machine", hint="use its objects and tables")
        return self.place.folder

    def table(self, ref: str) -> Table:
        """The table `ratings`, or one version of it to read: `ratings@2`. It need not exist yet.

        Raises Unsupported in a lake with a key: the files of tables are not sealed yet.
        """
        if self.keys is not None:
            hint = "open the lake without a key, on an encrypted disk, or keep objects in it"
            raise Unsupported("tables of a lake with a key would lie in plain text", hint=hint)
        return Table.of(self._tables, ref)

    def tables(self) -> list[str]:
        """The names of all tables, sorted."""
        return names(self._tables)

    def query(self, sql: str, limits: Limits | None = None) -> Answer:
        """SQL over the tables, in a sealed process of its own; `ratings@2` reads version 2. See `QueryWorker`."""
        with self._lock:
            if self._worker is None:
                self._worker = QueryWorker(self.url)
            worker = self._worker
        return worker.query(sql, limits)

    def close(self) -> None:
        """Ends the query worker, if there is one."""
        if self._worker is not None:
            self._worker.close()
            self._worker = None

    def __enter__(self) -> Lake:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()
