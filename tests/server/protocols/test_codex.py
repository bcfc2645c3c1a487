"""What Codex CLI 0.171 (December 2026) sends to `/v1/responses`: tools and items of every kind.

The bodies are in its shape, in our own words; see tests/vectors/cases.
"""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from sounding.server.options import ServerOptions
from sounding.server.protocols.opaque import wrap
from tests.server.live import Live, live, post
from tests.server.protocols.test_absent import case, prompt
from tests.server.scripted import ScriptedEngine

OBJECT = {"type": "object", "properties": {}}
CLOCK = {"type": "function", "name": "clock", "parameters": OBJECT, "defer_loading": True}
NAMESPACE = {"type": "namespace", "name": "mcp__t", "description": "d", "tools": [CLOCK]}
PATCH = {"type": "custom", "name": "apply_patch", "description": "Change files."}
SEARCH = {
    "type": "tool_search",
    "execution": "client",
    "description": "Find.",
    "parameters": OBJECT,
}
OFFERS = [
    {"type": "web_search", "external_web_access": False},
    {"type": "web_search_preview_2025_03_11"},
    {"type": "file_search", "vector_store_ids": ["v"]},
    {"type": "image_generation"},
    {"type": "code_interpreter", "container": {"type": "auto"}},
    {"type": "mcp", "server_label": "x", "server_url": "https://example.com"},
    {"type": "local_shell"},
    {"type": "tool_search", "execution": "server"},
]


def calling(name: str, arguments: dict[str, str]) -> str:
    given = "".join(
        f'<｜DSML｜parameter name="{key}" string="true">{value}</｜DSML｜parameter>\n'
        for key, value in arguments.items()
    )
    invoke = f'<｜DSML｜invoke name="{name}">\n{given}</｜DSML｜invoke>\n'
    return f"\n\n<｜DSML｜tool_calls>\n{invoke}</｜DSML｜tool_calls>"


def script(asked: str) -> str:
    question = asked.rpartition("<｜User｜>")[2]
    for name, arguments in (
        ("mcp__t__clock", {}),
        ("apply_patch", {"input": 'a "b"\nc'}),
        ("tool_search", {"query": "q"}),
    ):
        if question.startswith(name):
            return calling(name, arguments)
    return "Yes."


@pytest.fixture(scope="module")
def server() -> Iterator[Live]:
    with live(
        ScriptedEngine(script), ServerOptions(model_names=("nano",), thinking=False)
    ) as running:
        yield running


def ask(server: Live, **body: Any) -> Any:
    answer = post(server.url + "/v1/responses", json={"input": "hi", "model": "nano", **body})
    assert answer.status_code == 200, answer.text
    return answer.json()


def refused(server: Live, **body: Any) -> str:
    answer = post(server.url + "/v1/responses", json={"input": "hi", "model": "nano", **body})
    assert answer.status_code == 400, answer.text
    message: str = answer.json()["error"]["message"]
    return message


@pytest.mark.parametrize("name", ["codex-mixed-tools", "codex-history-items"])
def test_recorded_requests_are_answered(server: Live, name: str) -> None:
    ask(server, **case(f"{name}.responses.json"))


def test_a_function_of_a_namespace_is_called_back_by_its_parts(server: Live) -> None:
    done = ask(server, input="mcp__t__clock", tools=[NAMESPACE])
    (call,) = done["output"]
    assert '"name": "mcp__t__clock"' in prompt(server)
    assert (call["type"], call["name"], call["namespace"]) == ("function_call", "clock", "mcp__t")
    assert call["arguments"] == "{}"
    history = [
        {"role": "user", "content": "mcp__t__clock"},
        call,
        {"type": "function_call_output", "call_id": call["call_id"], "output": "9:00"},
    ]
    asked = prompt(server)
    ask(server, input=history, tools=[NAMESPACE])
    assert prompt(server).startswith(asked + calling("mcp__t__clock", {}))


def test_the_joined_name_of_a_namespace_that_ends_with_a_join(server: Live) -> None:
    ask(server, input="mcp__t__clock", tools=[NAMESPACE | {"name": "mcp__t__"}])
    assert '"name": "mcp__t__clock"' in prompt(server)


def test_a_namespace_s_function_can_be_required(server: Live) -> None:
    choice = {"type": "function", "name": "clock", "namespace": "mcp__t"}
    ask(server, input="mcp__t__clock", tools=[NAMESPACE], tool_choice=choice)
    assert "clock" in refused(server, tools=[NAMESPACE], tool_choice={**choice, "namespace": "u"})


