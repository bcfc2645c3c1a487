"""The `openai` library, unmodified, over a live server."""

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai import OpenAI
from pydantic import BaseModel

from sounding.server.content_stops import ContentRule
from tests.server.live import Live, live
from tests.server.scripted import ScriptedEngine

CALL = (
    "Look.</think>Let me see.\n\n<｜DSML｜tool_calls>\n"
    '<｜DSML｜invoke name="weather">\n'
    '<｜DSML｜parameter name="city" string="true">Oslo</｜DSML｜parameter>\n'
    '<｜DSML｜parameter name="days" string="false">2</｜DSML｜parameter>\n'
    "</｜DSML｜invoke>\n"
    '<｜DSML｜invoke name="clock">\n\n</｜DSML｜invoke>\n'
    "</｜DSML｜tool_calls>"
)
TOOLS: list[Any] = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "d",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
                "required": ["city"],
            },
        },
    },
    {"type": "function", "function": {"name": "clock"}},
]
HI: list[Any] = [{"role": "user", "content": "Hi"}]


def script(prompt: str) -> str:
    """Thinks where it is asked to, and calls where there are tools and no results yet."""
    if "<tool_result>" in prompt:
        answer = "It rains."
    elif "## Tools" in prompt:
        answer = CALL.partition("</think>")[2]
        return CALL if prompt.endswith("<think>") else answer
    elif "## Response Format" in prompt:
        answer = '{"city": "Oslo", "days": 2}'
    else:
        answer = "Hello there!"
    return f"Hm.</think>{answer}" if prompt.endswith("<think>") else answer


@pytest.fixture(scope="module")
def server() -> Iterator[Live]:
    with live(ScriptedEngine(script)) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Live) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as made:
        yield made


def engine(server: Live) -> ScriptedEngine:
    assert isinstance(server.engine, ScriptedEngine)
    return server.engine


def chat(client: OpenAI, **how: Any) -> Any:
    return client.chat.completions.create(**{"model": "sounding", "messages": HI} | how)


# --------------------------------------------------------------------------------------------------
# Chat


def test_reasoning_and_content(client: OpenAI) -> None:
    done = chat(client)
    (choice,) = done.choices
    assert choice.message.content == "Hello there!"
    assert choice.message.reasoning_content == "Hm."
    assert choice.finish_reason == "stop"
    assert done.usage.completion_tokens_details.reasoning_tokens == 4
    assert done.usage.prompt_tokens == done.usage.prompt_cache_hit_tokens + (
        done.usage.prompt_cache_miss_tokens
    )


def test_thinking_can_be_switched_off(client: OpenAI, server: Live) -> None:
    for how in ({"extra_body": {"thinking": {"type": "disabled"}}}, {"reasoning_effort": "none"}):
        (choice,) = chat(client, **how).choices
        assert choice.message.content == "Hello there!"
        assert not hasattr(choice.message, "reasoning_content")
        assert engine(server).prompts[-1].endswith("<｜Assistant｜></think>")


def test_effort_reaches_the_prompt(client: OpenAI, server: Live) -> None:
    chat(client, reasoning_effort="high")
    assert "Reasoning Effort" not in engine(server).prompts[-1]
    chat(client, extra_body={"reasoning_effort": "max"})
    assert "Reasoning Effort: Absolute maximum" in engine(server).prompts[-1]


def test_streamed_text_is_the_whole_text(client: OpenAI) -> None:
    content = reasoning = ""
    chunks = list(chat(client, stream=True, stream_options={"include_usage": True}))
    for chunk in chunks[:-1]:
        assert chunk.usage is None
        delta = chunk.choices[0].delta
        content += delta.content or ""
        reasoning += getattr(delta, "reasoning_content", None) or ""
    assert (reasoning, content) == ("Hm.", "Hello there!")
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == 7


def test_sampling_reaches_the_engine(client: OpenAI, server: Live) -> None:
    chat(client, temperature=0.3, top_p=0.8, seed=7, max_tokens=50, stop="xyz")
    request = engine(server).requests[-1]
    assert (request.params.temperature, request.params.top_p, request.params.seed) == (0.3, 0.8, 7)
    assert isinstance(request.answer, ContentRule)
    assert (request.max_tokens, request.answer.stops) == (50, ("xyz",))
    chat(client)
    request, other = engine(server).requests[-1], engine(server).requests[-2]
    assert request.params.temperature == 1.0
    assert request.params.seed != other.params.seed


