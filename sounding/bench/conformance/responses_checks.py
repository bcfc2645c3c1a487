"""OpenAI's responses. Source: the API reference, "Create a model response", 2026."""

import json
from functools import partial
from typing import Any

from sounding.bench.conformance.chat_checks import ANSWER, LOOK
from sounding.bench.conformance.check import Protocol, expect, rule
from sounding.bench.conformance.remote_server import RemoteServer, ServerAnswer

PATH = "/v1/responses"
says = partial(rule, Protocol.RESPONSES)
TOOL = {"type": "function"} | LOOK["function"]  # type: ignore[operator]


def ask(server: RemoteServer, **more: Any) -> dict[str, Any]:
    """The body of a small request."""
    return {"model": server.model, "input": "Say hello.", "max_output_tokens": 16} | more


def kinds(answer: ServerAnswer) -> list[str]:
    """The types of a stream's events, in order."""
    return [event.json["type"] for event in answer.events if event.data != "[DONE]"]


@says("an answer is a response with an id, a status, output and usage")
def the_object_of_an_answer(server: RemoteServer) -> None:
    found = server.post(PATH, ask(server)).json
    expect(found["object"] == "response", f"object is {found['object']!r}")
    expect(found["status"] in ("completed", "incomplete"), f"status is {found['status']!r}")
    usage = found["usage"]
    total = usage["input_tokens"] + usage["output_tokens"]
    expect(total == usage["total_tokens"], f"usage does not add up: {usage}")
    expect(isinstance(found["output"], list) and found["output"] != [], "there is no output")


@says("text is in an assistant message, in parts of type output_text")
def the_text_of_an_answer(server: RemoteServer) -> None:
    output = server.post(PATH, ask(server)).json["output"]
    message = next(item for item in output if item["type"] == "message")
    expect(message["role"] == "assistant", f"role is {message['role']!r}")
    part = message["content"][0]
    expect(part["type"] == "output_text", f"the part is {part['type']!r}")
    expect(isinstance(part["annotations"], list), "the part has no list of annotations")


@says("an answer cut off at max_output_tokens has status incomplete, with the reason")
def a_cut_answer_is_incomplete(server: RemoteServer) -> None:
    found = server.post(PATH, ask(server, input="Count to a thousand, one by one.")).json
    if found["usage"]["output_tokens"] < 16:
        return
    expect(found["status"] == "incomplete", f"status is {found['status']!r}")
    reason = found["incomplete_details"]["reason"]
    expect(reason == "max_output_tokens", f"the reason is {reason!r}")


@says("input may be a list of messages, whose content is a string or parts of type input_text")
def messages_are_taken(server: RemoteServer) -> None:
    parts = [{"type": "input_text", "text": "Hello"}]
    talk = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": parts}]
    server.post(PATH, ask(server, input=talk))


@says("instructions are added before the input")
def instructions_are_taken(server: RemoteServer) -> None:
    plain = server.post(PATH, ask(server)).json["usage"]["input_tokens"]
    told = server.post(PATH, ask(server, instructions="Be very brief, please.")).json["usage"]
    expect(told["input_tokens"] > plain, "instructions do not make the prompt longer")


@says("a stream starts with response.created and ends with completed or incomplete")
def a_stream_begins_and_ends(server: RemoteServer) -> None:
    answer = server.post(PATH, ask(server, stream=True))
    expect(answer.content_type.startswith("text/event-stream"), f"{answer.content_type!r}")
    found = kinds(answer)
    expect(found[0] == "response.created", f"it starts with {found[0]!r}")
    ends = ("response.completed", "response.incomplete")
    expect(found[-1] in ends, f"it ends with {found[-1]!r}")


@says("the name of every event is its type, and sequence numbers rise by one")
def events_are_numbered(server: RemoteServer) -> None:
    events = server.post(PATH, ask(server, stream=True)).events
    found = [event for event in events if event.data != "[DONE]"]
    numbers = [event.json["sequence_number"] for event in found]
    expect(
        numbers == list(range(numbers[0], numbers[0] + len(numbers))),
        f"the sequence numbers are {numbers[:9]}",
    )
    named = all(event.name in ("", event.json["type"]) for event in found)
    expect(named, "an event's name is not its type")