@pytest.mark.parametrize("offer", OFFERS, ids=lambda offer: str(offer["type"]))
def test_offers_to_a_hosted_service_are_left_out(server: Live, offer: dict[str, Any]) -> None:
    ask(server, tools=[NAMESPACE])
    without = prompt(server)
    ask(server, tools=[offer, NAMESPACE], tool_choice="auto")
    assert prompt(server) == without
    ask(server, tools=[offer])
    assert "## Tools" not in prompt(server)
    refused(server, tools=[offer], tool_choice={"type": offer["type"]})
    refused(server, tools=[offer], tool_choice="required")


def test_only_allowed_tools_can_be_called(server: Live) -> None:
    named = {"type": "function", "name": "clock", "namespace": "mcp__t"}
    tools = [NAMESPACE, PATCH, OFFERS[0]]
    allowed: dict[str, Any] = {"type": "allowed_tools", "mode": "required"}
    ask(server, tools=tools, tool_choice=allowed | {"tools": [named, {"type": "web_search"}]})
    assert isinstance(server.engine, ScriptedEngine)
    grammar = server.engine.requests[-1].grammar
    assert grammar is not None and "mcp__t__clock" in grammar.text
    assert "apply_patch" not in grammar.text
    refused(server, tools=tools, tool_choice=allowed | {"tools": [{"type": "web_search"}]})
    refused(server, tools=tools, tool_choice=allowed | {"tools": [{"type": "function"}]})
    refused(server, tools=tools, tool_choice=allowed | {"tools": [named, {"type": "fucntion"}]})
    refused(server, tools=tools, tool_choice={"type": "fucntion", "name": "clock"})


def test_a_type_that_nobody_knows_is_refused(server: Live) -> None:
    assert "type" in refused(server, tools=[{"type": "fucntion", "name": "f"}])


def test_a_custom_tool_is_a_function_with_one_string(server: Live) -> None:
    form = {"type": "grammar", "syntax": "lark", "definition": "start: /.+/"}
    done = ask(server, input="apply_patch", tools=[PATCH | {"format": form}])
    shown = prompt(server)
    assert '"name": "apply_patch"' in shown and "start: /.+/" in shown and '"input"' in shown
    (call,) = done["output"]
    assert (call["type"], call["name"], call["input"]) == (
        "custom_tool_call",
        "apply_patch",
        'a "b"\nc',
    )
    history = [
        {"role": "user", "content": "apply_patch"},
        call,
        {"type": "custom_tool_call_output", "call_id": call["call_id"], "output": "done"},
    ]
    ask(server, input=history, tools=[PATCH | {"format": form}])
    assert prompt(server).startswith(shown + calling("apply_patch", {"input": 'a "b"\nc'}))
    assert "<tool_result>done</tool_result>" in prompt(server)


def test_a_custom_call_streams(server: Live) -> None:
    body = {"model": "nano", "input": "apply_patch", "tools": [PATCH], "stream": True}
    text = post(server.url + "/v1/responses", json=body).text
    events = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: ")]
    deltas = [e["delta"] for e in events if e["type"] == "response.custom_tool_call_input.delta"]
    assert "".join(deltas) == 'a "b"\nc'
    (done,) = [e["item"] for e in events if e["type"] == "response.output_item.done"]
    assert (done["type"], done["input"]) == ("custom_tool_call", 'a "b"\nc')


def test_tools_that_a_search_finds(server: Live) -> None:
    """They are written where they were found, and can be called from there on."""
    tools = [SEARCH]
    (call,) = ask(server, input="tool_search", tools=tools)["output"]
    assert (call["type"], call["execution"]) == ("tool_search_call", "client")
    assert call["arguments"] == {"query": "q"}
    asked = prompt(server)
    found = {"type": "tool_search_output", "call_id": call["call_id"], "tools": [NAMESPACE]}
    found |= {"status": "completed", "execution": "client"}
    history = [{"role": "user", "content": "tool_search"}, call, found]
    (call,) = ask(
        server, input=[*history, {"role": "user", "content": "mcp__t__clock"}], tools=tools
    )["output"]
    assert prompt(server).startswith(asked)
    assert '<tool_result>{"name": "mcp__t__clock"' in prompt(server)[len(asked) :]


