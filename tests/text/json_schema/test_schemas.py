"""What calls a schema of parameters admits, case by case."""

import json
from typing import Any

import pytest

from sounding.text import encode_completion
from sounding.text.grammar import matcher, turn_grammar
from sounding.text.json_schema.patterns import found_in, is_narrowed, portable, whole
from tests.text.json_schema.drawn import answer, small_vocabulary

SIZES = {"type": "string", "enum": ["small", "large"]}
TREE = {
    "type": "object",
    "properties": {"value": SIZES, "next": {"$ref": "#/$defs/Tree"}},
    "required": ["value"],
    "additionalProperties": False,
}


def grammar_of(parameters: Any, **function: Any) -> str:
    tools = [{"type": "function", "function": {"name": "f", "parameters": parameters, **function}}]
    return turn_grammar(tools, "chat", calls="required")


def admits(parameters: Any, arguments: dict[str, Any]) -> bool:
    call = {"type": "function", "function": {"name": "f", "arguments": json.dumps(arguments)}}
    text = encode_completion({"content": "", "tool_calls": [call]}, "chat")
    tokenizer, vocabulary = small_vocabulary()
    ids = tokenizer.encode(text)[:-1]  # without EOS
    follows = matcher(vocabulary, grammar_of(parameters))
    return follows.try_consume_tokens(ids) == len(ids) and follows.is_accepting()


@pytest.mark.parametrize(
    "schema",
    [
        SIZES,
        {"$ref": "#/$defs/Size"},
        {"$ref": "#/definitions/Size"},
        {"$ref": "#/properties/other"},
        {"$ref": "#/properties/list/items"},
        {"$ref": "#/$defs/a~1b%20c"},
        {"anyOf": [SIZES, {"type": "null"}]},
        {"anyOf": [{"$ref": "#/$defs/Size"}, {"type": "null"}]},
        {"allOf": [{"$ref": "#/$defs/Size"}], "description": "d"},
        {"oneOf": [{"const": "small"}, {"const": "large"}]},
        {"oneOf": [{"$ref": "#/$defs/Small"}, {"const": "large"}]},
        {"type": ["string", "null"], "pattern": "^(?:small|large)$"},
        {"type": "string", "not": {"not": SIZES}},
        {"enum": ["small", "large", "medium"], "not": {"const": "medium"}},
        {"if": {"type": "string"}, "then": SIZES, "type": "string"},
        {"type": "string", "enum": ["small", "large", "larger"], "maxLength": 5},
    ],
)
def test_only_the_listed_values(schema: dict[str, Any]) -> None:
    parameters = {
        "$defs": {"Size": SIZES, "Small": {"const": "small"}, "a/b c": SIZES},
        "definitions": {"Size": SIZES},
        "type": "object",
        "properties": {"s": schema, "other": SIZES, "list": {"type": "array", "items": SIZES}},
        "required": ["s"],
    }
    assert admits(parameters, {"s": "small"}) and admits(parameters, {"s": "large"})
    wrongs: tuple[object, ...] = (
        "purple",
        "",
        "small ",
        "smalls",
        "medium",
        1,
        True,
        ["small"],
        {},
    )
    for wrong in wrongs:
        assert not admits(parameters, {"s": wrong}), wrong


