"""What Claude Code 2.1.332 and 2.1.210 (2026) send to `/v1/messages`, in our own words.

Tools that a search finds, a message's own effort, a first system block that changes with each
request, and blocks of other models in the history.
"""

from collections.abc import Iterator
from typing import Any

import pytest

from sounding.server.options import ServerOptions
from tests.server.live import Live, live, post
from tests.server.protocols.test_absent import case, prompt
from tests.server.scripted import ScriptedEngine

ASK = {"role": "user", "content": "hi"}
SCHEMA = {"type": "object", "properties": {}}
SEARCH: dict[str, Any] = {"name": "ToolSearch", "description": "Find.", "input_schema": SCHEMA}
CLOCK: dict[str, Any] = {
    "name": "Clock",
    "description": "Tell the time.",
    "input_schema": SCHEMA,
    "defer_loading": True,
}
DIARY = {**CLOCK, "name": "Diary"}
PICTURE = {
    "type": "image",
    "source": {"type": "base64", "media_type": "image/png", "data": "aaaa"},
}


@pytest.fixture(scope="module")
def server() -> Iterator[Live]:
    settings = ServerOptions(model_names=("nano",), effort_scheme="0731")
    with live(ScriptedEngine("Yes."), settings) as running:
        yield running


def ask(server: Live, messages: list[Any], **more: Any) -> Any:
    body = {"model": "nano", "max_tokens": 8, "messages": messages, **more}
    answer = post(server.url + "/v1/messages?beta=true", json=body)
    assert answer.status_code == 200, answer.text
    asked = prompt(server)
    del body["max_tokens"]
    counted = post(server.url + "/v1/messages/count_tokens", json=body).json()
    assert isinstance(server.engine, ScriptedEngine)
    assert counted["input_tokens"] == len(server.engine.requests[-1].prompt)
    assert prompt(server) == asked
    return answer.json()


def refused(server: Live, messages: list[Any], **more: Any) -> str:
    body = {"model": "nano", "max_tokens": 8, "messages": messages, **more}
    answer = post(server.url + "/v1/messages", json=body)
    assert answer.status_code == 400, answer.text
    message: str = answer.json()["error"]["message"]
    return message


def searched(*names: str, call: str = "t1") -> list[Any]:
    found = [{"type": "tool_reference", "tool_name": name} for name in names]
    use = {"type": "tool_use", "id": call, "name": "ToolSearch", "input": {}}
    return [
        {"role": "assistant", "content": [use]},
        {
            "role": "user",
            "content": [{"type": "tool_result", "tool_use_id": call, "content": found}],
        },
    ]


def test_deferred_tools_are_left_out(server: Live) -> None:
    ask(server, [ASK], tools=[SEARCH])
    without = prompt(server)
    ask(server, [ASK], tools=[SEARCH, CLOCK])
    assert prompt(server) == without


def test_a_reference_shows_a_tool_where_it_stands(server: Live) -> None:
    tools = [SEARCH, CLOCK, DIARY]
    ask(server, [ASK], tools=tools)
    first = prompt(server)
    history = [ASK, *searched("Clock")]
    ask(server, history, tools=tools)
    second = prompt(server)
    assert second.startswith(first)
    line = '{"name": "Clock", "description": "Tell the time.", "parameters": '
    assert f"<tool_result>{line}" in second and "Diary" not in second
    history += [{"role": "assistant", "content": "ok"}, ASK, *searched("Clock", "Diary", call="t2")]
    ask(server, history, tools=tools)
    third = prompt(server)
    assert third.startswith(second.removesuffix("<｜Assistant｜></think>"))
    assert third.count(line) == 1
    assert '<tool_result>Clock\n{"name": "Diary"' in third


def test_a_reference_to_what_is_shown_or_gone_is_its_name(server: Live) -> None:
    ask(server, [ASK, *searched("ToolSearch", "Gone")], tools=[SEARCH])
    assert "<tool_result>ToolSearch\nGone</tool_result>" in prompt(server)


def test_a_required_tool_is_one_that_the_model_knows(server: Live) -> None:
    assert isinstance(server.engine, ScriptedEngine)
    both = [SEARCH, CLOCK]
    ask(server, [ASK], tools=both, tool_choice={"type": "any"})
    grammar = server.engine.requests[-1].grammar
    assert grammar is not None and "Clock" not in grammar.text
    ask(server, [ASK, *searched("Clock")], tools=both, tool_choice={"type": "any"})
    grammar = server.engine.requests[-1].grammar
    assert grammar is not None and "Clock" in grammar.text
    ask(server, [ASK], tools=both, tool_choice={"type": "tool", "name": "Clock"})
    assert '"name": "Clock"' in prompt(server)
    refused(server, [ASK], tools=[CLOCK], tool_choice={"type": "any"})


