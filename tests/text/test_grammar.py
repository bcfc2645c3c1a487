"""The grammar admits valid turns and nothing else, as llguidance's own matcher sees it."""

import json
from functools import cache
from typing import Any

import llguidance
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sounding.text import encode_completion, parse
from sounding.text.grammar import (
    constraint_tokenizer,
    matcher,
    require_affordable,
    turn_grammar,
)
from sounding.text.tokenizer import Tokenizer, train
from tests.text.dsml.test_parse import EOS, PIECES
from tests.text.vectors import published_tokenizer


def tool(name: str, properties: dict[str, Any] | None, **schema: Any) -> dict[str, Any]:
    parameters = {"type": "object", **schema}
    if properties is not None:
        parameters["properties"] = properties
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


TOOLS = [
    tool(
        "read",
        {
            "path": {"type": "string"},
            "lines": {"type": "integer"},
            "mode": {"type": "string", "enum": ["a", "b"]},
            "maybe": {"anyOf": [{"type": "string"}, {"type": "null"}]},
            "list": {"type": "array", "items": {"$ref": "#/$defs/number"}},
        },
        required=["path"],
        **{"$defs": {"number": {"type": "number"}}},
    ),
    tool("any", None),
    tool("many", {k: {"type": "integer"} for k in "abcdefg"}, required=["b"]),
    tool("open", {"x": {"type": "boolean"}}, additionalProperties=True),
]


@cache
def vocabulary(small: bool) -> tuple[Tokenizer, llguidance.LLTokenizer]:
    tokenizer = train([json.dumps(TOOLS)], 400) if small else published_tokenizer()
    return tokenizer, constraint_tokenizer(tokenizer)


def admits(text: str, mode: str = "thinking", small: bool = False, **how: Any) -> bool:
    tokenizer, constraint = vocabulary(small)
    ids = tokenizer.encode(text)
    if ids[-1:] == [tokenizer.eos_id]:
        ids.pop()
    follows = matcher(constraint, turn_grammar(how.pop("tools", TOOLS), mode, **how))
    return follows.try_consume_tokens(ids) == len(ids) and follows.is_accepting()


def turn(name: str, arguments: dict[str, Any]) -> str:
    text = json.dumps(arguments, ensure_ascii=False)
    calls = [{"type": "function", "function": {"name": name, "arguments": text}}]
    message = {"content": "ok", "reasoning_content": "so </", "tool_calls": calls}
    return encode_completion(message, "thinking")


VALID: list[tuple[str, dict[str, Any]]] = [
    ("read", {"path": "a/b <x> </p>\n\"'"}),
    ("read", {"path": ""}),
    ("read", {"mode": "a", "path": "x", "maybe": None}),
    ("read", {"maybe": "s", "list": [1, 2.5], "path": "é函", "lines": 3, "mode": "b"}),
    ("any", {}),
    ("any", {"z": "1", "y": [1, {"a": None}]}),
    ("many", {"b": 1}),
    ("many", {"a": 1, "b": 2, "g": -3}),
    ("open", {}),
    ("open", {"x": True, "more": "text"}),
]
INVALID: list[tuple[str, dict[str, Any]]] = [
    ("read", {}),
    ("read", {"path": 1}),
    ("read", {"path": "x", "mode": "c"}),
    ("read", {"path": "x", "other": 1}),
    ("read", {"path": "x", "lines": "3"}),
    ("read", {"path": "x", "list": ["s"]}),
    ("many", {"a": 1}),
    ("many", {"b": 1, "a": 2}),
    ("absent", {}),
    ("open", {"x": 1}),
]


@pytest.mark.parametrize(("name", "arguments"), VALID)
@pytest.mark.parametrize("small", [False, True])
def test_the_grammar_admits_valid_calls(name: str, arguments: dict[str, Any], small: bool) -> None:
    assert admits(turn(name, arguments), small=small)


@pytest.mark.parametrize(("name", "arguments"), INVALID)
def test_the_grammar_rejects_invalid_calls(name: str, arguments: dict[str, Any]) -> None:
    assert not admits(turn(name, arguments))


def test_two_calls_and_none() -> None:
    one, two = turn("any", {}), turn("many", {"b": 1})
    block = one.replace(
        "\n</｜DSML｜tool_calls>", two[two.index("\n<｜DSML｜invoke") :]
    ).removesuffix("<｜end▁of▁sentence｜>")
    assert parse(block, "thinking").calls[1].name == "many"
    assert admits(block)
    assert admits("r</think>plain <b> text\n\n")
    assert not admits(one + "more")


