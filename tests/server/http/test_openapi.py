"""Requests made from our own document: whatever is valid, or nearly, never breaks the server."""

from typing import Any

import schemathesis
from hypothesis import HealthCheck, settings
from jsonschema import Draft202012Validator
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
)
from starlette.testclient import TestClient

from sounding.server.app import application
from sounding.server.options import ServerOptions
from sounding.server.service import Service
from tests.server.scripted import ScriptedEngine

ENGINE = ScriptedEngine("Well.</think>A short answer.")
APP = application(Service(ENGINE, ENGINE.tokenizer, ServerOptions(model_names=("*",))))
SCHEMA = schemathesis.openapi.from_asgi("/openapi.json", APP)

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    negative_data_rejection,
]


@SCHEMA.parametrize()
@settings(max_examples=8, suppress_health_check=list(HealthCheck))
def test_every_answer_is_described(case: "schemathesis.Case[Any]") -> None:
    case.call_and_validate(checks=CHECKS)


# Found by a drawn request: the document said that `type` is a string.
NULL_TYPE = {
    "type": "namespace",
    "name": "0",
    "tools": [
        {
            "type": "custom",
            "name": "0",
            "format": {"type": None, "syntax": None, "definition": None},
        }
    ],
}


def test_null_is_described_wherever_it_is_read_as_an_absent_field() -> None:
    document = TestClient(APP).get("/openapi.json").json()
    models = document["components"]["schemas"]
    assert len(models) > 50
    for name, model in models.items():
        if "Error" in name or "properties" not in model:
            continue
        for field in model["properties"]:
            place = f"#/components/schemas/{name}/properties/{field}"
            known = Draft202012Validator({"$ref": place, "components": document["components"]})
            assert known.is_valid(None) or field in model.get("required", ()), f"{name}.{field}"


def test_a_null_that_is_accepted_is_valid() -> None:
    body = {"model": "m", "input": "hi", "tools": [NULL_TYPE]}
    with TestClient(APP) as client:
        document = client.get("/openapi.json").json()
        assert client.post("/v1/responses", json=body).status_code == 200
    asked = document["paths"]["/v1/responses"]["post"]["requestBody"]["content"]
    schema = {**asked["application/json"]["schema"], "components": document["components"]}
    Draft202012Validator(schema).validate(body)
    assert not Draft202012Validator(schema).is_valid({**body, "tool": [NULL_TYPE]})
