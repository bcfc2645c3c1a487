"""What stands for nothing: null in any field, blank arguments, an empty model name."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sounding.server.app import OPERATIONS
from sounding.server.http.wire import read_model
from sounding.server.options import ServerOptions
from tests.server.live import Live, live, post
from tests.server.scripted import ScriptedEngine

CASES = Path(__file__).parents[2] / "vectors" / "cases"
ASK = {"role": "user", "content": "time?"}
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [ASK]},
    "/v1/completions": {"prompt": "a"},
    "/v1/responses": {"input": "a"},
    "/v1/messages": {"messages": [ASK], "max_tokens": 4},
    "/v1/messages/count_tokens": {"messages": [ASK]},
    "/infill": {"input_prefix": "a"},
    "/completion": {"prompt": "a"},
    "/api/generate": {"prompt": "a"},
    "/api/chat": {"messages": [ASK]},
    "/api/show": {},
}


@pytest.fixture(scope="module")
def server() -> Iterator[Live]:
    with live(ScriptedEngine("9:00"), ServerOptions(model_names=("nano",))) as running:
        yield running


def case(name: str) -> dict[str, Any]:
    body: dict[str, Any] = json.loads((CASES / name).read_text(encoding="utf-8"))
    return body


def prompt(server: Live) -> str:
    assert isinstance(server.engine, ScriptedEngine)
    return server.engine.prompts[-1]


@pytest.mark.parametrize("name", ["null-part.chat.json", "null-assistant.chat.json"])
def test_null_fields_of_other_servers(server: Live, name: str) -> None:
    """As structures of Go, C# and Java clients are written out; see tests/vectors/cases."""
    answer = post(server.url + "/v1/chat/completions", json=case(name))
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize("path", BODIES)
def test_null_at_the_top(server: Live, path: str) -> None:
    nulls = dict.fromkeys(["guided_json", "session_id", "extra_body", "repetition_penalty"])
    answer = post(server.url + path, json={"model": "nano", **BODIES[path], **nulls})
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: str(operation.path))
def test_null_in_every_field_that_need_not_be_given(operation: Any) -> None:
    fields = operation.model.model_fields.items()
    optional = {field.alias or name for name, field in fields if not field.is_required()}
    body = {"model": "nano", **BODIES.get(operation.path, {})}
    nulls = dict.fromkeys(optional - body.keys())
    read = read_model(operation.model, {**body, **nulls})
    assert read == read_model(operation.model, body)


def test_a_field_that_says_something_is_still_refused(server: Live) -> None:
    body = {"model": "nano", **BODIES["/v1/chat/completions"], "guided_json": {}}
    answer = post(server.url + "/v1/chat/completions", json=body)
    assert answer.status_code == 400 and "guided_json" in answer.text


def test_null_for_what_must_be_given(server: Live) -> None:
    answer = post(server.url + "/v1/completions", json={"model": "nano", "prompt": None})
    assert answer.status_code == 400 and "prompt" in answer.text


@pytest.mark.parametrize("arguments", ["", " \n", "null", " null ", None])
def test_calls_with_empty_arguments_are_calls_without_any(
    server: Live, arguments: str | None
) -> None:
    """`arguments` as some clients add them up from a stream that had none."""
    body = case("empty-arguments.chat.json")
    body["messages"][1]["tool_calls"][0]["function"]["arguments"] = arguments
    assert post(server.url + "/v1/chat/completions", json=body).status_code == 200
    shown = prompt(server)
    assert 'invoke name="now"' in shown and "parameter" not in shown
    del body["messages"][1]["tool_calls"][0]["function"]["arguments"]
    post(server.url + "/v1/chat/completions", json=body)
    assert prompt(server) == shown
