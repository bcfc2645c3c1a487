"""What the scripted model of the trials answers, in the prompt's own format."""

import json
from typing import Any

from sounding.text import ParsedCompletion, encode, parse
from sounding.text.markup import EOS
from tests.clients.scripted_model import (
    STORY_END,
    STORY_WORDS,
    TALK_WORDS,
    TOOL_OUTPUT,
    TOOL_WORDS,
    answer,
)

SHELL = {
    "type": "function",
    "function": {
        "name": "Bash",
        "parameters": {
            "type": "object",
            "properties": {
                "command": {"type": "string"},
                "description": {"type": "string"},
                "background": {"type": "boolean"},
            },
            "required": ["command", "background"],
        },
    },
}


def said(messages: list[dict[str, Any]], mode: str = "chat") -> ParsedCompletion:
    """What the model answers to a conversation."""
    shown = [{"role": "system", "content": "", "tools": [SHELL]}, *messages]
    text = answer(encode(shown, thinking_mode=mode))
    return parse(text + EOS, mode)


def test_greetings_are_counted() -> None:
    asked = {"role": "user", "content": TALK_WORDS}
    first = said([asked])
    assert first.content == "This is greeting 1."
    second = said([asked, {"role": "assistant", "content": first.content}, asked], "thinking")
    assert (second.content, second.reasoning_content) == ("This is greeting 2.", "I see.")


def test_a_tool_is_called_and_its_result_told() -> None:
    asked = {"role": "user", "content": TOOL_WORDS}
    (call,) = said([asked]).calls
    assert call.name == "Bash"
    given = json.loads(call.arguments)
    assert given == {"command": f"echo {TOOL_OUTPUT}", "background": False}
    function = {"name": call.name, "arguments": call.arguments}
    called = {"id": "c", "type": "function", "function": function}
    history: list[dict[str, Any]] = [
        asked,
        {"role": "assistant", "content": "", "tool_calls": [called]},
        {"role": "tool", "tool_call_id": "c", "content": TOOL_OUTPUT},
    ]
    done = said(history)
    assert TOOL_OUTPUT in done.content and not done.calls


def test_a_story_ends() -> None:
    assert said([{"role": "user", "content": STORY_WORDS}]).content.endswith(STORY_END)
