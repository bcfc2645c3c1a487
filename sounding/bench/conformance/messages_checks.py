"""Anthropic's messages. Source: the API reference, "Create a Message" and "Streaming", 2026."""

import json
from functools import partial
from typing import Any

from sounding.bench.conformance.chat_checks import LOOK
from sounding.bench.conformance.check import Protocol, expect, rule
from sounding.bench.conformance.remote_server import RemoteServer, ServerAnswer

PATH = "/v1/messages"
COUNT = "/v1/messages/count_tokens"
ENDS = ("end_turn", "max_tokens", "stop_sequence", "tool_use", "pause_turn", "refusal")
says = partial(rule, Protocol.MESSAGES)
_LOOK: dict[str, Any] = LOOK["function"]  # type: ignore[assignment]
TOOL = {
    "name": "look",
    "description": _LOOK["description"],
    "input_schema": _LOOK["parameters"],
}


def ask(server: RemoteServer, **more: Any) -> dict[str, Any]:
    """The body of a small request."""
    user = {"role": "user", "content": "Say hello."}
    return {"model": server.model, "messages": [user], "max_tokens": 8} | more


def read_tokens(usage: dict[str, Any]) -> int:
    """Number of tokens of the prompt, including those from the cache."""
    cached = (usage.get(f"cache_{what}_input_tokens") or 0 for what in ("read", "creation"))
    return int(usage["input_tokens"]) + sum(cached)


def events(answer: ServerAnswer) -> list[dict[str, Any]]:
    """The events of a stream, without pings."""
    return [event.json for event in answer.events if event.json["type"] != "ping"]


@says("an answer is an assistant message with content, stop_reason and usage")
def the_object_of_an_answer(server: RemoteServer) -> None:
    found = server.post(PATH, ask(server)).json
    expect(found["type"] == "message", f"type is {found['type']!r}")
    expect(found["role"] == "assistant", f"role is {found['role']!r}")
    expect(found["stop_reason"] in ENDS, f"stop_reason is {found['stop_reason']!r}")
    expect("stop_sequence" in found, "stop_sequence is missing")
    expect(read_tokens(found["usage"]) > 0, f"usage is {found['usage']}")
    for block in found["content"]:
        expect(block["type"] in ("text", "thinking", "tool_use"), f"a block is {block['type']!r}")


@says("an answer cut off at max_tokens has stop_reason max_tokens and that many output_tokens")
def max_tokens_ends_with_its_name(server: RemoteServer) -> None:
    found = server.post(PATH, ask(server, max_tokens=2)).json
    used = found["usage"]["output_tokens"]
    expect(used <= 2, f"the answer has {used} tokens, 2 are allowed")
    if used == 2:
        expect(found["stop_reason"] in ("max_tokens", "end_turn"), f"{found['stop_reason']!r}")


@says("max_tokens is required")
def a_missing_length_is_refused(server: RemoteServer) -> None:
    body = ask(server)
    del body["max_tokens"]
    server.refuses(PATH, body)


@says("an error is {type: error, error: {type, message}}, invalid_request_error for a bad field")
def the_object_of_an_error(server: RemoteServer) -> None:
    found = server.refuses(PATH, ask(server, max_tokens=-1)).json
    expect(found["type"] == "error", f"type is {found['type']!r}")
    kind = found["error"]["type"]
    expect(kind == "invalid_request_error", f"the error's type is {kind!r}")
    expect(isinstance(found["error"]["message"], str), "there is no message")


@says("temperature must be from 0 to 1")
def a_temperature_out_of_range_is_refused(server: RemoteServer) -> None:
    server.refuses(PATH, ask(server, temperature=1.5))


@says("messages must contain at least one message")
def no_messages_are_refused(server: RemoteServer) -> None:
    server.refuses(PATH, ask(server, messages=[]))


@says("the role of a message must be user or assistant")
def an_unknown_role_is_refused(server: RemoteServer) -> None:
    server.refuses(PATH, ask(server, messages=[{"role": "wizard", "content": "hello"}]))


@says("system may be a string or a list of text blocks")
def a_system_prompt_is_taken(server: RemoteServer) -> None:
    plain = read_tokens(server.post(PATH, ask(server)).json["usage"])
    for system in ("Be brief, please.", [{"type": "text", "text": "Be brief, please."}]):
        usage = server.post(PATH, ask(server, system=system)).json["usage"]
        expect(read_tokens(usage) > plain, f"{system!r} does not make the prompt longer")


@says("an assistant message at the end is continued")
def a_begun_answer_is_taken(server: RemoteServer) -> None:
    talk = [{"role": "user", "content": "Count."}, {"role": "assistant", "content": "1, 2,"}]
    server.post(PATH, ask(server, messages=talk))


@says("a stop sequence is named in stop_sequence, and is not part of the answer")
def stop_sequences_are_named(server: RemoteServer) -> None:
    letters = list("aeiost")
    found = server.post(PATH, ask(server, stop_sequences=letters, max_tokens=40)).json
    if found["stop_reason"] != "stop_sequence":
        return
    expect(found["stop_sequence"] in letters, f"stop_sequence is {found['stop_sequence']!r}")
    text = "".join(block.get("text", "") for block in found["content"])
    expect(found["stop_sequence"] not in text, f"the text is {text!r}")


