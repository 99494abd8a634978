"""Waiting until every running Envoy has taken what was written, or has refused it.

File discovery has no acknowledgement: what an Envoy thinks is in its admin statistics (`version_text` moves to the
version in the file when it is taken, `update_rejected` counts when it is not).
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

from lepton_ai.errors import Invalid, Timeout, Unavailable
from lepton_ai.gateway.admin import Admin

LISTENERS = "listener_manager.lds"
CLUSTERS = "cluster_manager.cds"
ROUTES = "http.gateway.rds.routes"


def endpoints_of(cluster: str) -> str:
    """The prefix of the statistics of one cluster's endpoint file."""
    return f"cluster.{cluster}"


def rejections(admins: Iterable[Admin], sources: Iterable[str]) -> dict[tuple[str, str], int]:
    """How often each running Envoy has refused each source so far; taken before writing."""
    found: dict[tuple[str, str], int] = {}
    pattern = _pattern(sources, "update_rejected")
    for admin in admins:
        try:
            values = admin.stats(pattern)
        except Unavailable:
            continue
        for name, value in values.items():
            found[str(admin.path), name.removesuffix(".update_rejected")] = int(value)
    return found


def confirm(
    admins: Sequence[Admin],
    versions: Mapping[str, str],
    before: Mapping[tuple[str, str], int],
    *,
    timeout_s: float,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> int:
    """Returns when every running Envoy of `admins` is at `versions` (source -> version) and warms no cluster.

    An Envoy that does not run is not waited for: it reads the same files when it starts.

    Returns:
        how many Envoys confirmed.

    Raises:
        Invalid: one of them refused a source (compared with `before`).
        Timeout: one of them was not there after `timeout_s`; ``details["waiting"]`` says which source.
    """
    pattern = _pattern(versions, "version_text|update_rejected") + r"|^cluster_manager\.warming_clusters$"
    deadline = clock() + timeout_s
    confirmed = 0
    for admin in admins:
        pause_s = 0.002
        while True:
            if not admin.running():
                break
            try:
                waiting = _waiting(admin, admin.stats(pattern), versions, before)
            except Unavailable:
                waiting = ["its admin socket"]
            if not waiting:
                confirmed += 1
                break
            if clock() > deadline:
                raise Timeout(
                    f"an Envoy did not take {', '.join(waiting[:3])} within {timeout_s} s",
                    hint="run: lepton doctor",
                    details={"waiting": list(waiting)},
                )
            sleep(pause_s)
            pause_s = min(0.05, pause_s * 1.5)
    return confirmed


def _waiting(
    admin: Admin, stats: Mapping[str, str], versions: Mapping[str, str], before: Mapping[tuple[str, str], int]
) -> list[str]:
    waiting = []
    for source, wanted in versions.items():
        if stats.get(f"{source}.version_text") == wanted:
            continue
        if int(stats.get(f"{source}.update_rejected", "0")) > before.get((str(admin.path), source), 0):
            raise Invalid(
                f"Envoy refused {source}",
                hint="the last good set was put back; see the log of the gateway",
                details={"source": source},
            )
        waiting.append(source)
    if CLUSTERS in versions and int(stats.get("cluster_manager.warming_clusters", "0")) > 0:
        waiting.append("warming clusters")
    return waiting


def _pattern(sources: Iterable[str], names: str) -> str:
    return f"^({'|'.join(re.escape(source) for source in sources)})\\.({names})$"
