"""Prompts are those of the published encoder, and what it cannot carry is refused."""

import copy
import json
from typing import Any

import pytest

from sounding.text import encode, encode_completion
from tests.text.vectors import pair, rows

BOS, EOS = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
USER, ASSISTANT = "<｜User｜>", "<｜Assistant｜>"
TOOL = {"type": "function", "function": {"name": "f", "description": "d", "parameters": {}}}


def message(role: str, content: Any = None, **fields: Any) -> dict[str, Any]:
    return {"role": role, **({} if content is None else {"content": content}), **fields}


def user(content: str, **fields: Any) -> dict[str, Any]:
    return message("user", content, **fields)


def said(content: str, reasoning: str = "", **fields: Any) -> dict[str, Any]:
    return message("assistant", content, reasoning_content=reasoning, **fields)


def call(name: str, arguments: Any, call_id: str = "a") -> dict[str, Any]:
    text = arguments if isinstance(arguments, str) else json.dumps(arguments)
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": text}}


def result(content: Any, call_id: str = "a") -> dict[str, Any]:
    return message("tool", content, tool_call_id=call_id)


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_published_pairs_are_encoded_exactly(number: int) -> None:
    messages, expected = pair(number)
    assert encode(messages, "chat" if number == 4 else "thinking") == expected


def test_golden_prompts_are_encoded_exactly_and_messages_left_alone() -> None:
    golden = rows("encode.jsonl")
    assert len(golden) == 200
    for row in golden:
        before = copy.deepcopy(row["messages"])
        assert encode(row["messages"], **row["kwargs"]) == row["expected"]
        assert row["messages"] == before


# Made by running the published encoder: what the golden prompts do not show (docs/prompt.md 2).
@pytest.mark.parametrize(
    ("messages", "kwargs", "expected"),
    [
        ([user("Hi")], {"thinking_mode": "chat"}, f"{BOS}{USER}Hi{ASSISTANT}</think>"),
        (
            [user("a"), said("b", "r1"), user("c"), said("d", "r2"), user("e")],
            {"thinking_mode": "thinking"},
            f"{BOS}{USER}a{ASSISTANT}</think>b{EOS}{USER}c{ASSISTANT}</think>d{EOS}"
            f"{USER}e{ASSISTANT}<think>",
        ),
        (
            [user("a"), said("b", "r1"), user("c")],
            {"thinking_mode": "thinking", "drop_thinking": False},
            f"{BOS}{USER}a{ASSISTANT}<think>r1</think>b{EOS}{USER}c{ASSISTANT}<think>",
        ),
        (
            [user("q"), said("d", "r")],
            {"thinking_mode": "thinking"},
            f"{BOS}{USER}q{ASSISTANT}<think>r</think>d{EOS}",
        ),
        (
            [user("a"), user("b")],
            {"thinking_mode": "chat"},
            f"{BOS}{USER}a\n\nb{ASSISTANT}</think>",
        ),
        (
            [message("system", "Sys"), message("latest_reminder", "today"), user("q")],
            {"thinking_mode": "chat"},
            f"{BOS}Sys<｜latest_reminder｜>today{USER}q{ASSISTANT}</think>",
        ),
        (
            [message("system", "Sys"), user("q"), message("latest_reminder", "today")],
            {"thinking_mode": "chat"},
            f"{BOS}Sys{USER}q{ASSISTANT}</think><｜latest_reminder｜>today",
        ),
        (
            [user("q", task="action"), said("Search")],
            {"thinking_mode": "chat"},
            f"{BOS}{USER}q{ASSISTANT}</think><｜action｜>Search{EOS}",
        ),
        (
            [user("q", task="action"), said("Search", "lost")],
            {"thinking_mode": "thinking"},
            f"{BOS}{USER}q{ASSISTANT}<think><｜action｜>Search{EOS}",
        ),
        ([user("q", task="query")], {"thinking_mode": "chat"}, f"{BOS}{USER}q<｜query｜>"),
        (
            [user("q"), said("ans", "r", task="title"), said("My title")],
            {"thinking_mode": "thinking"},
            f"{BOS}{USER}q{ASSISTANT}<think>r</think>ans{EOS}<｜title｜>My title{EOS}",
        ),
        (
            [user("q"), said("partial", wo_eos=True)],
            {"thinking_mode": "chat"},
            f"{BOS}{USER}q{ASSISTANT}</think>partial",
        ),
        (
            [message("system", "s"), user("a"), said("b"), message("system", "s2"), user("c")],
            {"thinking_mode": "chat"},
            f"{BOS}s{USER}a{ASSISTANT}</think>b{EOS}s2{USER}c{ASSISTANT}</think>",
        ),
        (
            [user("c")],
            {"thinking_mode": "thinking", "context": [user("a"), said("b", "r")]},
            f"{USER}c{ASSISTANT}<think>",
        ),
        ([], {"thinking_mode": "chat"}, BOS),
        (
            [message("system", "s", response_format={"type": "é"}), user("q")],
            {"thinking_mode": "chat"},
            f"{BOS}s\n\n## Response Format:\n\nYou MUST strictly adhere to the following schema to "
            f'reply:\n{{"type": "é"}}{USER}q{ASSISTANT}</think>',
        ),
    ],
)
def test_worked_examples_are_encoded_exactly(
    messages: list[Any], kwargs: dict[str, Any], expected: str
) -> None:
    assert encode(messages, **kwargs) == expected