@says("events come in order: item added, part added, text, then text, part and item done")
def the_order_of_a_stream(server: RemoteServer) -> None:
    found = kinds(server.post(PATH, ask(server, stream=True)))
    order = [
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
    ]
    missing = [kind for kind in order if kind not in found]
    expect(not missing, f"missing: {', '.join(missing)}")
    places = [found.index(kind) for kind in order]
    expect(places == sorted(places), f"the order is {found[:9]}")


@says("the deltas of a stream join to the final text")
def deltas_make_the_text(server: RemoteServer) -> None:
    events = server.post(PATH, ask(server, stream=True)).events
    found = [event.json for event in events if event.data != "[DONE]"]
    deltas = [e["delta"] for e in found if e["type"] == "response.output_text.delta"]
    done = [e["text"] for e in found if e["type"] == "response.output_text.done"]
    expect("".join(deltas) == "".join(done), f"{''.join(deltas)[:60]!r}, done: {done}")


@says("with tool_choice required the output has a function_call with JSON arguments")
def a_required_call(server: RemoteServer) -> None:
    body = ask(server, tools=[TOOL], tool_choice="required", max_output_tokens=120)
    calls = [
        item for item in server.post(PATH, body).json["output"] if item["type"] == "function_call"
    ]
    expect(calls != [], "there is no function_call")
    expect(calls[0]["name"] == "look" and calls[0]["call_id"] != "", f"called: {calls[0]}")
    json.loads(calls[0]["arguments"])


@says("a call's arguments are streamed as deltas and then sent whole")
def a_streamed_call(server: RemoteServer) -> None:
    body = ask(server, tools=[TOOL], tool_choice="required", max_output_tokens=120, stream=True)
    found = [event.json for event in server.post(PATH, body).events if event.data != "[DONE]"]
    prefix = "response.function_call_arguments"
    deltas = [event["delta"] for event in found if event["type"] == f"{prefix}.delta"]
    done = [event["arguments"] for event in found if event["type"] == f"{prefix}.done"]
    expect(len(done) > 0, "there is no event with the whole arguments")
    expect("".join(deltas) == "".join(done), "the deltas do not join to the whole arguments")


@says("a call and its output are accepted as items of the input")
def a_round_of_tools(server: RemoteServer) -> None:
    arguments = '{"path": "a.py"}'
    call = {"type": "function_call", "call_id": "c1", "name": "look", "arguments": arguments}
    output = {"type": "function_call_output", "call_id": "c1", "output": "x = 1"}
    talk = [{"role": "user", "content": "What is in a.py?"}, call, output]
    server.post(PATH, ask(server, input=talk, tools=[TOOL]))


@says("with a json_schema under text.format the answer is JSON that matches the schema")
def an_answer_of_a_schema(server: RemoteServer) -> None:
    form = {"type": "json_schema", "name": "answer", "strict": True, "schema": ANSWER}
    found = server.post(PATH, ask(server, text={"format": form}, max_output_tokens=60)).json
    message = next(item for item in found["output"] if item["type"] == "message")
    value = json.loads(message["content"][0]["text"])
    expect(isinstance(value["good"], bool), f"it is {value}")


@says("an unknown previous_response_id is refused")
def an_unknown_answer_is_refused(server: RemoteServer) -> None:
    server.refuses(PATH, ask(server, previous_response_id="resp_unknown"))


@says("an item of an unknown type is refused")
def an_unknown_item_is_refused(server: RemoteServer) -> None:
    server.refuses(PATH, ask(server, input=[{"type": "poem", "text": "hello"}]))


@says("max_output_tokens must be above 0")
def no_tokens_are_refused(server: RemoteServer) -> None:
    server.refuses(PATH, ask(server, max_output_tokens=0))


@says("temperature must be from 0 to 2")
def a_temperature_out_of_range_is_refused(server: RemoteServer) -> None:
    server.refuses(PATH, ask(server, temperature=9))


CHECKS = [
    the_object_of_an_answer,
    the_text_of_an_answer,
    a_cut_answer_is_incomplete,
    messages_are_taken,
    instructions_are_taken,
    a_stream_begins_and_ends,
    events_are_numbered,
    the_order_of_a_stream,
    deltas_make_the_text,
    a_required_call,
    a_streamed_call,
    a_round_of_tools,
    an_answer_of_a_schema,
    an_unknown_answer_is_refused,
    an_unknown_item_is_refused,
    no_tokens_are_refused,
    a_temperature_out_of_range_is_refused,
]
