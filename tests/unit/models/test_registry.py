"""Model versions in the lake: numbered, repeatable, verified."""

from __future__ import annotations

import threading
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from lepton_ai.errors import Corrupt, Invalid, NotFound
from lepton_ai.lake.objects import Objects
from lepton_ai.models import RecommenderModel, Registry
from lepton_ai.models.container import Container

DATA = [(user, item, 3.0) for user in range(6) for item in range(user, user + 5)]


@pytest.fixture
def objects(tmp_path: Path) -> Objects:
    return Objects(tmp_path / "objects")


def test_versions_count_from_one_and_carry_lineage(objects: Objects) -> None:
    registry = Registry(objects, now_ms=lambda: 1234)
    first = registry.register("movies", RecommenderModel().fit(DATA), lineage={"table": "ratings@1"})
    second = registry.register("movies", RecommenderModel().fit(DATA, seed=1))
    assert (str(first), str(second)) == ("movies@1", "movies@2")
    assert (first.created_ms, first.lineage, first.kind) == (1234, {"table": "ratings@1"}, "recommender")
    assert registry.get("movies") == second
    assert registry.get("movies@1") == first
    assert registry.list() == (first, second)
    assert registry.load("movies@1").container().pack() == registry.read(first)


def test_registering_the_same_twice_is_once(objects: Objects) -> None:
    registry = Registry(objects)
    model = RecommenderModel().fit(DATA)
    assert registry.register("movies", model) == registry.register("movies", model.container().pack())
    assert str(registry.register("movies", model, lineage={"job": "again"})) == "movies@2"


def test_a_file_is_registered_without_holding_it(objects: Objects, tmp_path: Path) -> None:
    model = RecommenderModel().fit(DATA)
    container = model.container()
    large = Container(container.manifest, {**container.arrays, "more": np.zeros(12 << 20)}, container.onnx)
    path = large.save(tmp_path / "large")
    registry = Registry(objects)
    tracemalloc.start()
    try:
        version = registry.register("movies", path)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak_bytes < path.stat().st_size / 2
    assert registry.register("movies", path.read_bytes()) == version
    assert (version.size_bytes, registry.read(version)) == (path.stat().st_size, path.read_bytes())
    path.write_bytes(b"something else")
    with pytest.raises(Invalid, match="not a saved model"):
        registry.register("movies", path)


def test_writers_at_once_never_share_a_number(objects: Objects) -> None:
    data = [RecommenderModel().fit(DATA, seed=seed).container().pack() for seed in range(6)]
    found: list[str] = []
    threads = [
        threading.Thread(target=lambda each=each: found.append(str(Registry(objects).register("movies", each))))
        for each in data
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == [f"movies@{number}" for number in range(1, 7)]


def test_damage_and_absence_are_said(objects: Objects) -> None:
    registry = Registry(objects)
    version = registry.register("movies", RecommenderModel().fit(DATA))
    for ref, kind in (
        ("movies@2", NotFound),
        ("films", NotFound),
        ("movies@0", Invalid),
        ("../x", Invalid),
        ("m@x", Invalid),
    ):
        with pytest.raises(kind):
            registry.get(ref)
    with pytest.raises(Invalid, match="not a saved model"):
        registry.register("movies", b"something else")
    objects.put(version.key, b"PK\x03\x04 damaged")
    with pytest.raises(Corrupt):
        registry.load("movies")
    objects.put("models/movies/versions/000001.json", b"{")
    with pytest.raises(Corrupt):
        registry.get("movies")
