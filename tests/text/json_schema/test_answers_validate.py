"""What is admitted for a schema validates: an independent validator says so of random answers."""

import json
import re
from collections import Counter
from typing import Any

import jsonschema
import pytest

from sounding.text import encode_completion, parse
from sounding.text.grammar import turn_grammar
from sounding.text.markup import EOS
from tests.text.json_schema.drawn import answer, drawn_parameters, small_vocabulary

# Each refusal says which keyword, reference, property or combination it is about.
REASON = re.compile(
    r"Unimplemented keys: \[\"\w+|\b(?:not|if|pattern|oneOf|patternProperties)\b"
    r"|\b(?:minProperties|maxProperties)\b"
    r"|\$ref|no value can end|none is possible for|its parts disagree|admits no value"
    r"|leads nowhere|recursive references|intersection|anyOf|combinations"
)


def check_drawn(seeds: range) -> Counter[str]:
    """For each seed a tool and a response format of that schema; two answers to each."""
    seen: Counter[str] = Counter()
    for seed in seeds:
        schema = drawn_parameters(seed)
        tools = [{"type": "function", "function": {"name": "f", "parameters": schema}}]
        check: dict[str, dict[str, Any]] = {
            "call": {"tools": tools, "calls": "required", "parallel": False},
            "content": {"tools": (), "schema": schema},
        }
        for kind, how in check.items():
            try:
                grammar = turn_grammar(thinking_mode="chat", **how)
            except ValueError as error:
                assert REASON.search(f"{error}"), f"seed {seed}: {error}"
                seen[f"{kind} refused"] += 1
                continue
            for number in range(2):
                text, ended = answer(grammar, 2 * seed + number, 300)
                seen[f"{kind} {'ended' if ended else 'cut'}"] += 1
                if ended:
                    value = _read(text, tools, kind)
                    jsonschema.Draft202012Validator(schema).validate(value)
    return seen


def _read(text: str, tools: list[Any], kind: str) -> Any:
    if kind == "content":
        return json.loads(text)
    read = parse(text + EOS, "chat", tolerant=True, tools=tools)
    # A name that the schema does not know may be drawn twice; the first value counts.
    assert not read.content and {one.kind for one in read.repairs} <= {"duplicate_parameter"}
    (call,) = read.calls
    return json.loads(call.arguments)


def test_300_drawn_schemas() -> None:
    seen = check_drawn(range(300))
    assert seen["call ended"] > 200 and seen["content ended"] > 200


@pytest.mark.long
def test_10000_drawn_schemas() -> None:
    seen = check_drawn(range(1_000, 11_000))
    print(dict(seen))
    assert seen["call ended"] > 8_000 and seen["content ended"] > 8_000


# Schemas of which the longest compact answer is known, in the text of the arguments.
BOUNDED: list[tuple[dict[str, Any], Any]] = [
    ({"a": {"type": "boolean"}}, {"a": False}),
    (
        {"size": {"enum": ["small", "large"]}, "n": {"enum": [1, 22, None]}},
        {"size": "small", "n": None},
    ),
    (
        {"list": {"type": "array", "items": {"enum": [1, 2]}, "maxItems": 4, "minItems": 4}},
        {"list": [1] * 4},
    ),
    (
        {
            "at": {
                "type": "object",
                "properties": {"x": {"type": "boolean"}, "y": {"const": "there"}},
                "required": ["x", "y"],
                "additionalProperties": False,
            }
        },
        {"at": {"x": False, "y": "there"}},
    ),
    ({"code": {"type": "integer", "minimum": 100, "maximum": 999}}, {"code": 999}),
]


@pytest.mark.parametrize(("properties", "longest"), BOUNDED)
def test_bounded_answers_end(properties: dict[str, Any], longest: dict[str, Any]) -> None:
    """Of 200 random ones for each schema none is cut at 4 times the longest compact answer."""
    schema = {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
    tokenizer, _ = small_vocabulary()
    compact = tokenizer.encode(json.dumps(longest, separators=(",", ":")))
    grammar = turn_grammar((), "chat", schema=schema)
    assert all(answer(grammar, seed, 4 * len(compact))[1] for seed in range(200))


@pytest.mark.parametrize(("properties", "longest"), BOUNDED)
def test_bounded_calls_end(properties: dict[str, Any], longest: dict[str, Any]) -> None:
    parameters = {"type": "object", "properties": properties, "required": list(properties)}
    tools = [{"type": "function", "function": {"name": "f", "parameters": parameters}}]
    function = {"name": "f", "arguments": json.dumps(longest)}
    calls = [{"type": "function", "function": function}]
    tokenizer, _ = small_vocabulary()
    compact = tokenizer.encode(encode_completion({"content": "", "tool_calls": calls}, "chat"))
    grammar = turn_grammar(tools, "chat", calls="required", parallel=False)
    assert all(answer(grammar, seed, 4 * len(compact))[1] for seed in range(200))
