"""One SeaweedFS for the tests of this folder."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lepton_ai.errors import Unsupported
from lepton_ai.lake.seaweed import weed

sys.path.insert(0, str(Path(__file__).parent))
from weeds import Weeds


@pytest.fixture(scope="package")
def weeds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Weeds]:
    try:
        weed()
    except Unsupported as error:
        pytest.skip(str(error))
    made = Weeds(tmp_path_factory.mktemp("weed"))
    before = {name: os.environ.get(name) for name in made.seaweed.credentials()}
    os.environ.update(made.seaweed.credentials())
    try:
        made.start()
        made.await_ready()
        yield made
    finally:
        made.kill()
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})