CASES: list[tuple[dict[str, Any] | None, list[dict[str, Any]], list[dict[str, Any]]]] = [
    (None, [{}], [{"a": 1}]),
    ({"type": "object"}, [{}, {"a": "x", "b": [1]}], []),
    ({"properties": {}}, [{}], [{"a": 1}]),
    (
        {"properties": {"a": SIZES}, "additionalProperties": {"type": "integer"}},
        [{}, {"a": "small"}, {"b": 1}, {"a": "small", "ab": 2}],
        [{"a": "x"}, {"b": "x"}],
    ),
    ({"$ref": "#/$defs/T", "$defs": {"T": {"properties": {"a": SIZES}}}}, [{}], [{"a": "x"}]),
    (
        {"$ref": "#/$defs/Tree", "$defs": {"Tree": TREE}},
        [{"value": "small"}, {"value": "small", "next": {"value": "large"}}],
        [{}, {"value": "small", "next": {}}, {"value": "small", "next": {"value": "x"}}],
    ),
    (
        {
            "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
            "anyOf": [{"required": ["a"]}, {"required": ["b"]}],
        },
        [{"a": 1}, {"b": 1}, {"a": 1, "b": 2}],
        [{}, {"c": 1}],
    ),
    (
        {
            "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
            "oneOf": [{"required": ["a"]}, {"required": ["b"]}],
        },
        [{"a": 1}, {"b": 1}],
        [{}, {"a": 1, "b": 2}],
    ),
    (
        {
            "oneOf": [
                {
                    "properties": {"kind": {"const": "c"}, "r": {"type": "integer"}},
                    "required": ["kind"],
                },
                {
                    "properties": {"kind": {"const": "q"}, "s": {"type": "integer"}},
                    "required": ["kind"],
                },
            ]
        },
        [{"kind": "c", "r": 1}, {"kind": "q", "s": 1}],
        [{"kind": "c", "s": 1}, {"kind": "x"}, {}],
    ),
    (
        {"allOf": [{"properties": {"a": SIZES}, "required": ["a"]}, {"properties": {"b": SIZES}}]},
        [{"a": "small"}, {"a": "small", "b": "large"}],
        [{}, {"b": "small"}, {"a": "small", "c": 1}],
    ),
    ({"properties": {"a": {"const": {"x": [1]}}}}, [{"a": {"x": [1]}}], [{"a": {"x": [2]}}]),
    ({"const": {"a": "x"}}, [{"a": "x"}], [{}, {"a": "y"}]),
    (
        {"properties": {"a": {"items": [SIZES, {"type": "null"}], "additionalItems": False}}},
        [{"a": ["small", None]}],
        [{"a": ["small", None, 1]}, {"a": ["x"]}],
    ),
    (
        {"properties": {"a": {}, "b": {}}, "dependentRequired": {"a": ["b"]}},
        [{}, {"b": 1}, {"a": 1, "b": 1}],
        [{"a": 1}],
    ),
    ({"properties": {"a": {}, "b": {}}, "minProperties": 1}, [{"a": 1}, {"b": "x"}], [{}]),
    ({"properties": {"a": {}, "b": {}}, "maxProperties": 1}, [{}, {"a": 1}], [{"a": 1, "b": 1}]),
    ({"patternProperties": {"^x": {"type": "integer"}}}, [{"x1": 1}, {"y": "s"}], [{"x1": "s"}]),
    ({"propertyNames": {"enum": ["a"]}}, [{}, {"a": 1}], [{"b": 1}]),
    ({"properties": {"a": {"minLength": 2, "type": "string"}}}, [{"a": "xx"}], [{"a": "x"}]),
    ({"properties": {"a": {"format": "path", "type": "string"}}}, [{"a": "x"}], [{"a": 1}]),
    (
        {"properties": {"a": {"type": "integer", "minimum": 3, "exclusiveMinimum": True}}},
        [{"a": 4}],
        [{"a": 3}],
    ),
]


@pytest.mark.parametrize(("parameters", "right", "wrong"), CASES)
def test_a_schema_admits_right_arguments_and_no_wrong_ones(
    parameters: dict[str, Any] | None, right: list[dict[str, Any]], wrong: list[dict[str, Any]]
) -> None:
    for arguments in right:
        assert admits(parameters, arguments), arguments
    for arguments in wrong:
        assert not admits(parameters, arguments), arguments


def test_a_way_that_never_ends_is_not_begun() -> None:
    endless = {"type": "array", "items": {"$ref": "#/$defs/E"}, "minItems": 1}
    parameters = {
        "$defs": {"E": endless},
        "properties": {"a": {"anyOf": [{"const": 1}, {"$ref": "#/$defs/E"}]}},
        "required": ["a"],
    }
    assert admits(parameters, {"a": 1}) and not admits(parameters, {"a": [[]]})
    grammar = grammar_of(parameters).replace("call+", "call")
    assert all(answer(grammar, seed, 400)[1] for seed in range(20))
    parameters["properties"] = {"a": {"$ref": "#/$defs/E"}}
    with pytest.raises(ValueError, match="no value can end"):
        grammar_of(parameters)


