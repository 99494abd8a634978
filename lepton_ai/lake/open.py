"""Which lake: the composition root of a lake. Its URL is read by `place`."""

from __future__ import annotations

import os

from lepton_ai.lake.lake import Lake
from lepton_ai.lake.place import Place


def open(url: str | os.PathLike[str], *, key: bytes | None = None) -> Lake:
    """The lake at `url` (file://PATH or a path, s3://, gs://, az://); a missing folder is made (0700).

    `key` (32 bytes): its objects lie encrypted under content keys that this key wraps (see `lake.keys`); it
    has no tables.
    Raises Unsupported for other schemes, Invalid for an address that cannot be one, DiskFull.
    """
    place = Place.of(url)
    place.make()
    return Lake(place, key)
