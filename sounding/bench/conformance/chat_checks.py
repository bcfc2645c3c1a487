"""OpenAI's chat completions. Source: the API reference, "Create chat completion", 2026."""

import json
from functools import partial
from typing import Any

from sounding.bench.conformance.check import Protocol, expect, rule
from sounding.bench.conformance.remote_server import RemoteServer, ServerAnswer

PATH = "/v1/chat/completions"
FINISHED = ("stop", "length", "tool_calls", "content_filter")
says = partial(rule, Protocol.CHAT)

LOOK = {
    "type": "function",
    "function": {
        "name": "look",
        "description": "Look at a file.",
        "parameters": {
            "type": "object",
            "properties": {"path": {"type": "string", "maxLength": 8}},
            "required": ["path"],
            "additionalProperties": False,
        },
    },
}
ANSWER = {
    "type": "object",
    "properties": {"good": {"type": "boolean"}},
    "required": ["good"],
    "additionalProperties": False,
}


def ask(server: RemoteServer, **more: Any) -> dict[str, Any]:
    """The body of a small request."""
    user = {"role": "user", "content": "Say hello."}
    return {"model": server.model, "messages": [user], "max_tokens": 8} | more


def chunks(answer: ServerAnswer) -> list[dict[str, Any]]:
    """The chunks of a stream without its final [DONE]."""
    return [event.json for event in answer.events if event.data != "[DONE]"]


@says("an answer is a chat.completion with an id, a time, the model, choices and usage")
def the_object_of_an_answer(server: RemoteServer) -> None:
    found = server.post(PATH, ask(server)).json
    expect(found["object"] == "chat.completion", f"object is {found['object']!r}")
    expect(isinstance(found["id"], str) and found["id"] != "", f"id is {found['id']!r}")
    expect(isinstance(found["created"], int), f"created is {found['created']!r}")
    expect(isinstance(found["model"], str), f"model is {found['model']!r}")
    choice = found["choices"][0]
    expect(choice["index"] == 0, f"index is {choice['index']!r}")
    expect(choice["message"]["role"] == "assistant", f"role is {choice['message']['role']!r}")
    expect(choice["finish_reason"] in FINISHED, f"finish_reason is {choice['finish_reason']!r}")


@says("usage counts the tokens of prompt and answer, and their sum")
def usage_adds_up(server: RemoteServer) -> None:
    usage = server.post(PATH, ask(server)).json["usage"]
    parts = usage["prompt_tokens"], usage["completion_tokens"]
    expect(min(parts) > 0, f"usage is {usage}")
    expect(sum(parts) == usage["total_tokens"], f"{parts} do not add up to {usage['total_tokens']}")


@says("an answer cut off at max_tokens has finish_reason length and that many tokens")
def max_tokens_ends_with_length(server: RemoteServer) -> None:
    found = server.post(PATH, ask(server, max_tokens=2)).json
    reason, usage = found["choices"][0]["finish_reason"], found["usage"]
    if reason == "length":
        expect(usage["completion_tokens"] == 2, f"it counts {usage['completion_tokens']} tokens")
    expect(usage["completion_tokens"] <= 2, f"it has {usage['completion_tokens']} tokens of 2")


@says("max_completion_tokens limits an answer as max_tokens does, which it replaces")
def max_completion_tokens_is_read(server: RemoteServer) -> None:
    body = ask(server, max_completion_tokens=2)
    del body["max_tokens"]
    used = server.post(PATH, body).json["usage"]["completion_tokens"]
    expect(used <= 2, f"the answer has {used} tokens, 2 are allowed")


@says("choices has n entries with the indices 0 to n - 1")
def several_choices(server: RemoteServer) -> None:
    choices = server.post(PATH, ask(server, n=2, max_tokens=4)).json["choices"]
    places = sorted(choice["index"] for choice in choices)
    expect(places == [0, 1], f"the indices are {places}")


@says("n below 1 is refused")
def no_choice_is_refused(server: RemoteServer) -> None:
    server.refuses(PATH, ask(server, n=0))