def test_the_effort_of_a_message(server: Live) -> None:
    told = {"role": "system", "content": "env", "output_config": {"effort": "max"}}
    how = {"thinking": {"type": "adaptive"}, "output_config": {"effort": "low"}}
    ask(server, [ASK, {"role": "system", "content": "env"}], **how)
    assert "Reasoning Effort" not in prompt(server)
    ask(server, [ASK, told], **how)
    assert "Beyond maximum" in prompt(server)
    ask(server, [ASK, told, {**told, "output_config": {"effort": "low"}}], **how)
    assert "Reasoning Effort" not in prompt(server)
    assert "effort" in refused(server, [ASK, {**told, "output_config": {"effort": "huge"}}])


def test_the_first_system_block_changes_nothing(server: Live) -> None:
    body = case("billing-header.messages.json")
    header = body["system"][0]["text"]
    post(server.url + "/v1/messages", json=body)
    first = prompt(server)
    assert "billing" not in first and "Point 0" in first
    body["system"][0]["text"] = header.replace("cch=1a2b3", "cch=99999")
    again = post(server.url + "/v1/messages", json=body).json()
    assert prompt(server) == first and again["usage"]["cache_read_input_tokens"] > 0
    body["system"] = header + "\n\n" + body["system"][1]["text"]
    post(server.url + "/v1/messages", json=body)
    assert prompt(server) == first
    body["system"] = header
    post(server.url + "/v1/messages", json=body)
    assert prompt(server) == "<｜begin▁of▁sentence｜><｜User｜>ready?<｜Assistant｜></think>"
    ask(server, [ASK, {"role": "system", "content": header}])
    assert "billing" not in prompt(server)


@pytest.mark.parametrize(
    "block",
    [
        {"type": "redacted_thinking", "data": "aaaa"},
        {"type": "server_tool_use", "id": "s", "name": "web_search", "input": {"query": "q"}},
        {"type": "web_search_tool_result", "tool_use_id": "s", "content": []},
        {"type": "mcp_tool_use", "id": "m", "name": "x", "server_name": "y", "input": {}},
        {"type": "mcp_tool_result", "tool_use_id": "m", "content": [], "is_error": False},
    ],
    ids=lambda block: str(block["type"]),
)
def test_blocks_of_other_models_are_left_out(server: Live, block: dict[str, Any]) -> None:
    text = {"type": "text", "text": "ok"}
    ask(server, [ASK, {"role": "assistant", "content": [text]}, ASK])
    without = prompt(server)
    ask(server, [ASK, {"role": "assistant", "content": [block, text]}, ASK])
    assert prompt(server) == without


@pytest.mark.parametrize(
    ("part", "shown"),
    [
        (PICTURE, "[Unsupported image]"),
        (
            {"type": "document", "source": {"type": "base64", "data": "aaaa"}},
            "[Unsupported document]",
        ),
        ({"type": "document", "source": {"type": "text", "data": "words"}}, "words"),
        (
            {
                "type": "search_result",
                "title": "t",
                "source": "https://example.com",
                "content": [{"type": "text", "text": "words"}],
            },
            "words",
        ),
    ],
)
def test_results_that_are_no_text(server: Live, part: dict[str, Any], shown: str) -> None:
    use = {"type": "tool_use", "id": "t1", "name": "Read", "input": {}}
    content = [{"type": "text", "text": "a"}, part]
    result = {"type": "tool_result", "tool_use_id": "t1", "content": content}
    ask(
        server,
        [ASK, {"role": "assistant", "content": [use]}, {"role": "user", "content": [result]}],
    )
    assert f"<tool_result>a\n\n{shown}</tool_result>" in prompt(server)


def test_a_picture_is_refused_where_it_is_asked_about(server: Live) -> None:
    shows = {"role": "user", "content": [PICTURE, {"type": "text", "text": "what is it?"}]}
    assert "text only" in refused(server, [shows])
    ask(server, [shows, {"role": "assistant", "content": "a cat"}, ASK])
    assert "[Unsupported image]\n\nwhat is it?" in prompt(server)


@pytest.mark.parametrize("given", [None, "", " ", {}])
def test_calls_without_input(server: Live, given: Any) -> None:
    use = {"type": "tool_use", "id": "t1", "name": "Now", "input": given}
    result = {"type": "tool_result", "tool_use_id": "t1", "content": "9:00"}
    ask(
        server,
        [ASK, {"role": "assistant", "content": [use]}, {"role": "user", "content": [result]}],
    )
    assert "parameter" not in prompt(server)
