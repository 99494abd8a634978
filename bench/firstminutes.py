"""Goal 24, the first minutes: the start of `lepton`, answers to common mistakes, what an idle cell costs, the demo.

Protocol: `lepton --help` ten times, median, from launch to exit; each mistake is typed against a real cell of its own
(in a temporary LEPTON_AI_HOME) and must end with exit 1 or 2, in at most 6 lines, with a `hint:`, without a traceback;
then the cell is left alone, and the memory (PSS) and processor time of all its processes are added up over 30 s. The
stages of the demo are read from demo.json, where `make demo` was run before. What the demo downloads is asked of pip.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import report

ROOT = Path(__file__).resolve().parents[1]
MAX_LINES = 6
LEPTON = [sys.executable, "-m", "lepton_ai.cli"]


@dataclass(frozen=True)
class Mistake:
    """What someone typed, and what they meant to find out. `files` are written to the working folder first."""

    words: tuple[str, ...]
    what: str
    files: dict[str, str | bytes] = field(default_factory=dict)
    env: dict[str, str] = field(default_factory=dict)
    says: str = ""  # must be in the answer


SPEC = 'name = "web"\nreplicas = {REPLICAS}\n[template]\ncommand = ["python3", "-m", "http.server", "{port}"]\n'

MISTAKES = (
    Mistake(("deplyo", "movies"), "a mistyped command", says="deploy"),
    Mistake(("deploy", "x.toml", "--relicas", "2"), "a mistyped flag", says="--replicas"),
    Mistake(("deploy",), "an argument left out", says="SOURCE"),
    Mistake(("deploy", "absent.toml"), "a file that is not there", says="absent.toml"),
    Mistake(("deploy", "bad.toml"), "a file that is not TOML", {"bad.toml": 'name = "web\n'}, says="bad.toml"),
    Mistake(
        ("deploy", "unknown.toml"),
        "an unknown field",
        {"unknown.toml": SPEC.replace("{REPLICAS}", "{min = 1, max = 1}") + 'memroy = "1GiB"\n'},
        says="memroy",
    ),
    Mistake(
        ("deploy", "bounds.toml"),
        "bounds the wrong way round",
        {"bounds.toml": SPEC.replace("{REPLICAS}", "{min = 4, max = 2}")},
        says="4",
    ),
    Mistake(
        ("deploy", "name.toml"),
        "a name that cannot be one",
        {"name.toml": SPEC.replace("web", "My Web!").replace("{REPLICAS}", "{min = 1, max = 1}")},
        says="My Web!",
    ),
    Mistake(
        ("deploy", "huge.toml", "--yes"),
        "more than any node has",
        {"huge.toml": SPEC.replace("{REPLICAS}", "{min = 1, max = 1}") + "resources = {cpu_milli = 900000}\n"},
        says="node",
    ),
    Mistake(("deploy", "movies@99", "--name", "movies"), "a model version that does not exist", says="movies@99"),
    Mistake(("call", "nobody", "{}"), "a deployment that does not exist", says="nobody"),
    Mistake(("call", "nobody", "{user: 7}"), "a body that is not JSON", says="JSON"),
    Mistake(("rollback", "nobody"), "rolling back what was never deployed", says="nobody"),
    Mistake(("logs", "nobody"), "the log of nothing", says="nobody"),
    Mistake(("query", "selct 1"), "a query that does not parse", says="selct"),
    Mistake(("query", "select * from nowhere"), "a table that does not exist", says="nowhere"),
    Mistake(("query", "select * from read_csv('/etc/passwd')"), "a query that reaches for a file"),
    Mistake(("ps",), "a token that is not one", env={"LEPTON_AI_URL": "{api}", "LEPTON_AI_TOKEN": "lta_wrong"}),
    Mistake(("ps", "--cell", "elsewhere"), "a cell that is not running", says="elsewhere"),
    Mistake(("ps",), "an unknown setting", {"lepton.toml": "[settings]\ngatway_port = 1\n"}, says="gateway_port"),
    Mistake(
        ("up", "--cell", "open"),
        "listening to the world without TLS",
        env={"LEPTON_AI_GATEWAY_HOST": "0.0.0.0"},
        says="TLS",
    ),
    Mistake(("up", "--cell", "second"), "a port in use", env={"LEPTON_AI_API_PORT": "{api_port}"}, says="{api_port}"),
    Mistake(("node", "drain", "node-9", "--yes"), "a node that does not exist", says="node-9"),
    Mistake(("rm", "nobody"), "a removal with nobody there to confirm it", says="yes"),
)


def main() -> int:
    args = report.arguments(__doc__)
    rows: list[dict[str, object]] = []
    goals: dict[str, dict[str, object]] = {}
    goals["24.help"] = _help(rows, 3 if args.quick else 10)
    with tempfile.TemporaryDirectory(prefix="first-") as folder:
        home, work = Path(folder, "home"), Path(folder, "work")
        work.mkdir()
        env = {**os.environ, "LEPTON_AI_HOME": str(home), "PYTHONPATH": str(ROOT)}
        env = {key: value for key, value in env.items() if key == "LEPTON_AI_HOME" or not key.startswith("LEPTON_AI_")}
        try:
            started = time.monotonic()
            up = lepton(["up", "--yes"], env, work)
            if up.returncode != 0:
                print(up.stderr, file=sys.stderr)
                return 1
            rows.append({"what": "lepton up", "s": round(time.monotonic() - started, 2)})
            goals["24.mistakes"] = _mistakes(rows, env, work, home)
            goals.update(_idle(rows, home, 5 if args.quick else 30))
        finally:
            lepton(["down", "--all", "--purge", "--yes"], env, work)
            left = [process.pid for process in of_cell(home)]
    goals["24.left"] = report.goal(
        len(left),
        "processes left",
        must="0",
        met=not left,
        protocol="after lepton down, processes that name the cell's folder",
    )
    goals.update(_download(args.quick))
    goals.update(_demo(rows))
    report.write(args.out, "firstminutes", goals, rows)
    return 0 if all(line["met"] for line in goals.values()) else 1


def lepton(words: list[str], env: dict[str, str], cwd: Path) -> subprocess.CompletedProcess[str]:
    """One `lepton` command, as a user would type it, with nobody at the keyboard."""
    return subprocess.run(
        [*LEPTON, *words],
        env=env,
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
        stdin=subprocess.DEVNULL,
    )


def _help(rows: list[dict[str, object]], rounds: int) -> dict[str, object]:
    installed = Path(sys.executable).parent / "lepton"
    command = [str(installed)] if installed.exists() else LEPTON
    times: dict[str, list[float]] = {"lepton --help": [], "python -c pass": []}
    for _ in range(rounds):
        for what, words in (
            ("lepton --help", [*command, "--help"]),
            ("python -c pass", [sys.executable, "-c", "pass"]),
        ):
            started = time.perf_counter()
            subprocess.run(words, cwd=ROOT, stdout=subprocess.DEVNULL, check=True)
            times[what].append((time.perf_counter() - started) * 1000)
    for what, values in times.items():
        rows.append({"what": what, "ms": [round(value, 1) for value in values]})
    median = statistics.median(times["lepton --help"])
    return report.goal(
        round(median, 1),
        "ms",
        must="< 200",
        met=median < 200,
        protocol=f"median of {rounds}, launch to exit",
        rounds=rounds,
    )


def _mistakes(rows: list[dict[str, object]], env: dict[str, str], work: Path, home: Path) -> dict[str, object]:
    state = json.loads((home / "cells" / "local" / "cell.json").read_text("utf-8"))
    known = {"{api}": str(state["api_url"]), "{api_port}": str(state["api_port"])}
    good = 0
    for number, mistake in enumerate(MISTAKES):
        folder = work / str(number)
        folder.mkdir()
        for name, content in mistake.files.items():
            data = content.encode() if isinstance(content, str) else content
            (folder / name).write_bytes(data)
        extra = {key: known.get(value, value) for key, value in mistake.env.items()}
        done = lepton(list(mistake.words), {**env, **extra}, folder)
        text = (done.stdout + done.stderr).strip()
        lines = text.splitlines()
        faults = [
            fault
            for fault, is_so in (
                (f"exit code {done.returncode}", done.returncode not in (1, 2)),
                (f"{len(lines)} lines", len(lines) > MAX_LINES),
                ("no error:", not any(line.startswith("error: ") for line in lines)),
                ("no hint:", not any(line.startswith("hint: ") for line in lines)),
                ("a traceback", "Traceback" in text),
                ("an internal error", "error: internal" in text),
                ("not what is wrong", known.get(mistake.says, mistake.says).lower() not in text.lower()),
            )
            if is_so
        ]
        good += not faults
        rows.append({"what": mistake.what, "typed": " ".join(mistake.words), "answer": lines, "faults": faults})
        if faults:
            print(f"   {mistake.what}: {', '.join(faults)}\n      " + "\n      ".join(lines[:8]), file=sys.stderr)
    protocol = f"exit 1 or 2, at most {MAX_LINES} lines, error: and hint:, says what is wrong, no traceback"
    return report.goal(good, f"of {len(MISTAKES)} mistakes", must="all", met=good == len(MISTAKES), protocol=protocol)


def _idle(rows: list[dict[str, object]], home: Path, seconds: int) -> dict[str, dict[str, object]]:
    _until_calm(home, seconds)
    before = {process.pid: _cpu_s(process) for process in of_cell(home)}
    started = time.monotonic()
    time.sleep(seconds)
    elapsed = time.monotonic() - started
    processes = list(of_cell(home))
    used_s = sum(_cpu_s(process) - before.get(process.pid, 0.0) for process in processes)
    total_mb = 0.0
    for process in processes:
        pss_mb = _pss_mb(process)
        total_mb += pss_mb
        cpu = (_cpu_s(process) - before.get(process.pid, 0.0)) / elapsed * 100
        name = " ".join(process.cmdline())[:160].replace(str(home), "HOME")
        rows.append(
            {
                "what": "idle process",
                "pid": process.pid,
                "pss_mb": round(pss_mb, 1),
                "cpu_percent": round(cpu, 2),
                "is": name,
            }
        )
    percent = used_s / elapsed * 100
    held = f"PSS of all {len(processes)} processes of a cell that nobody has asked for a minute, three nodes"
    spent = f"user and system time of them over {seconds} s"
    return {
        "24.memory": report.goal(round(total_mb), "MB", must="<= 400", met=total_mb <= 400, protocol=held),
        "24.cpu": report.goal(round(percent, 2), "% of a core", must="<= 3", met=percent <= 3, protocol=spent),
    }


def _until_calm(home: Path, seconds: int) -> None:
    """Idle means that nobody has asked for a while: the last query's worker ends by itself after a minute."""
    time.sleep(min(5, seconds))  # what starting left to do
    until_s = time.monotonic() + (120 if seconds >= 30 else 0)
    while time.monotonic() < until_s and any("lepton_ai.lake" in " ".join(_words(p)) for p in of_cell(home)):
        time.sleep(1)


