"""The model server: what runs inside a replica. ``python -m lepton_ai.serve --model FILE --port PORT``.

Reading order: container (the file) -> signature (its tensors) -> codec (JSON to arrays and back) -> batch (who runs
together) -> runtime (ONNX Runtime) -> metrics -> app (routes) -> __main__ (the process).

It owns inference over HTTP. It does not own training or saving (models), tokens of workspaces (tenancy and the
gateway) or its own restarts (node). Nothing here imports pydantic, starlette or ``lepton_ai.spec``: a cold start,
from launch to the first correct answer, has a budget of one second.
"""
