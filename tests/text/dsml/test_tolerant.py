"""The tolerant parser never raises, leaks or differs by split, and leaves good texts alone."""

import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sounding.text import Malformed, collect, parse
from sounding.text.dsml.values import Schemas, read_lenient, read_value
from tests.text.dsml.test_parse import GOLDEN, MADE_UP, mutated, run, split
from tests.text.test_shapes import TOOLS

MARKUP = re.compile(
    "<｜end▁of▁sentence｜>|<｜begin▁of▁sentence｜>|</?think>|<｜(?:User|Assistant)｜>|｜DSML｜|</?[|]DSML"
)


@settings(max_examples=500)
@given(
    st.one_of(mutated(), MADE_UP),
    st.lists(st.integers(0, 10_000), max_size=12),
    st.sampled_from([None, TOOLS]),
)
def test_any_text_becomes_a_clean_message(
    example: tuple[str, str], cuts: list[int], tools: list[object] | None
) -> None:
    text, mode = example
    events, refusal = run([text], mode, tolerant=True, tools=tools)
    assert refusal is None
    assert run(split(text, cuts), mode, tolerant=True, tools=tools)[0] == events
    read = collect(events)
    assert read.finish_reason in ("stop", "tool_calls", "length")
    assert not MARKUP.search(read.content)
    assert not MARKUP.search(read.reasoning_content)
    for call in read.calls:
        assert isinstance(json.loads(call.arguments), dict)
    try:
        parse(text, mode)
    except Malformed:
        assert read.repairs, "what the strict parser refuses was repaired, so say so"


def test_golden_completions_need_no_repair() -> None:
    for row in GOLDEN:
        read = parse(row["text"], row["thinking_mode"], tolerant=True)
        assert read.message() == row["expected"]
        assert not read.repairs


def test_long_garbage_is_read_once() -> None:
    # Each of these made a parser that looks at held text again take minutes.
    for text in (
        "\n\n<｜DSML｜tool_calls>\n<｜DSML｜invoke " + "x" * 5_000,
        '<｜DSML｜invoke name="f">\n' + "<" * 5_000,
        "\n" * 5_000,
        '<｜DSML｜invoke name="f">\n<｜DSML｜parameter name="x" string="false">' + "｜" * 5_000,
    ):
        for how in ({"tolerant": True}, {}):
            run(list(text), "chat", **how)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"a": "x\ny"}', {"a": "x\ny"}),
        ('{"code": "print("hi")"}', {"code": 'print("hi")'}),
        ("{'a': True, 'b': [1, 2,], 'c': None}", {"a": True, "b": [1, 2], "c": None}),
        ("{“a”: “b”}", {"a": "b"}),
        (r'{"p": "C:\dir\u00e9"}', {"p": r"C:\diré"}),
        ("-1.5e3", -1500.0),
    ],
)
def test_lenient_json_reads_what_models_write(text: str, value: object) -> None:
    assert read_lenient(text) == value


@pytest.mark.parametrize("text", ["hello", "", '{"a" 1}', '{"a": 1', "[1 2]", "01", "[" * 500, '"'])
def test_lenient_json_is_still_json(text: str) -> None:
    with pytest.raises(ValueError):
        read_lenient(text)


@given(st.text(st.sampled_from("{}[]\"',: \\\n1aTrue“”"), max_size=30))
def test_lenient_json_refuses_or_reads(text: str) -> None:
    try:
        value = read_lenient(text)
    except ValueError:
        return
    json.dumps(value)


def test_types_of_a_schema() -> None:
    properties = {
        "union": {"anyOf": [{"type": "string"}, {"type": "null"}]},
        "listed": {"type": ["integer", "null"]},
        "enum": {"enum": ["a", 1]},
        "named": {"$ref": "#/$defs/number"},
        "silent": {"description": "anything"},
        "loop": {"$ref": "#/properties/loop"},
    }
    schema = {"properties": properties, "$defs": {"number": {"type": "number"}}}
    types = Schemas([{"function": {"name": "f", "parameters": schema}}]).types
    assert types("f", "union") == frozenset({"string", "null"})
    assert types("f", "listed") == frozenset({"integer", "null"})
    assert types("f", "enum") == frozenset({"string", "integer"})
    assert types("f", "named") == frozenset({"number"})
    assert types("f", "silent") is None
    assert types("f", "loop") is None
    assert types("f", "absent") is None
    assert read_value("5", True, types("f", "named")) == ("5", "string_flag")
    assert read_value("5.0", True, types("f", "listed")) == ("5.0", "string_flag")
    assert read_value("five", True, types("f", "listed")) == ('"five"', "")
    with pytest.raises(ValueError, match="a tool is"):
        Schemas([{"name": "f"}])
