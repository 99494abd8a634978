"""Goal 12 on a real cell: a burst from 0 to 100 requests a second scales out and back, and nothing fails.

A cell of its own with three nodes; replicas are a small HTTP server that needs 0.1 s for an answer, so 100 requests a
second are ten in flight, and two in flight are wanted of each replica: five replicas. The burst lasts 40 s (10 s with
--quick), then nobody asks; measured until one replica is left. A change of direction is one of the numbers that
control wanted, from the first one above the minimum on. --data is not used.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

import report

from lepton_ai import cloud
from lepton_ai.demo.traffic import Questions, Traffic
from lepton_ai.demo.trial import fields
from lepton_ai.plots import lines
from lepton_ai.settings import Settings

NAME, RATE_PER_S, HIGH = "burst", 100.0, 5
BACK_S = 300.0
SERVER = """
import sys, time, json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def answer(self):
        body = json.dumps({"items": [1]}).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def do_GET(self):
        self.answer()
    def do_POST(self):
        self.rfile.read(int(self.headers.get("content-length", 0)))
        time.sleep(0.1)
        self.answer()
    def log_message(self, *args):
        pass
ThreadingHTTPServer.daemon_threads = True
ThreadingHTTPServer(("0.0.0.0", int(sys.argv[1])), Handler).serve_forever()
"""


def main() -> int:
    options = report.arguments(__doc__ or "")
    home = Path(tempfile.mkdtemp(prefix="lepton-bench-"))
    settings = Settings(home=home, cell="bench")
    try:
        client = cloud.up("bench", settings=settings, nodes=3)
        try:
            rows, goal = measure(client, home, 10.0 if options.quick else 40.0)
        finally:
            client.close()
    finally:
        cloud.down("bench", settings=settings, purge=True)
        shutil.rmtree(home, ignore_errors=True)
    report.write(options.out, "burst", {"12 live": goal}, rows)
    times = [float(str(row["s"])) for row in rows]
    lines(
        options.out / "burst.png",
        {key: (times, [float(str(row[key])) for row in rows]) for key in ("wanted", "ready")},
        title="0 to 100 requests/s and back", x="s", y="replicas",
    )  # fmt: skip
    return 0 if goal["met"] else 1


def measure(client: object, folder: Path, burst_s: float) -> tuple[list[dict[str, object]], dict[str, object]]:
    form = {
        "name": NAME,
        "replicas": {"min": 1, "max": 8},
        "target_in_flight": 2.0,
        "template": {
            "command": [sys.executable, "-c", SERVER, "{port}"],
            "health": {"path": "/"},
            "idempotent": True,
            "resources": {"cpu_milli": 50, "memory_mib": 64},
        },
    }
    url = str(fields(client.deploy(form, wait=True))["url"])  # type: ignore[attr-defined]
    time.sleep(3)
    questions = Questions(url, ('{"user": 1}',), ([1],))
    rows: list[dict[str, object]] = []
    begun_s = time.monotonic()
    with Traffic(questions, folder / "load", rate_per_s=RATE_PER_S, duration_s=burst_s) as traffic:
        while time.monotonic() - begun_s < burst_s:
            look(client, rows, begun_s)
        load = traffic.result()
    until_s = time.monotonic() + BACK_S
    while time.monotonic() < until_s and rows[-1]["wanted"] != 1:
        look(client, rows, begun_s)
    wanted = [int(str(row["wanted"])) for row in rows]
    moves = [after > before for before, after in pairwise(wanted) if after != before]
    turns = sum(one != other for one, other in pairwise(moves))
    out_s = next((float(str(row["s"])) for row in rows if int(str(row["ready"])) >= HIGH), None)
    value = {
        "failed": load.failed, "sent": load.sent, "turns": turns, "most": max(wanted), "least_after": wanted[-1],
        "out_s": out_s, "back_s": round(float(str(rows[-1]["s"])) - burst_s, 1),
    }  # fmt: skip
    met = load.failed == 0 and turns <= 1 and max(wanted) >= HIGH and wanted[-1] == 1
    return rows, report.goal(
        value,
        "requests, changes of direction, replicas, s",
        must={"failed": 0, "turns": 1, "most": HIGH, "least_after": 1},
        met=met,
        protocol=f"real cell, {RATE_PER_S:g} requests/s of 0.1 s for {burst_s:g} s, 2 in flight a replica",
    )


def look(client: object, rows: list[dict[str, object]], begun_s: float) -> None:
    """One row twice a second."""
    time.sleep(0.5)
    found = fields(client.deployment(NAME))  # type: ignore[attr-defined]
    rows.append({
        "s": round(time.monotonic() - begun_s, 1), "wanted": int(found["wanted"]), "ready": int(found["ready"]),
        "why": found.get("scaled", {}).get("reason", "") if isinstance(found.get("scaled"), dict) else "",
    })  # fmt: skip


if __name__ == "__main__":
    raise SystemExit(main())