def test_stop_strings_and_length(client: OpenAI) -> None:
    stopped = chat(client, stop=["there"], reasoning_effort="none").choices[0]
    assert (stopped.message.content, stopped.finish_reason) == ("Hello ", "stop")
    cut = chat(client, max_tokens=1, reasoning_effort="none").choices[0]
    assert (cut.message.content, cut.finish_reason) == ("Hello", "length")


def test_several_choices_have_seeds_of_their_own(client: OpenAI, server: Live) -> None:
    done = chat(client, n=3, seed=5)
    assert [choice.index for choice in done.choices] == [0, 1, 2]
    assert [request.params.seed for request in engine(server).requests[-3:]] == [5, 6, 7]
    assert done.usage.completion_tokens == 21
    texts = ["", "", ""]
    for chunk in chat(client, n=3, stream=True):
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert texts == ["Hello there!"] * 3


def test_logprobs_are_of_the_content(client: OpenAI) -> None:
    (choice,) = chat(client, logprobs=True, top_logprobs=2).choices
    assert "".join(entry.token for entry in choice.logprobs.content) == "Hello there!"
    first = choice.logprobs.content[0]
    assert first.logprob == -0.5
    assert [top.logprob for top in first.top_logprobs] == [-0.5, -9999.0]
    assert [entry["token"] for entry in choice.logprobs.reasoning_content] == ["H", "m", "."]


def test_prefix_is_continued(client: OpenAI, server: Live) -> None:
    messages = [*HI, {"role": "assistant", "content": "Once", "prefix": True}]
    (choice,) = chat(client, messages=messages, reasoning_effort="none").choices
    assert engine(server).prompts[-1].endswith("</think>Once")
    assert choice.message.content == "Hello there!"


def test_roles_and_parts(client: OpenAI, server: Live) -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    messages = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": parts}]
    chat(client, messages=messages)
    assert engine(server).prompts[-1].endswith("Be brief.<｜User｜>a\n\nb<｜Assistant｜><think>")


# --------------------------------------------------------------------------------------------------
# Tools


def test_calls_come_back_whole(client: OpenAI) -> None:
    (choice,) = chat(client, tools=TOOLS).choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content == "Let me see."
    first, second = choice.message.tool_calls
    assert first.function.name == "weather"
    assert json.loads(first.function.arguments) == {"city": "Oslo", "days": 2}
    assert (second.function.name, second.function.arguments) == ("clock", "{}")
    assert first.id != second.id


def test_arguments_of_calls_stream_in_pieces(client: OpenAI) -> None:
    names: dict[int, str] = {}
    arguments: dict[int, str] = {}
    pieces = 0
    for chunk in chat(client, tools=TOOLS, stream=True):
        for call in chunk.choices[0].delta.tool_calls or ():
            if call.function.name:
                assert call.id
                names[call.index] = call.function.name
            arguments[call.index] = arguments.get(call.index, "") + call.function.arguments
            pieces += 1
    assert names == {0: "weather", 1: "clock"}
    assert json.loads(arguments[0]) == {"city": "Oslo", "days": 2}
    assert arguments[1] == "{}"
    assert pieces > 5  # not in one piece


def test_a_turn_with_results(client: OpenAI, server: Live) -> None:
    """What the client lost, reasoning and the way calls were written, is in the next prompt."""
    first = chat(client, tools=TOOLS).choices[0].message
    sampled = engine(server).prompts[-1] + CALL
    calls = [call.model_dump() for call in first.tool_calls]
    calls[0]["function"]["arguments"] = '{"city":"Oslo","days":2}'
    results = [
        {"role": "tool", "tool_call_id": call["id"], "content": f"r{index}"}
        for index, call in reversed(list(enumerate(calls)))
    ]
    messages = [*HI, {"role": "assistant", "content": first.content, "tool_calls": calls}]
    done = chat(client, messages=[*messages, *results], tools=TOOLS)
    prompt = engine(server).prompts[-1]
    assert prompt.startswith(sampled + "<｜end▁of▁sentence｜><｜User｜>")
    assert "<tool_result>r0</tool_result>\n\n<tool_result>r1</tool_result>" in prompt
    assert done.choices[0].message.content == "It rains."
    # All of it but the results and the way back is in the cache, to the token.
    assert done.usage.prompt_cache_miss_tokens < 40


