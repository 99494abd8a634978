"""Asking Envoy itself whether a set of resources is acceptable, before any running Envoy sees it."""

from __future__ import annotations

import json
import os
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
    """What Envoy says is wrong, without the temporary file's name and without the dump of the message.

    The dump holds the routes' tokens, and an error travels far: only the line after it is kept.
    """
    lines = [line.strip() for line in output.replace(file, "routes").splitlines() if line.strip()]
    if not lines:
        return "no reason given"
    verdicts = [line for line in lines if "validation failed" in line]
    dumped = any("goo.gle/debug" in line for line in lines)
    line = verdicts[-1] if verdicts else lines[-1] if dumped else lines[0]
    return line.lstrip(": ")[:1000]
