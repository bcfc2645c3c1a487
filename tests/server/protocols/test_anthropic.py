"""The `anthropic` library, unmodified, over a live server."""

from collections.abc import Iterator
from typing import Any

import anthropic
import pytest
from anthropic import Anthropic

from tests.server.live import Live, live
from tests.server.protocols.test_openai import CALL, HI, TOOLS, engine, script
from tests.server.scripted import ScriptedEngine

THINKING: Any = {"type": "enabled", "budget_tokens": 2048}
OWN_TOOLS: list[Any] = [
    {
        "name": tool["function"]["name"],
        "input_schema": tool["function"].get("parameters", {"type": "object"}),
    }
    for tool in TOOLS
]


@pytest.fixture(scope="module")
def server() -> Iterator[Live]:
    with live(ScriptedEngine(script)) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Live) -> Iterator[Anthropic]:
    with Anthropic(base_url=server.url, api_key="none", max_retries=0) as made:
        yield made


def ask(client: Anthropic, **how: Any) -> Any:
    create: Any = client.messages.create
    return create(**{"model": "sounding", "max_tokens": 500, "messages": HI} | how)


def test_text_alone_unless_thinking_is_asked_for(client: Anthropic, server: Live) -> None:
    done = ask(client, system="Be brief.")
    (block,) = done.content
    assert (block.type, block.text) == ("text", "Hello there!")
    assert (done.stop_reason, done.stop_sequence) == ("end_turn", None)
    assert engine(server).prompts[-1] == (
        "<｜begin▁of▁sentence｜>Be brief.<｜User｜>Hi<｜Assistant｜></think>"
    )
    usage = done.usage
    assert usage.input_tokens + usage.cache_read_input_tokens == len(
        engine(server).requests[-1].prompt
    )
    assert usage.output_tokens == 3


def test_thinking_comes_as_a_signed_block_before_the_text(client: Anthropic) -> None:
    thinking, text = ask(client, thinking=THINKING).content
    assert (thinking.type, thinking.thinking) == ("thinking", "Hm.")
    assert thinking.signature
    assert text.text == "Hello there!"


def test_a_stream_gives_thinking_and_text_blocks(client: Anthropic) -> None:
    with client.messages.stream(
        model="sounding", max_tokens=500, messages=HI, thinking=THINKING
    ) as stream:
        texts = list(stream.text_stream)
        final = stream.get_final_message()
    assert "".join(texts) == "Hello there!" and len(texts) > 1
    thinking, text = final.content
    assert thinking.type == "thinking" and thinking.thinking == "Hm."
    assert text.type == "text" and text.text == "Hello there!"
    assert final.stop_reason == "end_turn"
    assert final.usage.output_tokens == 7


@pytest.mark.parametrize("display", ["summarized", "omitted"])
def test_a_turn_with_tools(client: Anthropic, server: Live, display: Any) -> None:
    """Blocks passed back as they are give the model its own words back, shown or not."""
    thinking = THINKING | {"display": display}
    first = ask(client, tools=OWN_TOOLS, thinking=thinking)
    sampled = engine(server).prompts[-1] + CALL
    assert first.stop_reason == "tool_use"
    assert [block.type for block in first.content] == ["thinking", "text", "tool_use", "tool_use"]
    assert first.content[0].thinking == ("Look." if display == "summarized" else "")
    weather, clock = first.content[2:]
    assert weather.input == {"city": "Oslo", "days": 2} and clock.input == {}
    results = [
        {"type": "tool_result", "tool_use_id": clock.id, "content": "r1"},
        {
            "type": "tool_result",
            "tool_use_id": weather.id,
            "content": [{"type": "text", "text": "r0"}],
            "is_error": False,
        },
        {"type": "text", "text": "And?"},
    ]
    # A server that remembers nothing, as after a restart, must find it in the blocks.
    with live(ScriptedEngine(script)) as other:
        again = Anthropic(base_url=other.url, api_key="none", max_retries=0)
        history = [*HI, {"role": "assistant", "content": first.content}]
        done = ask(
            again,
            tools=OWN_TOOLS,
            thinking=thinking,
            messages=[*history, {"role": "user", "content": results}],
        )
        again.close()
        prompt = engine(other).prompts[-1]
    assert prompt.startswith(sampled + "<｜end▁of▁sentence｜><｜User｜>")
    assert prompt.endswith(
        "<tool_result>r0</tool_result>\n\n<tool_result>r1</tool_result>\n\nAnd?"
        "<｜Assistant｜><think>"
    )
    assert done.content[-1].text == "It rains."


