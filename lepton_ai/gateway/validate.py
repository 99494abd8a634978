"""Asking Envoy itself whether a set of resources is acceptable, before any running Envoy sees it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import tempfile
from pathlib import Path

from lepton_ai.errors import Invalid, Timeout
from lepton_ai.gateway.bootstrap import binary, static_bootstrap
from lepton_ai.gateway.resources import Rendered


def validate(rendered: Rendered, scratch: Path, *, timeout_s: float = 20.0) -> None:
    """Starts Envoy with `--mode validate` on the set inlined as static (about 0.2 s).

    Raises:
        Invalid: Envoy refuses it; `details["reason"]` is what Envoy says.
        Timeout: no verdict within `timeout_s`.
    """
    handle, name = tempfile.mkstemp(prefix=".check-", suffix=".json", dir=scratch)  # mode 0600: it holds tokens
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(static_bootstrap(rendered), file)
        argv = [str(binary()), "--mode", "validate", "-c", name, "--disable-hot-restart", "-l", "error"]
        argv += ["--log-format", "%v", "--concurrency", "1"]
        done = subprocess.run(argv, capture_output=True, text=True, errors="replace", timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired:
        raise Timeout(
            f"Envoy did not check the routes within {timeout_s} s", hint="is the machine overloaded?"
        ) from None
    finally:
        os.unlink(name)
    if done.returncode != 0:
        reason = explain(done.stderr + done.stdout, name)
        raise Invalid(f"Envoy refuses these routes: {reason}", hint="nothing was changed", details={"reason": reason})


def explain(output: str, file: str) -> str:
    """The first line that names the error, without the temporary file's name."""
    lines = [line.strip() for line in output.replace(file, "routes").splitlines() if line.strip()]
    for line in lines:
        if re.search(r"error|invalid|INVALID|unknown|fail", line):
            return line[:1000]
    return (lines[-1] if lines else "no reason given")[:1000]
