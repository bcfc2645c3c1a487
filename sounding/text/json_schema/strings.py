"""The strings that a schema admits, as a terminal of a Lark grammar.

Regular languages are closed under "and", "or" and "not", so that every combination of schemas can
be enforced on a text that is written as it is, without quotes and escapes.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

from sounding.text.json_schema.document import Schema, SchemaDocument
from sounding.text.json_schema.patterns import found_in, is_narrowed, whole

_LONGEST = 100_000  # of minLength and maxLength: what a terminal can count
_LONGEST_EXPRESSION = 200_000  # characters; references within references double it each time


@dataclass(frozen=True)
class Strings:
    """A set of strings: a Lark expression, the same as a test, and a list where it is finite."""

    expression: str
    holds: Callable[[str], bool]
    listed: tuple[str, ...] | None = None
    narrowed: bool = False
    """Whether it was made smaller than the schema says, so that its complement is too large."""

    def __post_init__(self) -> None:
        if len(self.expression) > _LONGEST_EXPRESSION and self.listed is None:
            raise ValueError("a combination of so many schemas of strings is not supported")

    def __and__(self, other: "Strings") -> "Strings":
        if self.expression == other.expression:
            return self
        if self is EVERY or other is EVERY:
            return other if self is EVERY else self
        for one, two in ((self, other), (other, self)):
            if one.listed is not None:
                return listed([text for text in one.listed if two.holds(text)])
        return Strings(
            f"({self.expression} & {other.expression})",
            lambda text: self.holds(text) and other.holds(text),
            narrowed=self.narrowed or other.narrowed,
        )

    def __or__(self, other: "Strings") -> "Strings":
        if self.expression == other.expression:
            return self
        if self is EVERY or other is EVERY:
            return EVERY
        if not self.listed and self.listed is not None:
            return other
        if not other.listed and other.listed is not None:
            return self
        if self.listed is not None and other.listed is not None:
            return listed([*self.listed, *other.listed])
        return Strings(
            f"({self.expression} | {other.expression})",
            lambda text: self.holds(text) or other.holds(text),
            narrowed=self.narrowed or other.narrowed,
        )

    def __invert__(self) -> "Strings":
        if self is EVERY:
            return listed([])
        if self.listed == ():
            return EVERY
        if self.narrowed:
            raise ValueError("a pattern within not, oneOf or if is not supported")
        return Strings(
            f"({EVERY.expression} & ~({self.expression}))", lambda text: not self.holds(text)
        )


EVERY = Strings(r"/(.|\n)*/", lambda text: True)


def listed(texts: Sequence[str]) -> Strings:
    """These strings and no others."""
    kept = tuple(dict.fromkeys(texts))
    literals = " | ".join(json.dumps(text, ensure_ascii=False) for text in kept)
    return Strings(f"({literals})", frozenset(kept).__contains__, kept)


def strings(
    schema: Schema, document: SchemaDocument, known: dict[str, Strings] | None = None
) -> Strings:
    """The strings that a schema admits. Raises ValueError for what no terminal can say.

    `known` are those of the references that were followed on the way.
    """
    known = {} if known is None else known
    if isinstance(schema, bool):
        return EVERY if schema else listed([])
    made = EVERY
    if "string" not in schema.get("type", ["string"]):
        return listed([])
    if "enum" in schema:
        made &= listed([value for value in schema["enum"] if isinstance(value, str)])
    if "const" in schema:
        made &= listed([schema["const"]] if isinstance(schema["const"], str) else [])
    if "minLength" in schema or "maxLength" in schema:
        made &= _of_length(schema.get("minLength", 0), schema.get("maxLength"))
    if "pattern" in schema:
        made &= matching(schema["pattern"])

    def read(part: Schema) -> Strings:
        return strings(part, document, known)

    if "$ref" in schema:
        if schema["$ref"] not in known:
            known[schema["$ref"]] = read(document.target(schema))
        made &= known[schema["$ref"]]
    for part in schema.get("allOf", ()):
        made &= read(part)
    if "anyOf" in schema:
        made &= reduce(Strings.__or__, map(read, schema["anyOf"]))
    if "oneOf" in schema:
        made &= _exactly_one([read(part) for part in schema["oneOf"]])
    if "not" in schema:
        made &= ~read(schema["not"])
    return made & _conditional(schema, read)


def only_strings(schema: Schema) -> bool:
    """Whether a schema says itself that nothing else follows it."""
    if isinstance(schema, bool):
        return False
    values = [schema["const"]] if "const" in schema else schema.get("enum", [None])
    listed_alone = all(isinstance(value, str) for value in values)
    return (
        schema.get("type") == ["string"]
        or listed_alone
        or any(only_strings(part) for part in schema.get("allOf", ()))
    )


def is_empty(made: Strings) -> bool:
    return made.listed == ()


def _of_length(least: int, most: int | None) -> Strings:
    if max(least, most or 0) > _LONGEST:
        raise ValueError(f"minLength and maxLength above {_LONGEST} are not supported")
    if most is not None and most < least:
        return listed([])
    if least == 0 and most is None:
        return EVERY
    upper = "" if most is None else most
    return Strings(
        rf"/(.|\n){{{least},{upper}}}/",
        lambda text: least <= len(text) and (most is None or len(text) <= most),
    )


def matching(pattern: str) -> Strings:
    """The strings in which a portable pattern is found."""
    expression = f"/{whole(pattern)}/"
    return Strings(expression, lambda text: found_in(pattern, text), narrowed=is_narrowed(pattern))


def _exactly_one(parts: Sequence[Strings]) -> Strings:
    made = listed([])
    for index, part in enumerate(parts):
        for other, rival in enumerate(parts):
            if other != index and not is_empty(part):
                part &= ~rival
        made |= part
    return made


def _conditional(schema: Mapping[str, Any], read: Callable[[Schema], Strings]) -> Strings:
    if "if" not in schema:
        return EVERY
    condition = read(schema["if"])
    then = condition & read(schema.get("then", True))
    return then | (~condition & read(schema.get("else", True)))
