"""What a request is promised of the answer's form, on each route that promises it.

A random network writes the answers, so that whatever is not forbidden is written.
"""

import dataclasses
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from sounding.engine.engine import Engine
from sounding.engine.settings import EngineSettings
from sounding.presets import tiny
from sounding.server.options import ServerOptions
from tests.engine.scripted import small_tokenizer
from tests.networks import as_network, make_network
from tests.server.live import Live, live, post

ASK = [{"role": "user", "content": "What size?"}]
SIZES = {"type": "string", "enum": ["small", "large"]}
PARAMETERS = {
    "$defs": {"Size": SIZES},
    "type": "object",
    "properties": {"size": {"$ref": "#/$defs/Size"}, "sure": {"anyOf": [{"const": True}]}},
    "required": ["size", "sure"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def server() -> Iterator[Live]:
    tokenizer = small_tokenizer()
    config = dataclasses.replace(
        tiny(),
        quantization_config=None,
        expert_dtype=None,
        num_hidden_layers=2,
        compress_ratios=(128, 4, 0),
        vocab_size=tokenizer.num_tokens,
    )
    network = as_network(make_network(config))
    engine = Engine(network, tokenizer, EngineSettings(context_tokens=2000))
    options = ServerOptions(thinking=False, model_names=("nano",))
    with live(engine, options, tokenizer=tokenizer) as running:
        yield running


def openai_tool(parameters: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "pick", "parameters": parameters}}


def chat_calls(parameters: Any) -> dict[str, Any]:
    return {
        "messages": ASK,
        "max_tokens": 300,
        "tools": [openai_tool(parameters)],
        "tool_choice": "required",
        "parallel_tool_calls": False,
    }


def responses_calls(parameters: Any) -> dict[str, Any]:
    return {
        "input": "What size?",
        "max_output_tokens": 300,
        "tools": [{"type": "function", "name": "pick", "parameters": parameters}],
        "tool_choice": {"type": "function", "name": "pick"},
        "parallel_tool_calls": False,
    }


def messages_calls(parameters: Any) -> dict[str, Any]:
    return {
        "messages": ASK,
        "max_tokens": 300,
        "tools": [{"name": "pick", "input_schema": parameters}],
        "tool_choice": {"type": "any", "disable_parallel_tool_use": True},
    }


def of_chat(answer: Any) -> tuple[str | None, Any]:
    message = answer["choices"][0]["message"]
    return message["content"], json.loads(message["tool_calls"][0]["function"]["arguments"])


def of_responses(answer: Any) -> tuple[str | None, Any]:
    (call,) = answer["output"]
    return None, json.loads(call["arguments"])


def of_messages(answer: Any) -> tuple[str | None, Any]:
    (block,) = answer["content"]
    return None, block["input"]


Route = tuple[str, Callable[[Any], dict[str, Any]], Callable[[Any], tuple[str | None, Any]]]
CALLS: list[Route] = [
    ("/v1/chat/completions", chat_calls, of_chat),
    ("/v1/responses", responses_calls, of_responses),
    ("/v1/messages", messages_calls, of_messages),
]


@pytest.mark.parametrize(("path", "asked", "read"), CALLS)
def test_a_required_call_comes_at_once_and_follows_its_schema(
    server: Live, path: str, asked: Any, read: Any
) -> None:
    for seed in range(3):
        body = {"model": "nano", **asked(PARAMETERS)}
        if path == "/v1/chat/completions":
            body["seed"] = seed
        answer = post(server.url + path, json=body)
        assert answer.status_code == 200, answer.text
        content, arguments = read(answer.json())
        assert not content
        assert arguments["size"] in ("small", "large") and arguments["sure"] is True
        assert set(arguments) == {"size", "sure"}


NOTHING = {"type": "object", "properties": {}, "additionalProperties": False}


@pytest.mark.parametrize(
    ("path", "asked", "read", "parameters"),
    [(*route, NOTHING) for route in CALLS] + [(*route, None) for route in CALLS[:2]],
)
def test_a_tool_that_takes_nothing_is_given_nothing(
    server: Live, path: str, asked: Any, read: Any, parameters: Any
) -> None:
    answer = post(server.url + path, json={"model": "nano", **asked(parameters)})
    assert answer.status_code == 200, answer.text
    assert read(answer.json()) == (None, {}) or read(answer.json()) == ("", {})


# Malformed, or beyond what a grammar can hold; and what the refusal must name.
REFUSED: list[tuple[Any, str]] = [
    ({"type": "object", "properties": {"m": {}}, "required": True}, "required"),
    ({"type": "object", "properties": {"m": {}}, "required": 1}, "required"),
    ({"type": "object", "properties": {"m": {}}, "required": [["m"]]}, "required"),
    ({"type": "object", "properties": {"m": {}}, "allOf": True}, "allOf"),
    ({"properties": {"m": {"type": "string", "const": 5}}, "required": ["m"]}, "'m'"),
    ({"properties": {"m": {"allOf": True}}}, "allOf"),
    ({"properties": {"m": {"$ref": "#/$defs/none"}}}, "#/$defs/none"),
    ({"properties": {"m": {"$ref": "other.json"}}}, "other.json"),
    ({"properties": {"m": {"type": "text"}}}, "text"),
    ({"properties": {"m": {"enum": "ab"}}}, "enum"),
    ({"properties": {"m": {"pattern": 3}}}, "pattern"),
    ({"properties": {"m": {"pattern": r"(?=a)b"}}}, "look-around"),
    ({"properties": {"m": {"type": "array", "uniqueItems": True}}}, "uniqueItems"),
    ({"properties": ["m"]}, "properties"),
    ({"type": "string"}, "arguments"),
    ({"not": {"required": ["a"]}}, "not"),
]


@pytest.mark.parametrize(("path", "asked", "read"), CALLS)
@pytest.mark.parametrize(("parameters", "named"), REFUSED)
def test_what_cannot_be_promised_is_a_400_that_names_it(
    server: Live, path: str, asked: Any, read: Any, parameters: Any, named: str
) -> None:
    answer = post(server.url + path, json={"model": "nano", **asked(parameters)})
    assert answer.status_code == 400, answer.text
    assert named in answer.text and "Lark" not in answer.text and "%json" not in answer.text


@pytest.mark.parametrize(("parameters", "named"), REFUSED)
def test_nothing_is_refused_where_nothing_is_promised(
    server: Live, parameters: Any, named: str
) -> None:
    body: dict[str, Any] = {**chat_calls(parameters), "model": "nano", "max_tokens": 3}
    for choice in ({"tool_choice": "auto"}, {"tool_choice": "auto", "parallel_tool_calls": True}):
        answer = post(server.url + "/v1/chat/completions", json=body | choice)
        assert answer.status_code == 200, answer.text


YES = {
    "type": "object",
    "properties": {"a": {"type": "boolean"}},
    "required": ["a"],
    "additionalProperties": False,
}
FORMATS: list[tuple[str, dict[str, Any], Callable[[Any], str]]] = [
    (
        "/v1/chat/completions",
        {
            "messages": ASK,
            "max_tokens": 40,
            "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": YES}},
        },
        lambda answer: answer["choices"][0]["message"]["content"],
    ),
    (
        "/v1/responses",
        {
            "input": "Is it?",
            "max_output_tokens": 40,
            "text": {"format": {"type": "json_schema", "name": "a", "schema": YES}},
        },
        lambda answer: answer["output"][0]["content"][0]["text"],
    ),
    (
        "/v1/messages",
        {
            "messages": ASK,
            "max_tokens": 40,
            "output_config": {"format": {"type": "json_schema", "schema": YES}},
        },
        lambda answer: answer["content"][0]["text"],
    ),
    (
        "/api/chat",
        {"messages": ASK, "format": YES, "stream": False, "options": {"num_predict": 40}},
        lambda answer: answer["message"]["content"],
    ),
    (
        "/api/generate",
        {"prompt": "Is it?", "format": YES, "stream": False, "options": {"num_predict": 40}},
        lambda answer: answer["response"],
    ),
]


@pytest.mark.parametrize(("path", "body", "read"), FORMATS)
def test_a_small_schema_is_answered_in_few_tokens(
    server: Live, path: str, body: dict[str, Any], read: Any
) -> None:
    for _ in range(4):
        answer = post(server.url + path, json={"model": "nano", **body})
        assert answer.status_code == 200, answer.text
        text = read(answer.json())
        assert text in ('{"a":true}', '{"a": true}', '{"a":false}', '{"a": false}')