@says("a stream is message_start, start, delta and stop of blocks, message_delta, message_stop")
def the_order_of_a_stream(server: RemoteServer) -> None:
    answer = server.post(PATH, ask(server, stream=True))
    expect(answer.content_type.startswith("text/event-stream"), f"{answer.content_type!r}")
    found = [event["type"] for event in events(answer)]
    expect(found[0] == "message_start", f"it starts with {found[0]!r}")
    expect(found[-2:] == ["message_delta", "message_stop"], f"it ends with {found[-2:]}")
    starts, stops = found.count("content_block_start"), found.count("content_block_stop")
    expect(starts == stops, f"{starts} blocks start and {stops} stop")


@says("the name of every event is its type")
def events_are_named(server: RemoteServer) -> None:
    for event in server.post(PATH, ask(server, stream=True)).events:
        expect(
            event.name == event.json["type"],
            f"an event named {event.name!r} has type {event.json['type']!r}",
        )


@says("message_start has an empty message, message_delta has stop_reason and output_tokens")
def the_frame_of_a_stream(server: RemoteServer) -> None:
    found = events(server.post(PATH, ask(server, stream=True)))
    message = found[0]["message"]
    expect(
        message["content"] == [] and message["stop_reason"] is None,
        f"the first message is {message}",
    )
    last = found[-2]
    expect(last["delta"]["stop_reason"] in ENDS, f"the delta is {last['delta']}")
    expect(last["usage"]["output_tokens"] > 0, f"usage is {last['usage']}")


@says("with tool_choice any the answer contains a tool_use block, whose input is an object")
def a_required_call(server: RemoteServer) -> None:
    choice = {"type": "any", "disable_parallel_tool_use": True}
    body = ask(server, tools=[TOOL], tool_choice=choice, max_tokens=120)
    found = server.post(PATH, body).json
    expect(found["stop_reason"] == "tool_use", f"stop_reason is {found['stop_reason']!r}")
    block = next(block for block in found["content"] if block["type"] == "tool_use")
    expect(block["name"] == "look" and block["id"] != "", f"called: {block}")
    expect(isinstance(block["input"]["path"], str), f"input is {block['input']!r}")


@says("a streamed call consists of input_json_delta events, which join to one JSON text")
def a_streamed_call(server: RemoteServer) -> None:
    choice = {"type": "tool", "name": "look", "disable_parallel_tool_use": True}
    body = ask(server, tools=[TOOL], tool_choice=choice, max_tokens=120, stream=True)
    found = events(server.post(PATH, body))
    starts = [event["content_block"] for event in found if event["type"] == "content_block_start"]
    block = next(block for block in starts if block["type"] == "tool_use")
    expect(block["input"] == {}, f"the block starts with input {block['input']!r}")
    deltas = [event["delta"] for event in found if event["type"] == "content_block_delta"]
    parts = [delta["partial_json"] for delta in deltas if delta["type"] == "input_json_delta"]
    json.loads("".join(parts))


@says("a tool_use block and its tool_result are accepted as messages")
def a_round_of_tools(server: RemoteServer) -> None:
    use = {"type": "tool_use", "id": "toolu_1", "name": "look", "input": {"path": "a.py"}}
    result = {"type": "tool_result", "tool_use_id": "toolu_1", "content": "x = 1"}
    talk = [
        {"role": "user", "content": "What is in a.py?"},
        {"role": "assistant", "content": [use]},
        {"role": "user", "content": [result]},
    ]
    server.post(PATH, ask(server, messages=talk, tools=[TOOL]))


@says("a tool_result without its tool_use is refused")
def a_result_of_no_call_is_refused(server: RemoteServer) -> None:
    result = {"type": "tool_result", "tool_use_id": "toolu_9", "content": "x"}
    server.refuses(PATH, ask(server, messages=[{"role": "user", "content": [result]}]))


@says("count_tokens counts a request's tokens without generating")
def tokens_are_counted(server: RemoteServer) -> None:
    body = ask(server)
    del body["max_tokens"]
    counted = server.post(COUNT, body).json["input_tokens"]
    read = read_tokens(server.post(PATH, ask(server)).json["usage"])
    expect(counted == read, f"count_tokens gives {counted}, usage gives {read}")


CHECKS = [
    the_object_of_an_answer,
    max_tokens_ends_with_its_name,
    a_missing_length_is_refused,
    the_object_of_an_error,
    a_temperature_out_of_range_is_refused,
    no_messages_are_refused,
    an_unknown_role_is_refused,
    a_system_prompt_is_taken,
    a_begun_answer_is_taken,
    stop_sequences_are_named,
    the_order_of_a_stream,
    events_are_named,
    the_frame_of_a_stream,
    a_required_call,
    a_streamed_call,
    a_round_of_tools,
    a_result_of_no_call_is_refused,
    tokens_are_counted,
]