@says("the text of a stop sequence is not part of the answer")
def stop_sequences_are_left_out(server: RemoteServer) -> None:
    whole = server.post(PATH, ask(server, temperature=0, seed=1, max_tokens=16)).json
    text = whole["choices"][0]["message"]["content"] or ""
    stop = text[len(text) // 2 :][:1]
    if not stop.strip():
        return
    cut = server.post(PATH, ask(server, temperature=0, seed=1, max_tokens=16, stop=[stop])).json
    found = cut["choices"][0]
    expect(stop not in (found["message"]["content"] or ""), f"the answer contains {stop!r}")
    expect(found["finish_reason"] == "stop", f"finish_reason is {found['finish_reason']!r}")


@says("temperature must be from 0 to 2")
def a_temperature_out_of_range_is_refused(server: RemoteServer) -> None:
    server.refuses(PATH, ask(server, temperature=3))


@says("top_p must be from 0 to 1")
def a_top_p_out_of_range_is_refused(server: RemoteServer) -> None:
    server.refuses(PATH, ask(server, top_p=1.5))


@says("presence_penalty must be from -2 to 2")
def a_penalty_out_of_range_is_refused(server: RemoteServer) -> None:
    server.refuses(PATH, ask(server, presence_penalty=3))


@says("messages must contain at least one message")
def no_messages_are_refused(server: RemoteServer) -> None:
    server.refuses(PATH, ask(server, messages=[]))


@says("a role must be system, developer, user, assistant, tool or function")
def an_unknown_role_is_refused(server: RemoteServer) -> None:
    server.refuses(PATH, ask(server, messages=[{"role": "wizard", "content": "hello"}]))


@says("messages is required")
def missing_messages_are_refused(server: RemoteServer) -> None:
    server.refuses(PATH, {"model": server.model})


@says("max_tokens must be an integer")
def a_field_of_another_type_is_refused(server: RemoteServer) -> None:
    server.refuses(PATH, ask(server, max_tokens="many"))


@says("a body that is not JSON is refused with 400 and an object with error.message")
def broken_json_is_refused(server: RemoteServer) -> None:
    answer = server.post(PATH, b'{"model": ', wanted=None)
    expect(answer.status == 400, f"the status is {answer.status}")
    error = answer.json["error"]
    expect(isinstance(error["message"], str), f"error is {error!r}")


@says("an error is an object with message, type, param and code", required=False)
def errors_say_what_is_wrong(server: RemoteServer) -> None:
    error = server.refuses(PATH, ask(server, temperature=3)).json["error"]
    missing = [key for key in ("message", "type", "param", "code") if key not in error]
    expect(not missing, f"the error lacks {', '.join(missing)}")


@says("developer messages are accepted like system messages")
def developer_messages_are_taken(server: RemoteServer) -> None:
    talk = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    server.post(PATH, ask(server, messages=talk))


@says("content may be a list of text parts")
def parts_of_text_are_taken(server: RemoteServer) -> None:
    parts = [{"type": "text", "text": "Say"}, {"type": "text", "text": " hello."}]
    server.post(PATH, ask(server, messages=[{"role": "user", "content": parts}]))


@says("a stream is sent as text/event-stream and ends with data: [DONE]")
def a_stream_ends_with_done(server: RemoteServer) -> None:
    answer = server.post(PATH, ask(server, stream=True))
    kind = answer.content_type
    expect(kind.startswith("text/event-stream"), f"Content-Type is {kind!r}")
    expect(answer.events[-1].data == "[DONE]", f"it ends with {answer.events[-1].data[:80]!r}")


@says("chunks are chat.completion.chunk objects with one id; the first delta has the role")
def chunks_of_a_stream(server: RemoteServer) -> None:
    found = chunks(server.post(PATH, ask(server, stream=True)))
    kinds = {chunk["object"] for chunk in found}
    expect(kinds == {"chat.completion.chunk"}, f"objects are {kinds}")
    expect(len({chunk["id"] for chunk in found}) == 1, "chunks of one answer have several ids")
    role = found[0]["choices"][0]["delta"].get("role")
    expect(role == "assistant", f"the first delta has role {role!r}")


@says("only the last chunk with a choice has a finish_reason; in the others it is null")
def a_stream_finishes_once(server: RemoteServer) -> None:
    found = chunks(server.post(PATH, ask(server, stream=True)))
    reasons = [chunk["choices"][0]["finish_reason"] for chunk in found if chunk["choices"]]
    expect(reasons[-1] in FINISHED, f"it ends with {reasons[-1]!r}")
    expect(not any(reasons[:-1]), "a chunk before the last has a finish_reason")


@says("with include_usage the last chunk has usage and no choices; other chunks have usage null")
def usage_of_a_stream(server: RemoteServer) -> None:
    options = {"include_usage": True}
    found = chunks(server.post(PATH, ask(server, stream=True, stream_options=options)))
    last = found[-1]
    expect(last["choices"] == [], f"the last chunk has choices {last['choices']!r}")
    expect(last["usage"]["completion_tokens"] > 0, f"usage is {last['usage']!r}")
    early = [chunk["usage"] for chunk in found[:-1] if chunk.get("usage")]
    expect(not early, "a chunk before the last has usage")


@says("without include_usage chunks have no usage")
def no_usage_unless_asked(server: RemoteServer) -> None:
    found = chunks(server.post(PATH, ask(server, stream=True)))
    expect(not any(chunk.get("usage") for chunk in found), "a chunk has usage")
    expect(all(chunk["choices"] for chunk in found), "a chunk has no choices")


@says("stream_options requires stream", required=False)
def stream_options_without_a_stream_are_refused(server: RemoteServer) -> None:
    server.refuses(PATH, ask(server, stream_options={"include_usage": True}))


@says("a stream contains the same text as the answer without streaming")
def a_stream_says_the_same(server: RemoteServer) -> None:
    body = ask(server, temperature=0, seed=7, max_tokens=12)
    whole = server.post(PATH, body).json["choices"][0]["message"]["content"] or ""
    found = chunks(server.post(PATH, body | {"stream": True}))
    deltas = [chunk["choices"][0]["delta"] for chunk in found if chunk["choices"]]
    streamed = "".join(delta.get("content") or "" for delta in deltas)
    expect(streamed == whole, f"streamed: {streamed[:60]!r}, not streamed: {whole[:60]!r}")


@says("with logprobs each token has its text, its logprob, its bytes and its alternatives")
def logprobs_of_tokens(server: RemoteServer) -> None:
    found = server.post(PATH, ask(server, logprobs=True, top_logprobs=2)).json["choices"][0]
    tokens = found["logprobs"]["content"]
    if found["message"]["content"]:
        expect(len(tokens) > 0, "there are no tokens")
    for token in tokens:
        expect(token["logprob"] <= 1e-6, f"a logprob is {token['logprob']}")
        expect(len(token["top_logprobs"]) == 2, f"{len(token['top_logprobs'])} alternatives of 2")
        expect(isinstance(token["bytes"], list | None), f"bytes is {token['bytes']!r}")


@says("the first alternative is at least as likely as the sampled token")
def alternatives_are_the_likeliest(server: RemoteServer) -> None:
    body = ask(server, logprobs=True, top_logprobs=3, temperature=0)
    for token in server.post(PATH, body).json["choices"][0]["logprobs"]["content"]:
        listed = [other["logprob"] for other in token["top_logprobs"]]
        expect(
            listed == sorted(listed, reverse=True),
            f"alternatives are not sorted by logprob: {listed}",
        )
        expect(max(listed) >= token["logprob"] - 1e-4, "an alternative is missing")


@says("top_logprobs must be from 0 to 20 and requires logprobs")
def too_many_alternatives_are_refused(server: RemoteServer) -> None:
    server.refuses(PATH, ask(server, logprobs=True, top_logprobs=50))


def _calls(server: RemoteServer, **more: Any) -> dict[str, Any]:
    body = ask(server, tools=[LOOK], max_tokens=100, parallel_tool_calls=False, **more)
    choice: dict[str, Any] = server.post(PATH, body).json["choices"][0]
    return choice


@says("with tool_choice required the answer calls a tool, with arguments as a JSON string")
def a_required_call(server: RemoteServer) -> None:
    choice = _calls(server, tool_choice="required")
    calls = choice["message"]["tool_calls"]
    expect(choice["finish_reason"] == "tool_calls", f"finish_reason is {choice['finish_reason']!r}")
    call = calls[0]
    expect(call["type"] == "function" and call["function"]["name"] == "look", f"called: {call}")
    expect(isinstance(call["id"], str) and call["id"] != "", f"the id is {call['id']!r}")
    arguments = json.loads(call["function"]["arguments"])
    expect(isinstance(arguments["path"], str), f"arguments are {arguments}")


@says("with a function named in tool_choice the answer calls that function")
def a_named_call(server: RemoteServer) -> None:
    choice = _calls(server, tool_choice={"type": "function", "function": {"name": "look"}})
    name = choice["message"]["tool_calls"][0]["function"]["name"]
    expect(name == "look", f"{name!r} is called")
    expect(
        choice["finish_reason"] in ("stop", "tool_calls"),
        f"finish_reason is {choice['finish_reason']!r}",
    )


@says("with tool_choice none the answer calls no tool")
def no_call(server: RemoteServer) -> None:
    message = _calls(server, tool_choice="none")["message"]
    expect(not message.get("tool_calls"), f"called: {message.get('tool_calls')}")


@says("a tool_choice that names a tool not in the request is refused")
def an_unknown_tool_is_refused(server: RemoteServer) -> None:
    choice = {"type": "function", "function": {"name": "listen"}}
    server.refuses(PATH, ask(server, tools=[LOOK], tool_choice=choice))


@says("a streamed call has its index in every delta, and id and name only in the first")
def a_streamed_call(server: RemoteServer) -> None:
    one = {"tool_choice": "required", "parallel_tool_calls": False}
    body = ask(server, tools=[LOOK], max_tokens=100, stream=True, **one)
    found = chunks(server.post(PATH, body))
    deltas = [chunk["choices"][0]["delta"] for chunk in found if chunk["choices"]]
    calls = [call for delta in deltas for call in delta.get("tool_calls") or []]
    first = [call for call in calls if call["index"] == 0]
    expect(bool(first[0]["id"]) and first[0]["function"]["name"] == "look", f"it begins {first[0]}")
    expect(not any(call.get("id") for call in first[1:]), "a later delta repeats the id")
    json.loads("".join(call["function"].get("arguments") or "" for call in first))


@says("a call, with content null, and its result are accepted as messages")
def a_round_of_tools(server: RemoteServer) -> None:
    function = {"name": "look", "arguments": '{"path": "a.py"}'}
    called = {"id": "call_1", "type": "function", "function": function}
    talk = [
        {"role": "user", "content": "What is in a.py?"},
        {"role": "assistant", "content": None, "tool_calls": [called]},
        {"role": "tool", "tool_call_id": "call_1", "content": "x = 1"},
    ]
    server.post(PATH, ask(server, messages=talk, tools=[LOOK]))


@says("with a json_schema the answer is JSON that matches the schema")
def an_answer_of_a_schema(server: RemoteServer) -> None:
    schema = {"name": "answer", "strict": True, "schema": ANSWER}
    form = {"type": "json_schema", "json_schema": schema}
    choice = server.post(PATH, ask(server, response_format=form, max_tokens=60)).json["choices"][0]
    found = json.loads(choice["message"]["content"])
    expect(list(found) == ["good"] and isinstance(found["good"], bool), f"it is {found}")


@says("an unknown type of response_format is refused")
def an_unknown_format_is_refused(server: RemoteServer) -> None:
    server.refuses(PATH, ask(server, response_format={"type": "poem"}))


@says("the same seed and parameters give the same answer, as far as possible", required=False)
def a_seed_repeats(server: RemoteServer) -> None:
    body = ask(server, seed=11, temperature=1, max_tokens=12)
    texts = [server.post(PATH, body).json["choices"][0]["message"]["content"] for _ in range(2)]
    expect(texts[0] == texts[1], f"{texts[0]!r} and {texts[1]!r}")


@says("the list of models contains the model in use")
def models_are_listed(server: RemoteServer) -> None:
    found = server.get("/v1/models").json
    expect(found["object"] == "list", f"object is {found['object']!r}")
    expect(all(model["object"] == "model" for model in found["data"]), "an entry is not a model")
    expect(len(found["data"]) > 0, "there are none")


@says("a model that the server does not have is refused with 404")
def an_unknown_model_is_refused(server: RemoteServer) -> None:
    answer = server.post(PATH, ask(server, model="no-such-model-anywhere"), wanted=None)
    expect(answer.status == 404, f"the status is {answer.status}")


@says("a wrong key is refused with 401")
def a_wrong_key_is_refused(server: RemoteServer) -> None:
    if server.api_key is None:
        return
    wrong = {"Authorization": "Bearer wrong", "x-api-key": "wrong"}
    answer = server.post(PATH, ask(server), wanted=None, headers=wrong)
    expect(answer.status == 401, f"the status is {answer.status}")


@says("a client that disconnects from its stream does not block the next request")
def leaving_a_stream(server: RemoteServer) -> None:
    server.leaves(PATH, ask(server, stream=True, max_tokens=4000))
    server.post(PATH, ask(server, max_tokens=1))


CHECKS = [
    the_object_of_an_answer,
    usage_adds_up,
    max_tokens_ends_with_length,
    max_completion_tokens_is_read,
    several_choices,
    no_choice_is_refused,
    stop_sequences_are_left_out,
    a_temperature_out_of_range_is_refused,
    a_top_p_out_of_range_is_refused,
    a_penalty_out_of_range_is_refused,
    no_messages_are_refused,
    an_unknown_role_is_refused,
    missing_messages_are_refused,
    a_field_of_another_type_is_refused,
    broken_json_is_refused,
    errors_say_what_is_wrong,
    developer_messages_are_taken,
    parts_of_text_are_taken,
    a_stream_ends_with_done,
    chunks_of_a_stream,
    a_stream_finishes_once,
    usage_of_a_stream,
    no_usage_unless_asked,
    stream_options_without_a_stream_are_refused,
    a_stream_says_the_same,
    logprobs_of_tokens,
    alternatives_are_the_likeliest,
    too_many_alternatives_are_refused,
    a_required_call,
    a_named_call,
    no_call,
    an_unknown_tool_is_refused,
    a_streamed_call,
    a_round_of_tools,
    an_answer_of_a_schema,
    an_unknown_format_is_refused,
    a_seed_repeats,
    models_are_listed,
    an_unknown_model_is_refused,
    a_wrong_key_is_refused,
    leaving_a_stream,
]