@pytest.mark.parametrize(
    ("choice", "calls"),
    [
        ("required", "block"),
        ({"type": "function", "function": {"name": "clock"}}, "block"),
        ("none", "CLEAN"),
    ],
)
def test_tool_choice_is_a_grammar(client: OpenAI, server: Live, choice: Any, calls: str) -> None:
    chat(client, tools=TOOLS, tool_choice=choice)
    grammar = engine(server).requests[-1].grammar
    assert grammar is not None and f"turn: {calls}\n" in grammar.text
    named = isinstance(choice, dict)
    assert ("weather" in grammar.text) is (choice == "required")
    assert not named or "clock" in grammar.text


def test_strict_tools_are_held_to_their_schema(client: OpenAI, server: Live) -> None:
    chat(client, tools=TOOLS)
    assert engine(server).requests[-1].grammar is None
    strict = [TOOLS[0] | {"function": TOOLS[0]["function"] | {"strict": True}}]
    chat(client, tools=strict)
    grammar = engine(server).requests[-1].grammar
    assert grammar is not None and "turn: CLEAN | block" in grammar.text
    assert '"strict"' not in engine(server).prompts[-1]
    chat(client, tools=TOOLS, parallel_tool_calls=False)
    grammar = engine(server).requests[-1].grammar
    assert grammar is not None and "block: opening call " in grammar.text


class Forecast(BaseModel):
    city: str
    days: int


def test_json_schema_into_a_model(client: OpenAI, server: Live) -> None:
    done = client.chat.completions.parse(model="sounding", messages=HI, response_format=Forecast)
    assert done.choices[0].message.parsed == Forecast(city="Oslo", days=2)
    grammar = engine(server).requests[-1].grammar
    assert grammar is not None and '"required": ["city", "days"]' in grammar.text
    assert '"city"' in engine(server).prompts[-1]


def test_a_json_object_format_constrains_the_answer(client: OpenAI, server: Live) -> None:
    chat(client, response_format={"type": "json_object"})
    grammar = engine(server).requests[-1].grammar
    assert grammar is not None and '"type": ["object"]' in grammar.text
    assert "Response Format" not in engine(server).prompts[-1]


# --------------------------------------------------------------------------------------------------
# Completions


def test_completions_echo_and_stream_several_prompts(client: OpenAI, server: Live) -> None:
    done = client.completions.create(model="sounding", prompt="def f", max_tokens=3, echo=True)
    assert done.choices[0].text == "def fHello there!"
    assert engine(server).prompts[-1] == "<｜begin▁of▁sentence｜>def f"
    streamed = client.completions.create(model="sounding", prompt=[[5, 6], [7]], stream=True)
    texts = {0: "", 1: ""}
    for chunk in streamed:
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == {0: "Hello there!", 1: "Hello there!"}
    assert [list(r.prompt) for r in engine(server).requests[-2:]] == [[5, 6], [7]]


def test_completions_have_logprobs_with_offsets(client: OpenAI) -> None:
    done = client.completions.create(model="sounding", prompt="x", max_tokens=2, logprobs=1)
    logprobs: Any = done.choices[0].logprobs
    assert logprobs.tokens == ["Hello", " there"]
    assert logprobs.text_offset == [0, 5]
    assert logprobs.top_logprobs[0] == {"Hello": -0.5}


