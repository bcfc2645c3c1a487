"""Convert a parameter's text to JSON: types from a tool's schema, and repairs of broken JSON.

Used by the tolerant parser only. A valid value is never changed; each repair is reported.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import unquote

from sounding.text.markup import to_json

_EVERY_TYPE = frozenset({"string", "number", "integer", "boolean", "array", "object", "null"})
STRING = frozenset({"string"})
_DEEPEST = 64  # nested lists and objects the lenient reader follows


class Schemas:
    """The parameter schemas of the offered tools, by tool and parameter name."""

    def __init__(self, tools: Sequence[Any] | None) -> None:
        self._properties: dict[str, tuple[Mapping[str, Any], Any]] = {}
        for tool in tools or ():
            function = tool.get("function") if isinstance(tool, Mapping) else None
            if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
                raise ValueError(
                    f"a tool is {tool!r:.80}; it is "
                    '{"type": "function", "function": {"name": ..., "parameters": ...}}'
                )
            schema = function.get("parameters")
            properties = schema.get("properties") if isinstance(schema, Mapping) else None
            self._properties[function["name"]] = (
                properties if isinstance(properties, Mapping) else {},
                schema,
            )

    def defines(self, tool: str, key: str) -> bool:
        """True if the tool is known and has a parameter of that name."""
        return tool in self._properties and key in self._properties[tool][0]

    def types(self, tool: str, key: str) -> frozenset[str] | None:
        """The JSON types a parameter may have; None if the schema has none."""
        if not self.defines(tool, key):
            return None
        properties, root = self._properties[tool]
        types = _types(properties[key], root, 0, {})
        if types >= _EVERY_TYPE:
            return None
        return types - {"integer"} if "number" in types else types  # which admits integers


def _types(schema: Any, root: Any, depth: int, known: dict[str, frozenset[str]]) -> frozenset[str]:
    """The JSON types a schema admits; every type where it is silent or too deep to follow.

    `known` are those of the references that were followed on the way, each of them once.
    """
    if not isinstance(schema, Mapping) or depth > 8:
        return _EVERY_TYPE
    types = _EVERY_TYPE

    def read(part: Any) -> frozenset[str]:
        return _types(part, root, depth + 1, known)

    reference = schema.get("$ref")
    if isinstance(reference, str) and reference.startswith("#/"):
        if reference not in known:
            known[reference] = _EVERY_TYPE  # where it leads back here
            known[reference] = read(_target(reference, root))
        types &= known[reference]
    named = schema.get("type")
    if isinstance(named, str | list):
        names = {name for name in _listed(named) if isinstance(name, str)}
        types &= names | ({"integer"} if "number" in names else set())
    values = [schema["const"]] if "const" in schema else schema.get("enum")
    if isinstance(values, list):
        whole = any(isinstance(value, float) and value.is_integer() for value in values)
        types &= {_type(value) for value in values} | ({"integer"} if whole else set())
    for union in ("anyOf", "oneOf"):
        if isinstance(schema.get(union), list):
            types &= frozenset().union(*map(read, schema[union]))
    if isinstance(schema.get("allOf"), list):
        types = types.intersection(*map(read, schema["allOf"]))
    return types or _EVERY_TYPE


def _target(reference: str, root: Any) -> Any:
    target = root
    for step in unquote(reference[2:]).split("/"):
        name = step.replace("~1", "/").replace("~0", "~")
        target = target.get(name) if isinstance(target, Mapping) else None
    return target


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _type(value: Any) -> str:
    if isinstance(value, bool):
        return "boolean"
    names = {str: "string", int: "integer", float: "number", list: "array", dict: "object"}
    return names.get(type(value), "null")


def _fits(value: Any, types: frozenset[str] | None) -> bool:
    if types is None or _type(value) in types:
        return True
    if isinstance(value, float) and "integer" in types:
        return value.is_integer()
    return _type(value) == "integer" and "number" in types


def read_value(text: str, string: bool | None, types: frozenset[str] | None) -> tuple[str, str]:
    """Return a parameter's JSON text, and the kind of repair ("" for none).

    `string` is the flag of the parameter, None when it has none. A text that fits no allowed
    type stays a string: a value the tool refuses is better than a lost one.
    """
    may_be_string = types is None or "string" in types
    if string and may_be_string:
        return to_json(text), ""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return _read_broken(text, string, types)
    if _fits(value, types):
        return text, "string_flag" if string else ""
    if string:
        return to_json(text), ""
    return (to_json(text), "string_flag") if may_be_string else (text, "")


def _read_broken(text: str, string: bool | None, types: frozenset[str] | None) -> tuple[str, str]:
    kind = "string_flag" if string else "unescaped_value"
    if types != STRING:
        try:
            value = read_lenient(text)
        except ValueError:
            pass
        else:
            if _fits(value, types):
                return to_json(value), kind
    if string is None and types is None:
        return to_json(text), ""
    return to_json(text), "" if string else "string_flag"


_SPACE = re.compile(r"[ \t\r\n]*")
_WORD = re.compile(r"-?[A-Za-z0-9_.+]+(?:[+-][0-9]+)?")
_OPENING = {'"': '"“”„‟＂', "'": "'‘’‚‛"}
_WORDS = {"True": True, "true": True, "False": False, "false": False}
_WORDS_OF_NULL = ("None", "null", "undefined")
_END_OF_STRING = re.compile(r"[ \t\r\n]*(?:[,:}\]]|\Z)")


def read_lenient(text: str) -> Any:
    """Read JSON as models break it: raw line ends, bare inner quotes, Python words and quotes.

    Also smart quotes and trailing commas. Raises ValueError if it cannot be parsed: a bare
    text is not JSON even after repair.
    """
    value, at = _read(text, _skip(text, 0), 0)
    if _skip(text, at) != len(text):
        raise ValueError("text after the value")
    return value


def _skip(text: str, at: int) -> int:
    space = _SPACE.match(text, at)
    return space.end() if space else at


def _read(text: str, at: int, depth: int) -> tuple[Any, int]:
    if depth > _DEEPEST:
        raise ValueError("nested too deeply")
    if at >= len(text):
        raise ValueError("a value is missing")
    if text[at] in "{[":
        return _read_items(text, at, depth)
    if _quotes(text[at]):
        return _read_string(text, at)
    word = _WORD.match(text, at)
    if word is None:
        raise ValueError(f"{text[at]!r} starts no value")
    if word[0] in _WORDS:
        return _WORDS[word[0]], word.end()
    if word[0] in _WORDS_OF_NULL:
        return None, word.end()
    return json.loads(word[0]), word.end()


def _read_items(text: str, at: int, depth: int) -> tuple[Any, int]:
    """A list or an object, from its opening bracket."""
    is_object = text[at] == "{"
    close, items, fields = "}" if is_object else "]", [], {}
    at = _skip(text, at + 1)
    while text[at : at + 1] != close:
        if is_object:
            if not _quotes(text[at : at + 1]):
                raise ValueError("a key is due")
            key, at = _read_string(text, at)
            at = _skip(text, at)
            if text[at : at + 1] != ":":
                raise ValueError("a colon is due")
            fields[key], at = _read(text, _skip(text, at + 1), depth + 1)
        else:
            value, at = _read(text, at, depth + 1)
            items.append(value)
        at = _skip(text, at)
        if text[at : at + 1] == ",":
            at = _skip(text, at + 1)
        elif text[at : at + 1] != close:
            raise ValueError("a comma is due")
    return (fields if is_object else items), at + 1


def _quotes(character: str) -> str:
    """The characters that may close what this one opens; "" if it opens nothing."""
    return next((all_ for all_ in _OPENING.values() if character and character in all_), "")


def _read_string(text: str, at: int) -> tuple[str, int]:
    """A string, which ends at the first quote that something structural follows."""
    closing, start = _quotes(text[at]), at + 1
    at = start
    while at < len(text):
        if text[at] == "\\":
            at += 2
        elif text[at] in closing and _END_OF_STRING.match(text, at + 1):
            return _unescape(text[start:at]), at + 1
        else:
            at += 1
    raise ValueError("a string is not closed")


def _unescape(raw: str) -> str:
    """Resolve JSON escapes; a backslash that escapes nothing is kept."""
    parts = re.split(r'(\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))', raw)
    joined = "".join(
        part if index % 2 else to_json(part.replace("\\'", "'"))[1:-1]
        for index, part in enumerate(parts)
    )
    return str(json.loads(f'"{joined}"'))
