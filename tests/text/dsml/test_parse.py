"""The strict parser is the published one, however the text is cut; encoded messages come back."""

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from sounding.text import (
    ArgumentsDelta,
    CallBegun,
    CallDone,
    ContentDelta,
    End,
    Event,
    Malformed,
    ReasoningDelta,
    coalesce,
    collect,
    encode_completion,
    parse,
    parser,
)
from tests.text.published import Refused, definition
from tests.text.vectors import rows

EOS = "<｜end▁of▁sentence｜>"
GOLDEN = rows("parse.jsonl")
# What the format is made of, whole and in parts, and a little of what it is not.
PIECES = [
    "<", "/", ">", "\n", "\n\n", "｜", "|", " ", "x", '"', "“", "DSML", "｜DSML｜", EOS,
    "<think>", "</think>", "</thi", "<｜begin▁of▁sentence｜>", "<｜User｜>",
    "\n\n<｜DSML｜tool_calls", "\n\n<｜DSML｜tool_calls>\n", "</｜DSML｜tool_calls>",
    '<｜DSML｜invoke name="f">\n', "<｜DSML｜invoke", "</｜DSML｜invoke>\n", "</｜DSML｜invoke",
    '<｜DSML｜parameter name="x" string="true">', '<｜DSML｜parameter name="y" string="false">',
    "<｜DSML｜parameter", "</｜DSML｜parameter>\n", "</｜DSML｜parameter>", ' name="', ' string="',
    "<|DSML|invoke", "<｜｜DSML｜｜parameter", '{"a": 1}', "'",
]  # fmt: skip


def split(text: str, cuts: list[int]) -> list[str]:
    places = [0, *sorted(cut % (len(text) + 1) for cut in cuts), len(text)]
    return [text[a:b] for a, b in pairwise(places)]


def run(pieces: list[str], mode: str, **how: Any) -> tuple[list[Event], str | None]:
    """All events, and the reason of a refusal."""
    reader, events = parser(mode, **how), []
    try:
        for piece in pieces:
            events += reader.feed(piece)
        events += reader.finish()
    except Malformed as error:
        return coalesce([*events, *error.events]), str(error)
    return coalesce(events), None


@st.composite
def mutated(draw: st.DrawFn) -> tuple[str, str]:
    """A golden completion with some damage, and a mode."""
    row = draw(st.sampled_from(GOLDEN))
    text, mode = row["text"], row["thinking_mode"]
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(text)))
        match draw(st.integers(0, 3)):
            case 0:
                text = text[:at]
            case 1:
                text = text[:at] + text[at + draw(st.integers(1, 20)) :]
            case _:
                text = text[:at] + draw(st.sampled_from(PIECES)) + text[at:]
    return text, draw(st.sampled_from([mode, mode, "chat", "thinking"]))


MADE_UP = st.tuples(
    st.lists(st.sampled_from(PIECES), max_size=30).map("".join),
    st.sampled_from(["chat", "thinking"]),
)


def test_golden_completions_parse_to_their_messages() -> None:
    assert len(GOLDEN) == 100
    for row in GOLDEN:
        assert parse(row["text"], row["thinking_mode"]).message() == row["expected"]
        assert definition(row["text"], row["thinking_mode"]) == row["expected"]


@settings(max_examples=400)
@given(st.one_of(mutated(), MADE_UP), st.lists(st.integers(0, 10_000), max_size=12))
def test_the_strict_parser_is_the_definition_for_any_split(
    example: tuple[str, str], cuts: list[int]
) -> None:
    text, mode = example
    try:
        expected = definition(text, mode)
    except Refused:
        expected = None
    events, refusal = run([text], mode)
    assert (refusal is None) == (expected is not None)
    if expected is not None:
        assert collect(events).message() == expected
    in_pieces, refusal_in_pieces = run(split(text, cuts), mode)
    assert in_pieces == events
    assert (refusal_in_pieces is None) == (refusal is None)


PLAIN = st.text(
    st.one_of(st.characters(codec="utf-8"), st.sampled_from("<>/｜\n\" '{}")), max_size=40
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | PLAIN,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(PLAIN, inner, max_size=3),
    max_leaves=5,
)
CALL = st.builds(
    lambda name, arguments: {
        "type": "function",
        "function": {"name": name, "arguments": json.dumps(arguments, ensure_ascii=False)},
    },
    PLAIN,
    st.dictionaries(PLAIN, JSON, max_size=4),
)


@settings(max_examples=300)
@given(
    st.fixed_dictionaries(
        {
            "role": st.just("assistant"),
            "content": PLAIN,
            "reasoning_content": PLAIN,
            "tool_calls": st.lists(CALL, max_size=3),
        }
    ),
    st.sampled_from(["chat", "thinking"]),
    st.lists(st.integers(0, 10_000), max_size=8),
)
def test_parse_gives_back_what_was_encoded(
    message: dict[str, Any], mode: str, cuts: list[int]
) -> None:
    if mode == "chat":
        message = {**message, "reasoning_content": ""}
    try:
        text = encode_completion(message, mode)
    except ValueError:
        assume(False)
    assert parse(text, mode).message() == message
    assert run(split(text, cuts), mode) == run([text], mode)


def test_events_of_a_call_arrive_while_it_is_written() -> None:
    reader = parser("thinking")
    said: list[Event] = reader.feed("why</think>so\n\n<｜DSML｜tool_calls>\n<｜DSML｜invoke ")
    assert said == [ReasoningDelta("why"), ContentDelta("so")]
    said = reader.feed('name="f">\n<｜DSML｜parameter name="p" string="true">one "t')
    assert said == [
        CallBegun(0, "f"),
        ArgumentsDelta(0, '{"p": "'),
        ArgumentsDelta(0, r"one \"t"),
    ]
    said = reader.feed("wo\n</｜DSML｜par")
    assert said == [ArgumentsDelta(0, r"wo\n")]
    said = reader.feed(f"ameter>\n</｜DSML｜invoke>\n</｜DSML｜tool_calls>{EOS}")
    assert said[:2] == [ArgumentsDelta(0, '"'), ArgumentsDelta(0, "}")]
    assert isinstance(said[2], CallDone)
    assert said[2].arguments == r'{"p": "one \"two\n"}'
    assert reader.finish() == [End("tool_calls", ">\n</｜DSML｜tool_calls>")]


@pytest.mark.parametrize(
    ("text", "mode"),
    [("Hi", "chat"), (f"a<think>b{EOS}", "chat"), (f"a{EOS}", "thinking"), (f"a{EOS} ", "chat")],
)
def test_texts_that_break_the_format_are_malformed(text: str, mode: str) -> None:
    with pytest.raises(Malformed):
        parse(text, mode)


def test_a_refusal_still_brings_what_came_before() -> None:
    with pytest.raises(Malformed, match="<think>") as caught:
        parser("chat").feed("so far<think>")
    assert caught.value.events == [ContentDelta("so far")]


def test_a_parser_reads_one_completion() -> None:
    reader = parser("chat")
    reader.feed(f"x{EOS}")
    reader.finish()
    with pytest.raises(ValueError, match="finished"):
        reader.feed("y")
    with pytest.raises(ValueError, match="thinking_mode"):
        parser("loud")
