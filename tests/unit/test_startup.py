"""What a start costs, judged by what is imported, not by a clock: bench/firstminutes.py holds the stopwatch."""

from __future__ import annotations

import json
import subprocess
import sys

ENGINES = {"pyarrow", "duckdb", "deltalake", "obstore", "pandas", "onnx", "onnxruntime", "matplotlib", "torch"}
SERVERS = {"sqlalchemy", "alembic", "starlette", "uvicorn", "psutil", "cryptography"}
CLIENTS = {"numpy", "httpx", "pydantic", "msgspec"}


def imported_by(code: str) -> set[str]:
    """The top-level packages (and the rooms of lepton_ai) in sys.modules after `code` ran in a fresh interpreter."""
    script = (
        f"import json, sys\ntry:\n    {code}\nexcept SystemExit: pass\n"
        "sys.stdout.write('\\n' + json.dumps(sorted(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True)
    modules = json.loads(done.stdout.splitlines()[-1])
    rooms = {".".join(module.split(".")[:2]) for module in modules if module.startswith("lepton_ai.")}
    return {module.split(".")[0] for module in modules} | rooms


def test_help_imports_nothing_heavy() -> None:
    for arguments in (["--help"], ["deploy", "--help"], ["--version"], []):
        loaded = imported_by(f"from lepton_ai.cli.__main__ import main; main({arguments!r})")
        assert "lepton_ai.cli" in loaded
        assert not loaded & (ENGINES | SERVERS | CLIENTS), arguments
        assert not loaded & {"lepton_ai.cloud", "lepton_ai.client", "lepton_ai.spec", "lepton_ai.models"}, arguments


def test_the_package_imports_nothing_heavy() -> None:
    assert not imported_by("import lepton_ai") & (ENGINES | SERVERS | CLIENTS)


def test_the_control_plane_holds_no_data_engine() -> None:
    loaded = imported_by("import lepton_ai.api.app, lepton_ai.control")
    assert not loaded & ENGINES


def test_a_node_holds_no_database() -> None:
    loaded = imported_by("import lepton_ai.node.server, lepton_ai.node.agent")
    assert not loaded & (ENGINES | {"sqlalchemy", "alembic", "starlette", "cryptography", "numpy", "lepton_ai.store"})


def test_a_model_server_loads_only_what_it_serves_with() -> None:
    loaded = imported_by("import lepton_ai.serve.__main__, lepton_ai.serve.app, lepton_ai.serve.runtime, uvicorn")
    assert not loaded & (
        (ENGINES - {"onnxruntime"}) | {"sqlalchemy", "alembic", "pydantic", "httpx", "lepton_ai.store"}
    )