@pytest.mark.parametrize(
    ("text", "mode"),
    [
        ("no end of thought", "thinking"),
        ("a</think>b</think>c", "thinking"),
        ("r</think>hi<think>", "thinking"),
        ("a</think>b", "chat"),
        ("a ｜DSML｜ b", "chat"),
        ("a\n\n<｜DSML｜tool_calls>\n</｜DSML｜tool_calls>", "chat"),
    ],
)
def test_the_grammar_rejects_text_that_is_no_turn(text: str, mode: str) -> None:
    assert not admits(text, mode)


def test_whether_to_call_can_be_settled() -> None:
    call = turn("any", {})
    assert admits(call)
    assert admits(call.replace("</think>ok", "</think>"), calls="required")
    assert not admits("r</think>text", calls="required")
    assert not admits(call, calls="none")
    assert admits("r</think>text", calls="none")
    assert admits("text", "chat", tools=[])


def test_nothing_is_written_before_a_call_that_is_required() -> None:
    for content, admitted in (("", True), (" ", False), ("\n", False), ("I call it.", False)):
        assert admits(calling(1, content), "chat", calls="required") == admitted
        assert admits(calling(1, content), "chat")


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match="'often'"):
        turn_grammar(TOOLS, "chat", calls="often")
    with pytest.raises(ValueError, match="no tools"):
        turn_grammar([], "chat", calls="required")
    with pytest.raises(ValueError, match="closing tag"):
        tools = [tool("f", {"x": {"enum": ["</｜DSML｜parameter>"]}})]
        turn_grammar(tools, "chat", calls="required")
    with pytest.raises(ValueError, match="tool name"):
        turn_grammar([tool("</｜DSML｜invoke", {})], "chat")
    with pytest.raises(ValueError, match="llguidance"):
        matcher(vocabulary(True)[1], "start: nothing")


@settings(max_examples=200)
@given(st.sampled_from(VALID), st.lists(st.tuples(st.integers(0, 400), st.sampled_from(PIECES))))
def test_whatever_is_admitted_is_parsed(
    valid: tuple[str, dict[str, Any]], damage: list[tuple[int, str]]
) -> None:
    text = turn(*valid).removesuffix(EOS)
    for at, piece in damage[:2]:
        text = text[:at] + piece + text[at:]
    if admits(text, small=True):
        read = parse(text.removesuffix(EOS) + EOS, "thinking")
        assert {call.name for call in read.calls} <= {"read", "any", "many", "open"}
        assert all(isinstance(json.loads(call.arguments), dict) for call in read.calls)


SCHEMA = {
    "type": "object",
    "properties": {"n": {"type": "integer"}},
    "required": ["n"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(("mode", "begin"), [("chat", ""), ("thinking", "So.</think>")])
def test_content_that_follows_a_schema(mode: str, begin: str) -> None:
    assert admits(begin + '{"n": 3}', mode, schema=SCHEMA)
    assert not admits(begin + '{"n": "3"}', mode, schema=SCHEMA)
    assert not admits(begin + 'Here: {"n": 3}', mode, schema=SCHEMA)
    call = calling(1, content="")
    assert admits(begin + call, mode, schema=SCHEMA)
    assert not admits(begin + call, mode, schema=SCHEMA, calls="none")
    assert not admits(begin + '{"n": 3}', mode, schema=SCHEMA, calls="required")


def test_one_call_at_most() -> None:
    assert admits(calling(1), "chat", parallel=False)
    assert admits(calling(2), "chat", parallel=True)
    assert not admits(calling(2), "chat", parallel=False)


def calling(count: int, content: str = "ok") -> str:
    function = {"name": "read", "arguments": '{"path": "a"}'}
    calls = [{"type": "function", "function": function}] * count
    return encode_completion({"content": content, "tool_calls": calls}, "chat")


@pytest.mark.parametrize(
    "step", [10_001, 999_983, 0.12345, 1e-7 + 1, 123456789012345678901234567890]
)
def test_steps_that_stop_everything_are_refused(step: int | float) -> None:
    """Each remainder is a state: one request with 999983 kept all others waiting for a minute."""
    schema = {"type": "object", "properties": {"n": {"items": [{"multipleOf": step}]}}}
    with pytest.raises(ValueError, match=r"multipleOf = .* cannot be enforced"):
        require_affordable(schema)
    tool = {"type": "function", "function": {"name": "f", "parameters": schema}}
    with pytest.raises(ValueError, match="cannot be enforced"):
        turn_grammar([tool], "chat", calls="required")


@pytest.mark.parametrize("step", [9_999, 10_000, 0.25, 1e6, 2.5e-5, True, "7", None])
def test_other_steps_are_not(step: object) -> None:
    require_affordable({"multipleOf": step, "properties": {"multipleOf": {"type": "integer"}}})