def test_strings_never_spell_a_tag() -> None:
    tag = "</｜DSML｜parameter>"
    for schema in ({"type": "string"}, {"type": "string", "maxLength": 99}):
        listed = {"properties": {"a": {"type": "array", "items": schema}}}
        assert admits(listed, {"a": ["a ｜ b"]})
        tokenizer, vocabulary = small_vocabulary()
        head = '\n\n<｜DSML｜tool_calls>\n<｜DSML｜invoke name="f">\n'
        head += '<｜DSML｜parameter name="a" string='
        for text, parameters in (
            (f'"false">["{tag}', listed),
            (f'"true">x{tag} y', {"properties": {"a": schema}}),
            ('"true">x<|DSML|invoke name', {"properties": {"a": schema}}),
        ):
            follows = matcher(vocabulary, grammar_of(parameters))
            ids = tokenizer.encode(head + text)
            assert follows.validate_tokens(ids) < len(ids)


def test_many_parameters_make_a_small_grammar() -> None:
    properties = {f"p{i}": {"type": "string"} for i in range(300)}
    assert len(grammar_of({"properties": properties})) < 200_000
    assert admits({"properties": properties}, {"p0": "a", "p299": "b"})
    assert not admits({"properties": properties}, {"p299": "a", "p0": "b"})


@pytest.mark.parametrize("combination", ["anyOf", "allOf", "oneOf"])
@pytest.mark.parametrize("kind", ["string", "integer", "object"])
def test_references_that_double_are_no_work_without_end(combination: str, kind: str) -> None:
    definitions: dict[str, Any] = {"D40": {"type": kind}}
    for number in range(40):
        next_one = {"$ref": f"#/$defs/D{number + 1}"}
        definitions[f"D{number}"] = {combination: [next_one, next_one]}
    for parameters in ({"$ref": "#/$defs/D0"}, {"properties": {"a": {"$ref": "#/$defs/D0"}}}):
        try:
            grammar_of({"$defs": definitions, **parameters})
        except ValueError as error:
            assert len(f"{error}") < 400


@pytest.mark.parametrize(
    ("pattern", "right", "wrong"),
    [
        (r"^\d+$", ["7", "12"], ["", "٣", "a1"]),
        (r"b", ["abc", "b"], ["a"]),
        (r"^a|b$", ["ax", "xb"], ["xa"]),
        (r"^[\w.-]+@x$", ["a.b-c@x"], ["é@x", "a b@x"]),
        (r"^[^\s]+$", ["é-"], ["a b", "a\u3000b"]),
        (r"^[\s\S]$", ["\n", "x"], ["xx"]),
        (r"^a.c$", ["abc"], ["a\nc"]),
        (r"^(?<year>\d{4})-(?:0[1-9])$", ["2020-01"], ["2020-10"]),
        (r"^\/a\x41A\-$", ["/aAA-"], ["a"]),
        (r"^[a-c-]+?$", ["a-b"], ["d"]),
    ],
)
def test_a_pattern_admits_right_texts_and_no_wrong_ones(
    pattern: str, right: list[str], wrong: list[str]
) -> None:
    made = portable(pattern)
    schema = {"properties": {"a": {"type": "string", "pattern": pattern}}}
    within = {"properties": {"l": {"items": schema["properties"]["a"]}}}
    for text in right:
        assert found_in(made, text) and admits(schema, {"a": text}), text
        assert admits(within, {"l": [text]})
    for text in wrong:
        assert not found_in(made, text) and not admits(schema, {"a": text}), text
        assert not admits(
            {"properties": {"l": {"items": schema["properties"]["a"]}}}, {"l": [text]}
        )
    assert is_narrowed(made) == any(mark in pattern for mark in (r"\d", r"\w", r"^\s", ".c"))


@pytest.mark.parametrize(
    "pattern", [r"(?=a)", r"(?!a)", r"(?<=a)b", r"(a)\1", r"\bx", "(", "a**", "[]", "[z-a]"]
)
def test_patterns_that_are_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match="pattern"):
        portable(pattern)


def test_anchors_inside_of_a_pattern_are_refused() -> None:
    with pytest.raises(ValueError, match="inside of a pattern"):
        whole(portable("a(^b)"))
