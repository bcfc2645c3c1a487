"""Ollama's own protocol. Source: the description of the API in its repository, 2026."""

import json
from functools import partial
from typing import Any

from sounding.bench.conformance.chat_checks import ANSWER, LOOK
from sounding.bench.conformance.check import Protocol, expect, rule
from sounding.bench.conformance.remote_server import RemoteServer

GENERATE, CHAT = "/api/generate", "/api/chat"
says = partial(rule, Protocol.OLLAMA)


def ask(server: RemoteServer, **more: Any) -> dict[str, Any]:
    """The body of a small request for text."""
    body = {"model": server.model, "prompt": "Say hello.", "stream": False}
    return body | {"options": {"num_predict": 6}} | more


def talk(server: RemoteServer, **more: Any) -> dict[str, Any]:
    """The body of a small request for a chat turn."""
    user = {"role": "user", "content": "Say hello."}
    body = {"model": server.model, "messages": [user], "stream": False}
    return body | {"options": {"num_predict": 6}} | more


@says("an answer has model, created_at, response, done and token counts")
def the_object_of_an_answer(server: RemoteServer) -> None:
    found = server.post(GENERATE, ask(server)).json
    expect(isinstance(found["response"], str), f"response is {found['response']!r}")
    expect(found["done"] is True, f"done is {found['done']!r}")
    expect(found["done_reason"] in ("stop", "length"), f"done_reason {found['done_reason']!r}")
    expect(isinstance(found["created_at"], str), "created_at is missing")
    for key in ("total_duration", "eval_count", "eval_duration", "prompt_eval_count"):
        expect(isinstance(found[key], int), f"{key} is {found[key]!r}")


@says("an answer is streamed as lines of JSON unless stream is false")
def streamed_unless_told_otherwise(server: RemoteServer) -> None:
    body = ask(server)
    del body["stream"]
    answer = server.post(GENERATE, body)
    kind = answer.content_type
    expect(kind.startswith("application/x-ndjson"), f"Content-Type is {kind!r}")
    done = [line["done"] for line in answer.lines]
    expect(done[-1] is True and not any(done[:-1]), f"done is {done}")


@says("num_predict limits the answer, which then has done_reason length")
def num_predict_bounds_the_answer(server: RemoteServer) -> None:
    found = server.post(GENERATE, ask(server, options={"num_predict": 2})).json
    expect(found["eval_count"] <= 2, f"the answer has {found['eval_count']} tokens, 2 are allowed")


@says("a request without a prompt loads the model: empty response, done_reason load")
def an_empty_prompt_loads(server: RemoteServer) -> None:
    found = server.post(GENERATE, {"model": server.model, "stream": False}).json
    expect(found["response"] == "" and found["done"] is True, f"the answer is {found}")
    expect(found["done_reason"] == "load", f"done_reason is {found.get('done_reason')!r}")


@says("a chat answer has a message with the role assistant")
def a_turn(server: RemoteServer) -> None:
    found = server.post(CHAT, talk(server)).json
    expect(found["message"]["role"] == "assistant", f"message is {found['message']}")
    expect(isinstance(found["message"]["content"], str), "there is no content")


@says("the contents of streamed chat messages join to the whole answer")
def a_streamed_turn(server: RemoteServer) -> None:
    options = {"num_predict": 12, "temperature": 0, "seed": 5}
    whole = server.post(CHAT, talk(server, options=options)).json["message"]["content"]
    lines = server.post(CHAT, talk(server, options=options, stream=True)).lines
    streamed = "".join(line["message"]["content"] for line in lines)
    expect(streamed == whole, f"streamed: {streamed!r}, not streamed: {whole!r}")


@says("with a schema as format the answer is JSON that matches the schema")
def an_answer_of_a_schema(server: RemoteServer) -> None:
    body = talk(server, format=ANSWER, options={"num_predict": 60})
    value = json.loads(server.post(CHAT, body).json["message"]["content"])
    expect(isinstance(value["good"], bool), f"it is {value}")


@says("tools are accepted, and so is a call's result with the role tool")
def a_round_of_tools(server: RemoteServer) -> None:
    call = {"function": {"name": "look", "arguments": {"path": "a.py"}}}
    messages = [
        {"role": "user", "content": "What is in a.py?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "tool_name": "look", "content": "x = 1"},
    ]
    server.post(CHAT, talk(server, messages=messages, tools=[LOOK]))


@says("an unknown model is refused with 404 and an error")
def an_unknown_model_is_refused(server: RemoteServer) -> None:
    answer = server.post(GENERATE, ask(server, model="no-such-model-anywhere"), wanted=None)
    expect(answer.status == 404, f"the status is {answer.status}")
    expect(isinstance(answer.json["error"], str), f"error is {answer.json['error']!r}")


@says("the models are listed with name, model, size and digest")
def models_are_listed(server: RemoteServer) -> None:
    for model in server.get("/api/tags").json["models"]:
        missing = [key for key in ("name", "model", "size", "digest") if key not in model]
        expect(not missing, f"a model lacks {', '.join(missing)}")


@says("the running models are listed")
def running_models_are_listed(server: RemoteServer) -> None:
    expect(isinstance(server.get("/api/ps").json["models"], list), "models is not a list")


@says("show describes a model with details and capabilities")
def a_model_is_shown(server: RemoteServer) -> None:
    found = server.post("/api/show", {"model": server.model}).json
    expect("completion" in found["capabilities"], f"capabilities are {found['capabilities']}")
    expect(isinstance(found["details"], dict), "details are missing")


@says("the version is a string")
def the_version(server: RemoteServer) -> None:
    expect(isinstance(server.get("/api/version").json["version"], str), "it is no text")


CHECKS = [
    the_object_of_an_answer,
    streamed_unless_told_otherwise,
    num_predict_bounds_the_answer,
    an_empty_prompt_loads,
    a_turn,
    a_streamed_turn,
    an_answer_of_a_schema,
    a_round_of_tools,
    an_unknown_model_is_refused,
    models_are_listed,
    running_models_are_listed,
    a_model_is_shown,
    the_version,
]
