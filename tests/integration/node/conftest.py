"""A container engine, two registries and an image for the tests of docker://, made once when one of them runs."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def containers() -> Any:
    """The module `tests/containers.py`, which pytest does not import; skips where there is no engine."""
    name = "tests_containers"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).parents[2] / "containers.py")
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    module = sys.modules[name]
    if why := module.missing():
        pytest.skip(why)
    return module


@pytest.fixture(scope="session")
def docker(containers: Any) -> Iterator[Any]:
    """An engine with the image base:1."""
    made = containers.Docker()
    try:
        made.start()
        command = 'CMD ["python", "-c", "print(\'of the image\')"]'
        made.load(containers.image(), "base", "1", "ENV PATH=/bin", command)
        yield made
    finally:
        made.end()


@pytest.fixture(scope="session")
def registry(containers: Any, docker: Any) -> Iterator[Any]:
    """A registry that asks nobody who he is, and holds base:1."""
    made = containers.Registry()
    try:
        made.start()
        docker.push("base:1", f"{made.host}/base", "1")
        yield made
    finally:
        made.end()


@pytest.fixture(scope="session")
def locked(containers: Any, docker: Any) -> Iterator[Any]:
    """A registry that wants a login, and holds secret:1."""
    made = containers.Registry(login=True)
    try:
        made.start()
        docker.load(containers.small(), "small", "1", 'CMD ["/none"]')
        docker.push("small:1", f"{made.host}/secret", "1", containers.AUTH)
        docker.remove(f"{made.host}/secret:1")
        yield made
    finally:
        made.end()
