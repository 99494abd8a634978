"""Goal 4, cold start: a model server from its launch to the first correct answer, and from zero through a cell.

Protocol: `python -m lepton_ai.serve` with the recommender's container is launched anew 20 times; the clock runs from
before the process is made until an answer equals numpy's (asked every 2 ms). Then a deployment of a real cell scales
to zero by itself, and one request (in later rounds several at once) through the gateway is held until a replica
answers it: the clock runs from sending to the answer.
"""

from __future__ import annotations

import http.client
import json
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import report
from changes import free
from stand import Stand, stand, trained

from lepton_ai.demo.trial import fields, until
from lepton_ai.models import RecommenderModel

NAME = "sleeper"
CALLERS = 8


def main() -> int:
    options = report.arguments(__doc__ or "")
    name, model = trained(options.data[0] if options.data else None)
    rows: list[dict[str, object]] = []
    goals = {"4.launch": launches(model, rows, 3 if options.quick else 20)}
    with stand(model) as cell:
        goals["4.from_zero"] = from_zero(cell, rows, 1 if options.quick else 10)
    for row in rows:
        row["data"] = name
    report.write(options.out, "coldstart", goals, rows)
    return 0 if all(goal["met"] for goal in goals.values()) else 1


def launches(model: RecommenderModel, rows: list[dict[str, object]], count: int) -> dict[str, object]:
    user = model.users[0].item()
    expected = model.predict([user], k=10).items[0].tolist()
    times_s = []
    with tempfile.TemporaryDirectory(prefix="lepton-bench-") as folder:
        saved = model.save(Path(folder) / "model.lepton")
        for _ in range(count):
            times_s.append(launch(saved, user, expected))
            rows.append({"what": "launch", "s": round(times_s[-1], 4)})
    ordered = sorted(times_s)
    value = {"p50_s": round(statistics.median(ordered), 3), "max_s": round(ordered[-1], 3)}
    return report.goal(
        value, "s", must="every one <= 1", met=ordered[-1] <= 1.0, trials=count,
        protocol=f"process launch to first correct answer, {count} launches, container of {model_mb(model):.0f} MB",
    )  # fmt: skip


def model_mb(model: RecommenderModel) -> float:
    return len(model.container().pack()) / 1e6


def launch(saved: Path, user: object, expected: list[object]) -> float:
    """Seconds from before the process is made to the first correct answer."""
    port = free()
    command = [sys.executable, "-m", "lepton_ai.serve", "--model", str(saved), "--name", NAME, "--port", str(port)]
    started_s = time.perf_counter()
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while True:
            status, answer = ask(port, "/", user)
            if status == 200:
                assert answer["items"] == expected, answer
                return time.perf_counter() - started_s
            assert process.poll() is None, f"the server ended with {process.poll()}"
            assert time.perf_counter() - started_s < 60, "no answer within 60 s"
            time.sleep(0.002)
    finally:
        process.terminate()
        process.wait()


def ask(port: int, path: str, user: object, timeout_s: float = 60.0) -> tuple[int, dict[str, object]]:
    """(status, answer) of one question; status 0 when nobody is there."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout_s)
    try:
        connection.request("POST", path, json.dumps({"user": user}), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    except (OSError, http.client.HTTPException):
        return 0, {}
    finally:
        connection.close()


def from_zero(cell: Stand, rows: list[dict[str, object]], count: int) -> dict[str, object]:
    """Rounds from zero: the first with one caller, every other one with several at once."""
    form = cell.form(NAME, low=1, idle_timeout_s=1)
    url = cell.deploy(form)
    port, path = int(url.split(":")[2].split("/")[0]), "/" + url.split("/", 3)[3]
    users = cell.model.users[:CALLERS].tolist()
    expected = cell.model.predict(users, k=10).items.tolist()
    times_s, failed, asked = [], 0, 0
    for number in range(count):
        idle_s = until(lambda: asleep(cell), since_s=time.monotonic(), timeout_s=120)
        assert idle_s < 120, f"it did not scale to zero: {fields(cell.client.deployment(NAME))}"
        callers = 1 if number % 2 == 0 else CALLERS
        with ThreadPoolExecutor(callers) as pool:
            started_s = time.perf_counter()
            answers = list(pool.map(lambda user: (*ask(port, path, user), time.perf_counter()), users[:callers]))
        for (status, answer, at_s), wanted in zip(answers, expected, strict=False):
            asked += 1
            failed += status != 200 or answer.get("items") != wanted
            times_s.append(at_s - started_s)
        rows.append({"what": "from zero", "callers": callers, "s": round(max(times_s[-callers:]), 3)})
    value = {"failed": failed, "p50_s": round(statistics.median(times_s), 3), "max_s": round(max(times_s), 3)}
    return report.goal(
        value, "requests, s, s", must="0 failed", met=failed == 0,
        protocol=f"{asked} requests in {count} rounds to a deployment at zero, 1 and {CALLERS} callers in turn, held "
        "by the activator until a replica answers",
    )  # fmt: skip


def asleep(cell: Stand) -> bool:
    """Scaled to zero, and no process of it left."""
    idle = fields(cell.client.deployment(NAME))["state"] == "idle"
    return idle and all(fields(item)["phase"] == "exited" for item in cell.client.replicas(NAME))


if __name__ == "__main__":
    raise SystemExit(main())
