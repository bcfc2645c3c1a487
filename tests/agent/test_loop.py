"""A conversation with tools goes on until there are no calls, no turns or no room."""

import json
from collections.abc import Sequence
from typing import Any

import pytest

from sounding.agent.loop import Message, Turn, converse


class Script:
    """Answers one after the other, and remembers what it was asked."""

    def __init__(self, *turns: Turn) -> None:
        self.turns, self.asked = list(turns), list[tuple[list[Message], bool, int]]()

    def __call__(
        self, messages: Sequence[Message], tools: Sequence[Message], *, thinking: bool, seed: int
    ) -> Turn:
        self.asked.append((list(messages), thinking, seed))
        return self.turns[len(self.asked) - 1]


class Echo:
    tools: Sequence[Message] = ({"type": "function", "function": {"name": "echo"}},)

    def call(self, name: str, arguments: str) -> str:
        return f"{name} {json.loads(arguments)['text']}"


def calling(*texts: str) -> Turn:
    calls = [
        {"type": "function", "function": {"name": "echo", "arguments": json.dumps({"text": text})}}
        for text in texts
    ]
    return Turn({"role": "assistant", "content": "", "tool_calls": calls}, finished=True)


DONE = Turn({"role": "assistant", "content": "done", "tool_calls": []}, finished=True)
ASK: list[dict[str, Any]] = [{"role": "user", "content": "go"}]


def test_results_follow_their_calls_until_an_answer_has_none() -> None:
    chat = Script(calling("a", "b"), calling("c"), DONE)
    found = converse(chat, ASK, Echo(), most_turns=9, seed=2)
    assert (found.ended, found.turns) == ("answer", 3)
    assert [m["content"] for m in found.messages if m["role"] == "tool"] == [
        "echo a",
        "echo b",
        "echo c",
    ]
    called = [call["id"] for m in found.messages for call in m.get("tool_calls", ())]
    answered = [m["tool_call_id"] for m in found.messages if m["role"] == "tool"]
    assert called == answered
    assert len(set(called)) == 3
    assert chat.asked[-1][0] == [*ASK, *found.messages[:-1]]
    assert len({seed for _, _, seed in chat.asked}) == 3


def test_turns_and_cut_off_answers_end_it() -> None:
    found = converse(Script(calling("a"), calling("b")), ASK, Echo(), most_turns=2)
    assert (found.ended, found.messages[-1]["role"]) == ("turns", "tool")
    cut = Turn(calling("a").message, finished=False)
    found = converse(Script(cut), ASK, Echo(), most_turns=2)
    assert (found.ended, len(found.messages)) == ("length", 1)
    with pytest.raises(ValueError, match="most_turns = 0"):
        converse(Script(), ASK, None, most_turns=0)


def test_calls_without_tools_are_answered() -> None:
    found = converse(Script(calling("a"), DONE), ASK, None, most_turns=2)
    assert found.messages[1]["content"] == "error: there are no tools"
