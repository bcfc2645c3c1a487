"""Requests made from our own document: whatever is valid, or nearly, never breaks the server."""

from typing import Any

import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
)

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
