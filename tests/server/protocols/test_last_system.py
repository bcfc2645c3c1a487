"""A conversation that ends with a system or developer message is answered as the assistant."""

from collections.abc import Iterator
from typing import Any

import pytest

from sounding.text import encode
from tests.server.live import Live, live, post
from tests.server.scripted import ScriptedEngine

BOS, USER, ASSISTANT = "<｜begin▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>"
REMINDER = "<｜latest_reminder｜>"
ASK = {"role": "user", "content": "Name a river."}
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
RESULT = {"role": "tool", "tool_call_id": "c", "content": "r"}
REMIND = {"role": "latest_reminder", "content": "now"}


def said(role: str, text: str = "be brief") -> dict[str, Any]:
    return {"role": role, "content": text}


@pytest.fixture(scope="module")
def server() -> Iterator[Live]:
    with live(ScriptedEngine("The Rhine.")) as running:
        yield running


def prompt(server: Live) -> str:
    assert isinstance(server.engine, ScriptedEngine)
    return server.engine.prompts[-1]


@pytest.mark.parametrize("thinks", [False, True])
@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([said("system")], f"{BOS}be brief"),
        ([said("developer")], f"{BOS}be brief"),
        ([ASK, said("system")], f"{BOS}{USER}Name a river.be brief"),
        ([ASK, said("developer")], f"{BOS}{USER}Name a river.be brief"),
        ([ASK, said("system", "a"), said("system", "b")], f"{BOS}{USER}Name a river.ab"),
        ([ASK, said("system"), REMIND], f"{BOS}{USER}Name a river.be brief{REMINDER}now"),
        ([said("system"), REMIND], f"{BOS}be brief{REMINDER}now"),
    ],
)
def test_a_last_system_message_is_answered_in_chat_completions(
    server: Live, messages: list[dict[str, Any]], expected: str, thinks: bool
) -> None:
    thinking = {"type": "enabled" if thinks else "disabled"}
    body = {"model": "sounding", "messages": messages, "thinking": thinking}
    answer = post(server.url + "/v1/chat/completions", json=body).json()
    opening = ASSISTANT + ("<think>" if thinks else "</think>")
    assert prompt(server) == expected + opening
    if not thinks:
        assert answer["choices"][0]["message"] == {"role": "assistant", "content": "The Rhine."}


def test_behind_the_result_of_a_tool(server: Live) -> None:
    called = {"role": "assistant", "content": "", "tool_calls": [CALL]}
    messages = [ASK, called, RESULT, said("system")]
    post(server.url + "/v1/chat/completions", json={"model": "sounding", "messages": messages})
    end = f"<tool_result>r</tool_result>be brief{ASSISTANT}<think>"
    assert prompt(server).endswith(end)


@pytest.mark.parametrize("path", ["/v1/messages", "/anthropic/v1/messages"])
def test_a_last_system_message_is_answered_in_messages(server: Live, path: str) -> None:
    body = {"model": "sounding", "max_tokens": 9, "messages": [ASK, said("system")]}
    post(server.url + path, json=body)
    assert prompt(server) == f"{BOS}{USER}Name a river.be brief{ASSISTANT}</think>"
    body["thinking"] = {"type": "adaptive"}
    post(server.url + path, json=body)
    assert prompt(server) == f"{BOS}{USER}Name a river.be brief{ASSISTANT}<think>"
    del body["max_tokens"]
    counted = post(server.url + path + "/count_tokens", json=body).json()
    assert isinstance(server.engine, ScriptedEngine)
    assert counted["input_tokens"] == len(server.engine.requests[-1].prompt)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"input": [ASK, said("developer")]}, f"{BOS}{USER}Name a river.be brief"),
        ({"input": [said("developer")]}, f"{BOS}be brief"),
        ({"input": [], "instructions": "be brief"}, f"{BOS}be brief"),
    ],
)
def test_a_last_system_message_is_answered_in_responses(
    server: Live, given: dict[str, Any], expected: str
) -> None:
    post(server.url + "/v1/responses", json={"model": "sounding", **given})
    assert prompt(server) == f"{expected}{ASSISTANT}<think>"


def test_the_next_prompt_begins_with_the_answered_one(server: Live) -> None:
    """The turn stays open where it was when the conversation goes on."""
    messages: list[dict[str, Any]] = [ASK, said("system")]
    body = {"model": "sounding", "messages": messages, "thinking": {"type": "disabled"}}
    post(server.url + "/v1/chat/completions", json=body)
    first = prompt(server)
    messages += [said("assistant", "The Rhine."), said("user", "Another.")]
    post(server.url + "/v1/chat/completions", json=body)
    assert prompt(server).startswith(first + "The Rhine.<｜end▁of▁sentence｜>")


@pytest.mark.parametrize("mode", ["chat", "thinking"])
@pytest.mark.parametrize(
    "messages",
    [
        [said("system"), ASK],
        [said("system"), said("assistant", "Hi."), ASK],
        [ASK, REMIND],
        [ASK, said("assistant", "Hi."), said("system"), ASK],
    ],
)
def test_elsewhere_prompts_are_the_published_ones(mode: str, messages: list[Any]) -> None:
    assert encode(messages, mode, always_answer=True) == encode(messages, mode)


def test_the_published_form_is_left_alone() -> None:
    assert encode([ASK, said("system")], "chat") == f"{BOS}{USER}Name a river.be brief"
