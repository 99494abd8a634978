"""What the public client asks for and this release does not have: fine-tuning jobs and Ray clusters.

Lists are empty and names are unknown, so that the client's own commands go on; to create one is refused (501) in words.
"""

from __future__ import annotations

from typing import Any

from lepton_ai.api.call import Call, Router, missing
from lepton_ai.errors import NotFound, Unsupported


def add(router: Router) -> None:
    router.add("GET", "/finetune/jobs", "read", lambda _: {"finetune_jobs": [], "total": 0})
    router.add("POST", "/finetune/jobs", "write", _no_tuning)
    for method in ("GET", "PATCH", "DELETE"):
        action = "read" if method == "GET" else "write"
        router.add(method, "/finetune/jobs/{name}", action, _unknown("fine-tuning job", "lep finetune list"))  # type: ignore[arg-type]
    router.add("GET", "/finetune/trainers", "read", lambda _: [])
    router.add("GET", "/finetune/supported-models", "read", lambda _: [])

    router.add("GET", "/rayclusters", "read", lambda _: [])
    router.add("POST", "/rayclusters", "write", _no_ray)
    for method in ("GET", "PATCH", "DELETE"):
        action = "read" if method == "GET" else "write"
        router.add(method, "/rayclusters/{name}", action, _unknown("Ray cluster", "lep raycluster list"))  # type: ignore[arg-type]


def _no_tuning(_: Call) -> Any:
    hint = "run the training as a job: lep job create -t torchrun, or lepton run"
    raise Unsupported("this release has no fine-tuning jobs", hint=hint)


def _no_ray(_: Call) -> Any:
    raise Unsupported("this release has no Ray clusters", hint="run Ray inside a job: ray start --head in its command")


def _unknown(kind: str, command: str) -> Any:
    def handler(call: Call) -> NotFound:
        raise missing(kind, call.path("name"), [], command)

    return handler
