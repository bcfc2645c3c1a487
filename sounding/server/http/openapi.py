"""The OpenAPI document, generated from the models that validate requests."""

from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from pydantic.json_schema import models_json_schema

from sounding.server.http.errors import (
    Shape,
    anthropic_error,
    llama_error,
    ollama_error,
    openai_error,
)
from sounding.server.http.wire import Json, Wire

_REF = "#/components/schemas/{model}"
_STRING: Json = {"type": "string"}
_NULLABLE: Json = {"type": ["string", "null"]}


@dataclass(frozen=True)
class Operation:
    """A route that accepts a request body."""

    path: str
    model: type[Wire]
    summary: str
    shape: Shape = openai_error
    stream: str | None = "text/event-stream"
    """The media type of streamed answers; None if answers are never streamed."""


_EVENT: Json = {
    "type": "object",
    "properties": {"event": {"type": "string"}, "data": {"type": "string"}},
    "required": ["data"],
}


def _object(**properties: Json) -> Json:
    return {"type": "object", "properties": properties, "required": list(properties)}


_ERRORS: dict[Shape, tuple[str, Json]] = {
    openai_error: (
        "OpenAIError",
        _object(error=_object(message=_STRING, type=_STRING, param=_NULLABLE, code=_NULLABLE)),
    ),
    anthropic_error: (
        "AnthropicError",
        _object(type={"const": "error"}, error=_object(type=_STRING, message=_STRING)),
    ),
    llama_error: (
        "LlamaError",
        _object(error=_object(code={"type": "integer"}, message=_STRING, type=_STRING)),
    ),
    ollama_error: ("OllamaError", _object(error=_STRING)),
}


def document(operations: list[Operation], gets: list[str]) -> Json:
    """Describe the server."""
    references, schemas = models_json_schema(
        [(operation.model, "validation") for operation in operations], ref_template=_REF
    )
    components = dict(schemas.get("$defs", {}))
    components.update(dict(_ERRORS.values()))
    paths: dict[str, Any] = {path: {"get": _read(path)} for path in gets}
    for operation in operations:
        reference = references[(operation.model, "validation")]
        paths[operation.path] = {"post": _write(operation, reference)}
    return {
        "openapi": "3.1.0",
        "info": {"title": "Sounding", "version": version("sounding")},
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
        },
        "security": [{}, {"bearer": []}, {"key": []}],
    }


def _write(operation: Operation, reference: Json) -> Json:
    content: Json = {"application/json": {"schema": {"type": "object"}}}
    if operation.stream is not None:
        streamed = _EVENT if operation.stream == "text/event-stream" else _STRING
        content[operation.stream] = {"schema": streamed}
    return {
        "summary": operation.summary,
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": reference}},
        },
        "responses": {
            "200": {"description": "The answer.", "content": content},
            "4XX": _refused(operation.shape, "The request is invalid, or refused at this time."),
            "503": _refused(operation.shape, "The server is stopping."),
        },
    }


def _read(path: str) -> Json:
    kind = "text/plain" if path == "/metrics" else "application/json"
    read: Json = {
        "responses": {
            "200": {"description": "The answer.", "content": {kind: {"schema": {}}}},
            "4XX": _refused(openai_error, "The request is invalid."),
        }
    }
    if "{name}" in path:
        read["parameters"] = [{"name": "name", "in": "path", "required": True, "schema": _STRING}]
    return read


def _refused(shape: Shape, description: str) -> Json:
    reference = {"$ref": _REF.format(model=_ERRORS[shape][0])}
    return {"description": description, "content": {"application/json": {"schema": reference}}}
