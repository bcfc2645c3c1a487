"""Ollama's protocol as its clients (ollama for Python 0.6.3, ChatOllama 1.1.0, 2026) speak it."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from sounding.server.options import ServerOptions
from tests.server.live import Live, get, live, post
from tests.server.protocols.test_absent import prompt
from tests.server.protocols.test_codex import calling
from tests.server.scripted import ScriptedEngine

ASK = {"role": "user", "content": "hi"}
CLOCK: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "clock",
        "description": "Tell the time.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}


def script(asked: str) -> str:
    thoughts = "Hm.</think>" if asked.endswith("<think>") else ""
    if "<tool_result>" in asked:
        return thoughts + "It is nine."
    return thoughts + ("Look." + calling("clock", {"city": "Oslo"}) if "clock" in asked else "Yes.")


@pytest.fixture(scope="module")
def server() -> Iterator[Live]:
    with live(ScriptedEngine(script), ServerOptions(model_names=("nano",))) as running:
        yield running


def lines(server: Live, path: str, **body: Any) -> list[Any]:
    answer = post(server.url + path, json={"model": "nano", **body})
    assert answer.status_code == 200, answer.text
    return [json.loads(line) for line in answer.text.splitlines() if line]


def ask(server: Live, messages: list[Any], **more: Any) -> Any:
    (done,) = lines(server, "/api/chat", messages=messages, stream=False, **more)
    return done


@pytest.mark.parametrize("path", ["/api/generate", "/api/chat"])
@pytest.mark.parametrize(
    ("keep_alive", "reason"),
    [
        (None, "load"),
        ("5m", "load"),
        (-1, "load"),
        (60, "load"),
        (0, "unload"),
        ("0", "unload"),
        ("0s", "unload"),
    ],
)
def test_loading_and_unloading_generate_nothing(
    server: Live, path: str, keep_alive: Any, reason: str
) -> None:
    assert isinstance(server.engine, ScriptedEngine)
    before = len(server.engine.requests)
    nothing: dict[str, Any] = {"prompt": ""} if path == "/api/generate" else {"messages": []}
    for body in ({}, nothing, {**nothing, "stream": False}):
        (done,) = lines(server, path, keep_alive=keep_alive, **body)
        assert (done["done"], done["done_reason"]) == (True, reason)
        said = done["response"] if path == "/api/generate" else done["message"]["content"]
        assert said == ""
    assert len(server.engine.requests) == before


def test_a_text_that_begins_at_the_cursor_is_no_load(server: Live) -> None:
    *_, done = lines(server, "/api/generate", suffix="x = 1\n")
    assert done["done_reason"] != "load"


def test_a_chat_is_answered_with_counts_and_reason(server: Live) -> None:
    told = {"role": "system", "content": "Be brief."}
    done = ask(server, [told, ASK], think=False, options={"num_predict": 20, "seed": 1})
    assert done["message"] == {"role": "assistant", "content": "Yes."}
    assert (done["model"], done["done"], done["done_reason"]) == ("nano", True, "stop")
    assert done["eval_count"] > 0 and done["prompt_eval_count"] > 0
    assert prompt(server).endswith("Be brief.<｜User｜>hi<｜Assistant｜></think>")


def test_thinking_is_a_field_of_its_own_in_whole_and_streamed_answers(server: Live) -> None:
    done = ask(server, [ASK], think=True)
    assert done["message"] == {"role": "assistant", "content": "Yes.", "thinking": "Hm."}
    *parts, last = lines(server, "/api/chat", messages=[ASK])
    assert "".join(part["message"].get("thinking", "") for part in parts) == "Hm."
    assert "".join(part["message"]["content"] for part in parts) == "Yes."
    assert last["done"] and not any(part["done"] for part in parts)


@pytest.mark.parametrize("streamed", [False, True])
def test_a_turn_with_a_tool(server: Live, streamed: bool) -> None:
    question = {"role": "user", "content": "what time is it?"}
    parts = lines(server, "/api/chat", messages=[question], tools=[CLOCK], stream=streamed)
    (call,) = [c for part in parts for c in part["message"].get("tool_calls", ())]
    assert call["function"] == {"index": 0, "name": "clock", "arguments": {"city": "Oslo"}}
    assert parts[-1]["done_reason"] == "stop"
    asked = prompt(server)
    content = "".join(part["message"]["content"] for part in parts)
    assert content == "Look."
    # As the Python client sends it back: no ids, no thoughts.
    said = {"role": "assistant", "content": content, "tool_calls": [{"function": call["function"]}]}
    result = {"role": "tool", "content": "9:00", "tool_name": "clock"}
    done = ask(server, [question, said, result], tools=[CLOCK])
    assert done["message"]["content"] == "It is nine."
    turn = "Hm.</think>Look." + calling("clock", {"city": "Oslo"})
    assert prompt(server).startswith(asked + turn)
    assert "<tool_result>9:00</tool_result>" in prompt(server)


def test_results_are_in_the_order_of_their_calls(server: Live) -> None:
    calls: list[Any] = [{"function": {"name": name, "arguments": {}}} for name in ("a", "b", "a")]
    results = [
        {"role": "tool", "content": f"r{number}", name_field: name}
        for number, (name_field, name) in enumerate(
            [("tool_name", "b"), ("name", "a"), ("tool_name", "a")]
        )
    ]
    ask(server, [ASK, {"role": "assistant", "tool_calls": calls}, *results])
    first, second, third = (prompt(server).index(f"r{number}<") for number in (1, 0, 2))
    assert first < second < third


def test_results_without_any_name(server: Live) -> None:
    calls: list[Any] = [{"function": {"name": name, "arguments": None}} for name in ("a", "b")]
    results = [{"role": "tool", "content": f"r{number}"} for number in range(2)]
    ask(server, [ASK, {"role": "assistant", "content": "", "tool_calls": calls}, *results])
    assert "<tool_result>r0</tool_result>\n\n<tool_result>r1</tool_result>" in prompt(server)
    assert "parameter" not in prompt(server)


def test_a_schema_constrains_the_answer_and_is_in_the_prompt(server: Live) -> None:
    assert isinstance(server.engine, ScriptedEngine)
    ask(server, [ASK], format={"type": "object", "properties": {"n": {"type": "integer"}}})
    assert server.engine.requests[-1].grammar is not None
    assert "## Response Format" in prompt(server)


def test_an_answer_that_was_begun(server: Live) -> None:
    ask(server, [ASK, {"role": "assistant", "content": "Well,"}], think=False)
    assert prompt(server).endswith("</think>Well,")


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "user", "content": "hi", "images": ["aaaa"]}],
        [ASK, {"role": "assistant", "tool_calls": [{"function": {"name": "a"}}]}],
        [{"role": "critic", "content": "hi"}],
    ],
)
def test_what_is_refused(server: Live, messages: list[Any]) -> None:
    answer = post(server.url + "/api/chat", json={"model": "nano", "messages": messages})
    assert answer.status_code == 400 and isinstance(answer.json()["error"], str)


def test_what_is_loaded(server: Live) -> None:
    (model,) = get(server.url + "/api/ps").json()["models"]
    assert model["name"] == "nano:latest" and model["context_length"] == 4096
    assert {"size", "size_vram", "digest", "details", "expires_at"} <= model.keys()


def test_the_template_has_a_place_for_a_suffix(server: Live) -> None:
    """Continue looks for it before it sends one."""
    shown = post(server.url + "/api/show", json={"model": "nano"}).json()
    assert ".Suffix" in shown["template"] and "insert" in shown["capabilities"]
