"""The table of malformed completions in docs/prompt.md is what the tolerant parser does."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from sounding.text import Malformed, coalesce, collect, parse, parser

PAGE = Path(__file__).parents[2] / "docs" / "prompt.md"
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "f",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string"},
                    "days": {"type": ["integer", "array", "object"]},
                },
            },
        },
    }
]


def table() -> list[list[str]]:
    text = PAGE.read_text(encoding="utf-8")
    lines = text[text.index("| Shape | Mode") :].splitlines()[2:]
    cells = [re.split(r"(?<!\\)\|", line)[1:-1] for line in lines]
    return [[cell.strip().replace(r"\|", "|") for cell in row] for row in cells]


ROWS = table()


def test_the_table_has_every_shape_known_to_occur() -> None:
    kinds = {kind for row in ROWS for kind in re.findall("`(.*?)`", row[4])}
    assert len(ROWS) >= 38
    assert kinds >= {
        "call_in_reasoning",
        "missing_end",
        "truncated",
        "doubled_bars",
        "ascii_bars",
        "smart_quotes",
        "unescaped_value",
        "arguments_wrapper",
        "string_flag",
    }


@pytest.mark.parametrize("row", ROWS, ids=[row[0] for row in ROWS])
def test_each_row_of_the_table_parses_as_listed(row: list[str]) -> None:
    _, mode, completion, strict, repairs, expected = row
    text = json.loads(completion.strip("`"))
    read = parse(text, mode, tolerant=True, tools=TOOLS)
    calls = [[call.name, json.loads(call.arguments)] for call in read.calls]
    message: dict[str, Any] = {
        "reasoning": read.reasoning_content,
        "content": read.content,
        "calls": calls,
    }
    assert {name: value for name, value in message.items() if value} == json.loads(
        expected.strip("`")
    )
    assert [repair.kind for repair in read.repairs] == re.findall("`(.*?)`", repairs)
    if strict == "accepts":
        parse(text, mode)
    else:
        with pytest.raises(Malformed):
            parse(text, mode)
    by_character = parser(mode, tolerant=True, tools=TOOLS)
    events = [event for character in text for event in by_character.feed(character)]
    assert collect(coalesce([*events, *by_character.finish()])) == read