def test_additional_tools_of_the_input_can_be_called(server: Live) -> None:
    item = {"type": "additional_tools", "role": "developer", "tools": [NAMESPACE]}
    question = {"role": "user", "content": "mcp__t__clock"}
    for tools in ([], [PATCH]):
        (call,) = ask(server, input=[item, question], tools=tools)["output"]
        assert (call["name"], call["namespace"]) == ("clock", "mcp__t")
        assert prompt(server).count('"name": "mcp__t__clock"') == 1


@pytest.mark.parametrize(
    "items",
    [
        [{"type": "web_search_call", "id": "ws_1", "action": {"type": "search", "query": "q"}}],
        [{"type": "compaction", "encrypted_content": "gAAAA"}],
        [{"type": "image_generation_call", "id": "ig_1", "status": "completed", "result": "x"}],
        [{"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "gAAAA"}],
    ],
    ids=lambda items: str(items[0]["type"]),
)
def test_what_another_service_did_by_itself(server: Live, items: list[Any]) -> None:
    question = {"role": "user", "content": "hi"}
    ask(server, input=[question])
    without = prompt(server)
    ask(server, input=[*items, question])
    assert prompt(server) == without


def test_an_answer_that_broke_off_is_gone_on_with(server: Live) -> None:
    """Codex reconnects with the items that it has of the lost answer."""
    asked = {"role": "user", "content": "hi"}
    thought: dict[str, Any] = {"type": "reasoning", "id": "rs_1", "summary": [], "content": None}
    thought |= {"encrypted_content": wrap("I see.")}
    said: dict[str, Any] = {"type": "message", "role": "assistant", "status": "completed"}
    said |= {"content": [{"type": "output_text", "text": "It is", "annotations": []}]}
    thinks = {"reasoning": {"effort": "high"}}
    for items, end in (([thought], "<think>I see.</think>"), ([thought, said], "</think>It is")):
        done = ask(server, input=[asked, *items], tools=[NAMESPACE], **thinks)
        assert prompt(server).endswith(end)
        (message,) = done["output"]
        assert message["content"][0]["text"] == "Yes."
    ask(server, input=[asked, thought])
    assert prompt(server).endswith("<｜Assistant｜></think>")
    call = {"type": "function_call", "call_id": "c", "name": "clock", "arguments": "{}"}
    assert "output" in refused(server, input=[asked, call], tools=[NAMESPACE])
    assert "nothing to answer" in refused(server, input=[])
    form = {"format": {"type": "json_object"}}
    assert "format" in refused(server, input=[asked, said], text=form)
    ask(server, input=[asked, thought], text=form, max_output_tokens=4)


def test_shell_calls_of_earlier_turns_are_rendered(server: Live) -> None:
    action = {"type": "exec", "command": ["ls"], "env": {}}
    calls = [
        {"type": "local_shell_call", "id": "a", "call_id": "c", "action": action},
        {"type": "local_shell_call_output", "id": "c", "output": "x.py"},
        {"type": "shell_call", "id": "b", "call_id": "d", "action": {"commands": ["pwd"]}},
        {
            "type": "shell_call_output",
            "call_id": "d",
            "output": [{"stdout": "/tmp", "stderr": "", "outcome": {"type": "exit"}}],
        },
    ]
    ask(server, input=[{"role": "user", "content": "hi"}, *calls])
    shown = prompt(server)
    assert 'invoke name="local_shell"' in shown and '["ls"]' in shown
    assert "<tool_result>x.py</tool_result>" in shown and "<tool_result>/tmp<" in shown


def test_pictures_in_results_and_in_the_past(server: Live) -> None:
    picture = [{"type": "input_image", "image_url": "data:,", "detail": "auto"}]
    asked = {"role": "user", "content": picture}
    call = {"type": "function_call", "call_id": "c", "name": "view", "arguments": ""}
    result = {"type": "function_call_output", "call_id": "c", "output": picture}
    ask(server, input=[asked, call, result])
    assert prompt(server).count("[Unsupported image]") == 2
    assert "text only" in refused(server, input=[asked])


def test_known_hints_are_accepted_and_unknown_ones_refused(server: Live) -> None:
    include = ["web_search_call.action.sources", "reasoning.encrypted_content"]
    ask(server, text={"verbosity": "low"}, include=include)
    refused(server, include=["nothing.known"])