def test_arguments_of_calls_stream_in_pieces(client: Anthropic) -> None:
    with client.messages.stream(
        model="sounding", max_tokens=500, messages=HI, tools=OWN_TOOLS
    ) as stream:
        pieces = [event.partial_json for event in stream if event.type == "input_json"]
        final = stream.get_final_message()
    assert len(pieces) > 3
    calls = [block for block in final.content if block.type == "tool_use"]
    assert [call.input for call in calls] == [{"city": "Oslo", "days": 2}, {}]


def test_tool_choice_constrains_the_grammar(client: Anthropic, server: Live) -> None:
    ask(client, tools=OWN_TOOLS, tool_choice={"type": "tool", "name": "clock"})
    grammar = engine(server).requests[-1].grammar
    assert grammar is not None
    assert "turn: block" in grammar.text and "weather" not in grammar.text
    ask(client, tools=OWN_TOOLS, tool_choice={"type": "auto", "disable_parallel_tool_use": True})
    grammar = engine(server).requests[-1].grammar
    assert grammar is not None and "block: opening call " in grammar.text


def test_prefill_is_continued(client: Anthropic, server: Live) -> None:
    done = ask(client, messages=[*HI, {"role": "assistant", "content": "Once"}])
    assert engine(server).prompts[-1].endswith("</think>Once")
    assert done.content[0].text == "Hello there!"


def test_why_it_stopped(client: Anthropic) -> None:
    stopped = ask(client, stop_sequences=["there"])
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", "there")
    assert stopped.content[0].text == "Hello "
    assert ask(client, max_tokens=1).stop_reason == "max_tokens"
    with live(ScriptedEngine("word " * 100, context_tokens=32)) as small:
        narrow = Anthropic(base_url=small.url, api_key="none", max_retries=0)
        assert ask(narrow).stop_reason == "model_context_window_exceeded"
        narrow.close()


def test_thinking_budget_ends_the_thinking(client: Anthropic, server: Live) -> None:
    ask(client, thinking={"type": "enabled", "budget_tokens": 2})
    answer = engine(server).requests[-1].answer
    assert answer is not None
    # The script has told it H, m, ., </think>: after two tokens only the end was allowed.
    fresh = type(answer)(2, 99)  # type: ignore[call-arg]
    assert fresh.allowed() is None
    assert fresh.push(1, 0.0) and fresh.push(2, 0.0)
    assert fresh.allowed() == [99]
    assert fresh.push(99, 0.0) and fresh.allowed() is None


def test_a_json_schema_constrains_the_answer(client: Anthropic, server: Live) -> None:
    schema = {"type": "object", "properties": {"city": {"type": "string"}}}
    ask(client, output_config={"format": {"type": "json_schema", "schema": schema}})
    grammar = engine(server).requests[-1].grammar
    assert grammar is not None and "%json" in grammar.text


def test_count_tokens_counts_what_is_prefilled(client: Anthropic, server: Live) -> None:
    how: Any = {"system": "S", "tools": OWN_TOOLS, "thinking": THINKING, "messages": HI}
    counted = client.messages.count_tokens(model="sounding", **how)
    ask(client, **how)
    assert counted.input_tokens == len(engine(server).requests[-1].prompt)


def test_errors_are_the_library_s_own(client: Anthropic, server: Live) -> None:
    with pytest.raises(anthropic.NotFoundError):
        ask(client, model="claude")
    with pytest.raises(anthropic.BadRequestError, match="prompt is too long: 50"):
        ask(client, messages=[{"role": "user", "content": "word " * 5000}])
    with pytest.raises(anthropic.BadRequestError, match="'containr'"):
        ask(client, extra_body={"containr": 1})
    with pytest.raises(anthropic.BadRequestError, match="web_search"):
        ask(client, tools=[{"type": "web_search_20250305", "name": "web_search"}])
    image: Any = {"type": "image", "source": {"type": "url", "url": "u"}}
    with pytest.raises(anthropic.BadRequestError, match="text only"):
        ask(client, messages=[{"role": "user", "content": [image]}])
    failing = engine(server)
    failing.end, failing.fail = "error", "no memory left"
    try:
        with pytest.raises(anthropic.InternalServerError, match="no memory left"):
            ask(client)
        stream = ask(client, stream=True)
        with pytest.raises(anthropic.APIStatusError, match="no memory left"):
            list(stream)
    finally:
        failing.end, failing.fail = "stop", None


def test_a_result_of_no_call_is_refused(client: Anthropic) -> None:
    result = {"type": "tool_result", "tool_use_id": "toolu_9", "content": "x"}
    with pytest.raises(anthropic.BadRequestError, match="no tool_use before it has the id"):
        ask(client, messages=[{"role": "user", "content": [result]}])


def test_a_temperature_above_one_is_refused(client: Anthropic) -> None:
    with pytest.raises(anthropic.BadRequestError, match="temperature"):
        ask(client, extra_body={"temperature": 1.5})
