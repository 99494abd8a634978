"""Writes the store of README.md beside this file; run with the code of the first commit that had a store."""

from __future__ import annotations

import sys

from lepton_ai.store import Create, Store, Update

WIDE = {"text": '电影 é 🎬 \\ "quoted" it\'s\n', "nested": [1, 2.5, None, True, {"a": {}}], "large": 2**53 - 1}


def write(url: str) -> None:
    clock = [1_700_000_000_000]
    with Store.open(url, now_ms=lambda: clock[0]) as store:
        held = store.acquire("control", "old", 5)
        assert held is not None
        movies = store.create("default", "deployment", "movies", {"release": 1, **WIDE}, lease=held)
        clock[0] += 1_000
        movies = store.update(movies, spec={"release": 2, **WIDE}, lease=held)
        ops = [Update(movies, status={"ready": 1}), Create("default", "replica", "movies-1", {}, None, movies.uid)]
        store.batch(ops, lease=held)
        gone = store.create("default", "job", "gone", {})
        store.delete(gone)
        train = store.create("default", "job", "train", {"a": 1}, status={"state": "running"})
        store.update(train, deleting=True)
        store.create("other", "deployment", "movies", {})
        assert store.revision() == 9


if __name__ == "__main__":
    write(sys.argv[1])
