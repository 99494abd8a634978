"""The description of a model's routes (OpenAPI 3.1), made from its signature. Owns the document only."""

from __future__ import annotations

from lepton_ai.serve.signature import Signature, Tensor


def openapi(signature: Signature, name: str, version: str) -> dict[str, object]:
    """The document that ``GET /openapi.json`` answers."""
    infer = {
        "post": {
            "summary": "Infer (Open Inference Protocol, V2)",
            "operationId": "infer",
            "requestBody": _json(_v2_request(signature)),
            "responses": {"200": {"description": "The outputs", **_json(_v2_answer(signature))}, **_ERRORS},
        }
    }
    plain = {
        "summary": "Infer in plain JSON: field names are input names; a single row may leave the batch dimension out",
        "operationId": "call",
        "requestBody": _json(_plain(signature.inputs)),
        "responses": {"200": {"description": "The outputs", **_json(_plain(signature.outputs))}, **_ERRORS},
    }
    reads = {
        "/": ("about", "What this is and how to call it"),
        "/v2": ("server", "The server"),
        "/v2/health/live": ("live", "200 while the process runs"),
        "/v2/health/ready": ("ready", "200 when requests are accepted"),
        f"/v2/models/{name}": ("model", "The model's inputs and outputs"),
        f"/v2/models/{name}/ready": ("model_ready", "200 when the model accepts requests"),
        "/metrics": ("metrics", "Prometheus text"),
    }
    paths: dict[str, dict[str, object]] = {
        path: {"get": {"summary": text, "operationId": key, "responses": {"200": {"description": "OK"}}}}
        for path, (key, text) in reads.items()
    }
    paths["/"]["post"] = plain
    paths[f"/v2/models/{name}/infer"] = dict(infer)
    return {
        "openapi": "3.1.0",
        "info": {"title": name, "version": version},
        "paths": paths,
        "components": {"schemas": {"Error": _ERROR}},
    }


_ERROR: dict[str, object] = {
    "type": "object",
    "required": ["code", "message"],
    "properties": {key: {"type": "string"} for key in ("code", "message", "hint", "error")},
}


def _json(schema: dict[str, object]) -> dict[str, object]:
    return {"content": {"application/json": {"schema": schema}}}


_ERRORS: dict[str, object] = {
    status: {"description": text, **_json({"$ref": "#/components/schemas/Error"})}
    for status, text in (
        ("400", "The request is not acceptable"),
        ("413", "The body is too large"),
        ("429", "The queue is full; see Retry-After"),
        ("503", "Not ready; see Retry-After"),
    )
}


def _v2_request(signature: Signature) -> dict[str, object]:
    return {
        "type": "object",
        "required": ["inputs"],
        "properties": {
            "id": {"type": "string"},
            "parameters": {"type": "object"},
            "inputs": {"type": "array", "items": {"oneOf": [_v2_tensor(tensor) for tensor in signature.inputs]}},
            "outputs": {"type": "array", "items": {"type": "object", "properties": {"name": {"type": "string"}}}},
        },
    }


def _v2_answer(signature: Signature) -> dict[str, object]:
    return {
        "type": "object",
        "properties": {
            "model_name": {"type": "string"},
            "model_version": {"type": "string"},
            "id": {"type": "string"},
            "outputs": {"type": "array", "items": {"oneOf": [_v2_tensor(tensor) for tensor in signature.outputs]}},
        },
    }


def _v2_tensor(tensor: Tensor) -> dict[str, object]:
    return {
        "type": "object",
        "required": ["name", "shape", "datatype", "data"],
        "properties": {
            "name": {"const": tensor.name},
            "datatype": {"const": tensor.datatype},
            "shape": {"type": "array", "items": {"type": "integer"}, "examples": [tensor.public["shape"]]},
            "data": {"type": "array", "description": "flat in row-major order, or nested as the shape says"},
        },
    }


def _plain(tensors: tuple[Tensor, ...]) -> dict[str, object]:
    properties: dict[str, object] = {}
    for tensor in tensors:
        schema: dict[str, object] = {"type": _JSON_TYPES[tensor.dtype.kind]}
        for _ in tensor.shape[1:] if tensor.dynamic else tensor.shape:
            schema = {"type": "array", "items": schema}
        batch: dict[str, object] = {"type": "array", "items": schema}
        properties[tensor.name] = {"oneOf": [schema, batch]} if tensor.dynamic else schema
    return {"type": "object", "properties": properties}


_JSON_TYPES = {"b": "boolean", "i": "integer", "u": "integer", "f": "number", "O": "string"}