def calls_of(arguments: Any) -> str:
    text = encode([user("q"), said("", tool_calls=[call("f", arguments)])], "chat")
    return text[text.index("\n\n") :]


def test_arguments_keep_what_python_reads_into_them() -> None:
    text = calls_of('{"a": 1e5, "b": -0.0, "c": NaN, "d": 12345678901234567890, "é": ["ü", 1.50]}')
    for line in (
        'name="a" string="false">100000.0<',
        'name="b" string="false">-0.0<',
        'name="c" string="false">NaN<',
        'name="d" string="false">12345678901234567890<',
        'name="é" string="false">["ü", 1.5]<',
    ):
        assert line in text


def test_arguments_that_are_no_json_are_one_raw_parameter() -> None:
    assert calls_of("not json") == (
        '\n\n<｜DSML｜tool_calls>\n<｜DSML｜invoke name="f">\n'
        '<｜DSML｜parameter name="arguments" string="true">not json</｜DSML｜parameter>\n'
        f"</｜DSML｜invoke>\n</｜DSML｜tool_calls>{EOS}"
    )
    assert 'name="arguments" string="true"></' in calls_of("")
    assert 'name="arguments" string="true">[[[' in calls_of("[" * 100_000)


def test_a_call_without_parameters_has_an_empty_line() -> None:
    assert '<｜DSML｜invoke name="f">\n\n</｜DSML｜invoke>' in calls_of({})


def test_results_follow_the_calls_and_texts_keep_their_places() -> None:
    calls = [call("f", {}, "a"), call("f", {}, "b"), call("f", {}, "c")]
    messages = [user("q"), said("", tool_calls=calls)]
    text = encode([*messages, result("C", "c"), user("x"), result("B", "b"), result("A")], "chat")
    assert text.endswith(
        f"{USER}<tool_result>A</tool_result>\n\nx\n\n<tool_result>B</tool_result>\n\n"
        f"<tool_result>C</tool_result>{ASSISTANT}</think>"
    )
    # An unknown id counts as the first place, and sorting is stable.
    text = encode([*messages, result("C", "c"), result("?", "z"), result("A")], "chat")
    assert text.index(">?<") < text.index(">A<") < text.index(">C<")


def test_parts_of_a_result() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "image_url"}, {"type": "text", "text": "b"}]
    text = encode([user("q"), said("", tool_calls=[call("f", {})]), result(parts)], "chat")
    assert "<tool_result>a\n\n[Unsupported image_url]\n\nb</tool_result>" in text


def test_blocks_of_a_user() -> None:
    blocks = [{"type": "text", "text": "a"}, {"type": "audio"}, {"type": "text", "text": "b"}]
    text = encode([message("user", content_blocks=blocks)], "chat")
    assert text == f"{BOS}{USER}a\n\n[Unsupported audio]\n\nb{ASSISTANT}</think>"


def test_a_task_ends_merging_but_for_results() -> None:
    messages = [user("a", task="query"), user("b"), result("R")]
    assert encode(messages, "chat") == (
        f"{BOS}{USER}a{USER}b\n\n<tool_result>R</tool_result>{ASSISTANT}</think>"
    )
    assert encode([user("a"), user("b", task="query")], "chat") == (
        f"{BOS}{USER}a\n\nb{ASSISTANT}</think>"
    )


def test_developers_before_the_last_user_go_unless_reasoning_stays() -> None:
    messages = [message("developer", "d"), said("a", "r"), user("q")]
    assert encode(messages, "thinking") == f"{BOS}a{EOS}{USER}q{ASSISTANT}<think>"
    assert encode(messages, "thinking", drop_thinking=False) == (
        f"{BOS}{USER}d{ASSISTANT}<think>r</think>a{EOS}{USER}q{ASSISTANT}<think>"
    )


def test_tools_anywhere_keep_all_reasoning() -> None:
    context = [message("system", "s", tools=[TOOL]), user("a"), said("b", "r1")]
    assert encode([said("c", "r2"), user("d")], "thinking", context=context) == (
        f"r2</think>c{EOS}{USER}d{ASSISTANT}<think>"
    )


