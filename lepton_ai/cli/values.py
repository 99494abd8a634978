"""What may be typed as the value of a flag, and what it means. Each raises ArgumentTypeError with an example."""

from __future__ import annotations

import argparse


def count(text: str) -> int:
    """A positive whole number."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def release(text: str) -> tuple[str, int]:
    """`3`, `#3` or `movies#3`, as (whose: "" when it is not said, number)."""
    name, _, number = text.rpartition("#")
    if not number.isdecimal() or not number.isascii():
        raise argparse.ArgumentTypeError(f"{text!r} is not a release (use 3 or movies#3)")
    return name, int(number)


def cores(text: str) -> int:
    """`2` or `0.5` cores, in thousandths of one."""
    import re

    milli = round(float(text) * 1000) if re.fullmatch(r"\d{1,6}(\.\d{0,9})?|\.\d{1,9}", text) else 0
    if milli < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of cores (use 2 or 0.5)")
    return milli


def bounds(text: str) -> tuple[int, int]:
    """`2` or `2..8`."""
    low, dots, high = text.partition("..")
    if not low.isdigit() or (dots and not high.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of replicas (use 2 or 2..8)")
    pair = (int(low), int(high) if dots else int(low))
    if pair[0] > pair[1]:
        raise argparse.ArgumentTypeError(f"{text!r} has its smaller bound last (use {pair[1]}..{pair[0]})")
    return pair


def mebibytes(text: str) -> int:
    """`512`, `512MiB`, `2GiB` (also M, G, MB, GB, read as binary) in MiB."""
    import re

    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(?:(g|t|m)(?:i?b)?)?", text.strip().lower())
    mib = round(float(found[1]) * {"g": 1024, "t": 1024 * 1024}.get(found[2], 1)) if found else 0
    if mib < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size (use 512MiB or 2GiB)")
    return mib


def pair(text: str) -> tuple[str, str]:
    """`KEY=VALUE`."""
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE")
    return key, value


def moment(text: str, now_s: float | None = None) -> int:
    """`2030-01-31 13:10` (this machine's time, or with an offset as in ISO 8601) or `2h` from now, in UTC ms."""
    import re
    import time
    from datetime import datetime

    if found := re.fullmatch(r"(\d{1,6})([smhd])", text.strip()):
        seconds = int(found[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86_400}[found[2]]
        return round(((time.time() if now_s is None else now_s) + seconds) * 1000)
    try:
        return round(datetime.fromisoformat(text.strip()).timestamp() * 1000)
    except (ValueError, OverflowError, OSError):
        hint = "use 2030-01-31 13:10, 2030-01-31T13:10+00:00 or 2h"
        raise argparse.ArgumentTypeError(f"{text!r} is not a time ({hint})") from None


def priority(text: str) -> int | str:
    """A number from 0 to 9999, or a word that the cell knows: low, mid, high, mid-5000."""
    if text.isascii() and text.isdigit():
        if int(text) > 9999:
            raise argparse.ArgumentTypeError(f"{text} is above 9999")
        return int(text)
    if text.partition("-")[0] not in ("low", "mid", "high"):
        raise argparse.ArgumentTypeError(f"{text!r} is no priority: use 0 to 9999, low, mid or high")
    return text


def weight(text: str) -> float:
    """A share beside others that have 1: 0.01 to 100."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.01 <= value <= 100:
        raise argparse.ArgumentTypeError(f"{text!r} is no weight: use 0.01 to 100")
    return value