def test_the_served_model_is_listed(client: OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["sounding"]
    assert client.models.retrieve("sounding").owned_by == "sounding"


# --------------------------------------------------------------------------------------------------
# Responses


def test_a_response_has_reasoning_and_message(client: OpenAI, server: Live) -> None:
    done = client.responses.create(
        model="sounding", input="Hi", instructions="Be brief.", metadata={"a": "b"}
    )
    assert done.output_text == "Hello there!"
    reasoning, message = done.output
    assert reasoning.type == "reasoning" and reasoning.content is not None
    assert reasoning.content[0].text == "Hm."
    assert message.type == "message" and done.status == "completed"
    assert done.metadata == {"a": "b"}
    assert engine(server).prompts[-1].startswith("<｜begin▁of▁sentence｜>Be brief.<｜User｜>Hi")


def test_a_response_streams_numbered_events(client: OpenAI) -> None:
    with client.responses.stream(model="sounding", input="Hi") as stream:
        events = list(stream)
        final = stream.get_final_response()
    assert final.output_text == "Hello there!"
    assert [event.sequence_number for event in events] == list(range(len(events)))
    deltas = [e.delta for e in events if e.type == "response.output_text.delta"]
    assert "".join(deltas) == "Hello there!" and len(deltas) > 1


def test_response_calls_and_goes_on(client: OpenAI, server: Live) -> None:
    """A whole turn, its output passed back as it is: nothing of it is lost."""
    tools: list[Any] = [{"type": "function", "strict": None, **t["function"]} for t in TOOLS]
    for tool in tools:
        tool.setdefault("parameters", None)
    include: list[Any] = ["reasoning.encrypted_content"]
    given: list[Any] = [{"role": "user", "content": "Hi"}]
    first = client.responses.create(model="sounding", input=given, tools=tools, include=include)
    sampled = engine(server).prompts[-1] + CALL
    calls = [item for item in first.output if item.type == "function_call"]
    assert [call.name for call in calls] == ["weather", "clock"]
    for item in first.output:
        kept = item.model_dump(exclude_none=True)
        if item.type == "reasoning":
            assert kept.pop("content")  # as clients do that take it for noise
        given.append(kept)
    for call in calls:
        given.append({"type": "function_call_output", "call_id": call.call_id, "output": "r"})
    done = client.responses.create(model="sounding", input=given, tools=tools)
    assert engine(server).prompts[-1].startswith(sampled + "<｜end▁of▁sentence｜><｜User｜>")
    assert done.output_text == "It rains."


def test_a_response_parses_into_a_model_class(client: OpenAI) -> None:
    done = client.responses.parse(model="sounding", input="Hi", text_format=Forecast)
    assert done.output_parsed == Forecast(city="Oslo", days=2)


def test_response_that_is_cut(client: OpenAI) -> None:
    done = client.responses.create(model="sounding", input="Hi", max_output_tokens=1)
    assert done.status == "incomplete" and done.incomplete_details is not None
    assert done.incomplete_details.reason == "max_output_tokens"


# --------------------------------------------------------------------------------------------------
# Errors


def test_errors_are_the_library_s_own(client: OpenAI, server: Live) -> None:
    with pytest.raises(openai.NotFoundError) as not_found:
        chat(client, model="gpt-9")
    assert not_found.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as bad:
        chat(client, extra_body={"temperatur": 1})
    assert bad.value.param == "temperatur" and "'temperature'" in bad.value.message
    with pytest.raises(openai.BadRequestError) as refused:
        chat(client, frequency_penalty=0.5)
    assert refused.value.param == "frequency_penalty"
    with pytest.raises(openai.BadRequestError) as long:
        chat(client, messages=[{"role": "user", "content": "word " * 5000}])
    assert long.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError):
        client.responses.create(model="sounding", input="Hi", previous_response_id="resp_1")
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model="sounding", input="Hi")


def test_an_engine_that_fails(client: OpenAI, server: Live) -> None:
    failing = engine(server)
    failing.end, failing.fail = "error", "no memory left"
    try:
        with pytest.raises(openai.InternalServerError, match="no memory left"):
            chat(client)
        with pytest.raises(openai.APIError, match="no memory left"):
            list(chat(client, stream=True))
        with pytest.raises(openai.InternalServerError):
            client.responses.create(model="sounding", input="Hi")
    finally:
        failing.end, failing.fail = "stop", None


def test_reasons_without_a_word_of_their_own(client: OpenAI, server: Live) -> None:
    limited = engine(server)
    for reason in ("time", "repetition"):
        limited.end = reason
        try:
            choice = chat(client).choices[0]
        finally:
            limited.end = "stop"
        assert (choice.finish_reason, choice.finish_detail) == ("length", reason)