def _words(process: psutil.Process) -> list[str]:
    try:
        return list(process.cmdline())
    except psutil.NoSuchProcess:
        return []


def of_cell(home: Path) -> Iterator[psutil.Process]:
    """Every process whose command line or working folder lies in `home`, and their descendants."""
    found: dict[int, psutil.Process] = {}
    for process in psutil.process_iter():
        try:
            words = " ".join(process.cmdline())
            if process.pid == os.getpid() or not (str(home) in words or process.cwd().startswith(str(home))):
                continue
            found[process.pid] = process
            found.update({child.pid: child for child in process.children(recursive=True)})
        except (psutil.NoSuchProcess, psutil.AccessDenied, OSError):
            continue
    yield from found.values()


def _cpu_s(process: psutil.Process) -> float:
    try:
        times = process.cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return float(times.user + times.system)


def _pss_mb(process: psutil.Process) -> float:
    try:
        full = process.memory_full_info()
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return 0.0
    return float(getattr(full, "pss", 0) or full.rss) / 1e6


def _download(quick: bool) -> dict[str, dict[str, object]]:
    if quick:
        return {}
    with tempfile.TemporaryDirectory(prefix="first-") as folder:
        subprocess.run([sys.executable, "-m", "venv", folder], check=True, stdout=subprocess.DEVNULL)
        command = [str(Path(folder, "bin", "python")), str(ROOT / ".ci" / "download.py"), ".", "--json"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    if done.returncode != 0:
        return {"24.download": report.goal(None, "MB", must="<= 300", met=False, protocol="pip did not say")}
    said = json.loads(done.stdout)
    value = said["download_mb"]
    protocol = (
        f"files that pip would fetch into an empty environment, {said['packages']} packages, {said['unknown']} unknown"
    )
    met = value <= 300 and not said["unknown"]
    return {"24.download": report.goal(value, "MB", must="<= 300", met=met, protocol=protocol)}


def _demo(rows: list[dict[str, object]]) -> dict[str, dict[str, object]]:
    path = ROOT / "demo.json"
    if not path.exists():
        rows.append({"what": "demo", "note": "no demo.json: run make demo first"})
        return {}
    demo = json.loads(path.read_text("utf-8"))
    rows.append({"what": "demo", "stages": demo.get("stages")})
    value = float(demo["stages_s"])
    return {
        "24.demo": report.goal(
            value, "s", must="< 60", met=value < 60, protocol="stages after installing, from demo.json"
        )
    }


if __name__ == "__main__":
    sys.exit(main())
