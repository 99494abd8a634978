"""A workload that prints as fast as it can: its neighbours, the disk and whoever reads its log notice little of it."""

from __future__ import annotations

import json
import sys
from typing import Any

from cell import Cell, eventually, service

# 64 KiB a write, as fast as the pipe takes it: far over 50 MB/s on any machine.
LOUD = "import os\nline = b'x' * 255 + b'\\n'\nwhile True: os.write(1, line * 256)"
# What no log was made for: no line ends, broken UTF-8, NULs, a line of 1 MB, terminal escapes.
ODD = (
    "import os\n"
    "out = b'first\\n' + b'\\xff\\xfe\\x80broken\\n' + b'a\\0b\\n' + b'\\x1b[31mred\\x1b[0m\\n'\n"
    "out += b'L' * 1_000_000 + b'\\n' + '中文 line\\n'.encode() + b'last without an end'\n"
    "while out: out = out[os.write(1, out[:65536]):]\n"
)


def run(cell: Cell, name: str, script: str) -> Any:
    template = {"command": [sys.executable, "-u", "-c", script], "resources": {"cpu_milli": 100, "memory_mib": 128}}
    return cell.cloud.run({"name": name, "template": template})


def test_a_loud_replica_hurts_neither_its_neighbours_nor_the_disk(cell: Cell) -> None:
    cell.cloud.deploy({"name": "quiet", "template": service("one"), "replicas": 1})
    loud = run(cell, "loud", LOUD)
    (replica,) = eventually(lambda: [r for r in cell.cloud.replicas(loud.name) if r.phase == "ready"], "it runs")
    folder = next(cell.state.dir.glob(f"nodes/*/replicas/{replica.uid}"))

    def lost() -> list[str]:
        # The newest lines: the notes of what was left out are among them, whatever the rate.
        return [
            line.line for line in cell.cloud.logs(replica.name, lines=2000, grep="dropped") if "lepton:" in line.line
        ]

    said = eventually(lost, "lines are dropped")
    for number in range(300):
        assert cell.cloud.call("quiet", {"value": number})["echo"] == number
    size = sum(file.stat().st_size for file in (folder / "log").iterdir())
    assert size < 80 << 20, "all segments together are bounded"
    assert any("bytes) dropped" in line for line in said)
    assert cell.cloud.replicas(loud.name)[0].phase == "ready", "its agent looks after it as before"
    # A question for a page of it is answered with a page of it.
    page = list(cell.cloud.logs(replica.name, lines=500))
    assert len(page) == 500
    assert [line.ns for line in page] == sorted({line.ns for line in page})
    cell.cloud.delete(loud.name)
    eventually(lambda: all(item.name != loud.name for item in cell.cloud.ps(all=True)), "it is gone")
    cell.cloud.delete("quiet")


def test_what_no_log_was_made_for_is_kept_in_lines_of_text(cell: Cell) -> None:
    job = cell.cloud.wait(run(cell, "odd", ODD))
    assert job.state == "succeeded"
    lines = [line.line for line in cell.cloud.logs(job.name, lines=10_000)]
    assert lines[0] == "first"
    assert any("broken" in line for line in lines)
    assert any("中文 line" in line for line in lines)
    assert lines[-1].startswith("last without an end")
    long = [line for line in lines if line.startswith("LLLL")]
    assert len(long) >= 1
    assert sum(len(line) for line in long) <= 1_000_000
    json.dumps(lines, ensure_ascii=False).encode()