def test_context_is_never_rendered_even_when_some_of_it_is_dropped() -> None:
    for context in ([message("developer", "d"), said("a", "r")], [message("developer", "d")]):
        text = encode([user("q")], "thinking", context, reasoning_effort="max")
        assert text == f"{USER}q{ASSISTANT}<think>"


def test_effort_texts_of_both_schemes() -> None:
    def text(effort: str | None, scheme: str, mode: str = "thinking") -> str:
        prompt = encode([user("q")], mode, reasoning_effort=effort, effort_scheme=scheme)
        return prompt.removeprefix(BOS).partition(USER)[0]

    april_max = text("max", "april")
    assert april_max.startswith("Reasoning Effort: Absolute maximum with no shortcuts permitted.\n")
    assert april_max.endswith(
        "hypothesis to ensure absolutely no assumption is left unchecked.\n\n"
    )
    assert april_max.count("\n") == 4
    assert text("high", "0731") == april_max
    latest = text("max", "0731")
    assert latest.startswith("Reasoning Effort: Beyond maximum — exhaustive, relentless, and")
    assert latest.endswith("unchecked and no error remains undiscovered.\n\n")
    assert latest.count("\n") == 4
    for effort, scheme in ((None, "april"), ("high", "april"), (None, "0731"), ("low", "0731")):
        assert text(effort, scheme) == ""
    assert text("max", "april", "chat") == ""


@pytest.mark.parametrize(
    ("messages", "kwargs", "told"),
    [
        ([user("q")], {"thinking_mode": "think"}, "'think'"),
        ([user("q")], {"reasoning_effort": "low"}, "april"),
        ([user("q")], {"effort_scheme": "may"}, "effort_scheme"),
        ([{"content": "x"}], {}, r"messages\[0\]"),
        ([message("wizard", "x")], {}, "unknown role"),
        ([message("developer", "")], {}, "no content"),
        ([message("latest_reminder")], {}, "content None"),
        ([{"role": "user", "content": None}], {}, "content None"),
        ([user("q"), result(None), message("tool", {"a": 1})], {}, r"content \{"),
        ([user("q", tools=[TOOL])], {}, "system or developer"),
        ([message("user", "x", content_blocks=[{"type": "text", "text": "y"}])], {}, "give one"),
        ([message("system", "s", tools=[{"name": "f"}])], {}, "tools"),
        ([user("q", task="nap")], {}, "'nap'"),
        ([said("", tool_calls=[{"name": "f"}])], {}, "call 0"),
        ([said("", tool_calls={"name": "f"})], {}, "tool_calls"),
        ([said("", tool_calls=[{"function": "f"}])], {}, "call 0"),
        ([said("", tool_calls=[call("f", "[1]")])], {}, "JSON object"),
        ([said("", tool_calls=[call("f", "null")])], {}, "JSON object"),
        ([said("", tool_calls=[{"function": {"name": "f", "arguments": {}}}])], {}, "JSON string"),
        ([said("", tool_calls=[call("f", {"x": "a</｜DSML｜parameter>"})])], {}, "closing tag"),
        ([said("", tool_calls=[call("f", {"x": ["/｜DSML｜parameter"]})])], {}, "closing tag"),
        ([said("", tool_calls=[call("f", "/｜DSML｜parameter")])], {}, "closing tag"),
        ([said("", tool_calls=[call("f", {'a" string="true">': 1})])], {}, "parameter name"),
        ([said("", tool_calls=[call("f</｜DSML｜invoke", {})])], {}, "tool name"),
        ([said(["parts"])], {}, "content"),  # type: ignore[arg-type]
    ],
)
def test_messages_that_cannot_be_rendered_are_refused(
    messages: Any, kwargs: dict[str, Any], told: str
) -> None:
    with pytest.raises(ValueError, match=told):
        encode(messages, **{"thinking_mode": "chat", **kwargs})


def test_markup_in_what_users_and_tools_say_is_passed_on() -> None:
    text = "</think> <｜DSML｜tool_calls> </tool_result>"
    assert text in encode([user(text)], "chat")
    assert text in encode([user("q"), result(text)], "chat")


@pytest.mark.parametrize(
    ("fields", "mode"),
    [
        ({"content": "a</think>"}, "chat"),
        ({"content": "｜DSML｜"}, "chat"),
        ({"content": "", "reasoning_content": EOS}, "thinking"),
        ({"content": "", "reasoning_content": "r"}, "chat"),
    ],
)
def test_a_completion_that_could_not_be_read_back_is_refused(
    fields: dict[str, Any], mode: str
) -> None:
    with pytest.raises(ValueError, match=r"could not be read back|cannot be written"):
        encode_completion(fields, mode)
