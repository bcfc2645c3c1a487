"""The arguments of a call, which the prompt format writes one by one: their names and schemas.

A schema of arguments may be a combination. It is taken apart into shapes, each a plain list of
properties; a call follows one of them.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import combinations, islice, product
from typing import Any

from sounding.text.json_schema.document import TYPES, Schema, SchemaDocument
from sounding.text.json_schema.patterns import found_in
from sounding.text.json_schema.strings import EVERY, Strings, matching, strings

_MOST_SHAPES = 64


@dataclass(frozen=True, eq=False)
class PropertyRules:
    """What one schema says of an object's properties."""

    properties: dict[str, Schema] = field(default_factory=dict)
    patterns: dict[str, Schema] = field(default_factory=dict)
    other: Schema | None = None
    """What it says of properties that it does not name; None: nothing."""
    names: Strings | None = None
    lists: bool = False
    """Whether it has a list of properties, and be it an empty one."""

    def of(self, key: str) -> list[Schema]:
        """What the value of a property must follow."""
        said = [self.properties[key]] if key in self.properties else []
        said += [schema for pattern, schema in self.patterns.items() if found_in(pattern, key)]
        if self.names is not None and not self.names.holds(key):
            said.append(False)
        return said or [True if self.other is None else self.other]


@dataclass(frozen=True, eq=False)
class Shape:
    """One way to give arguments: what all of its parts say together."""

    parts: tuple[PropertyRules, ...] = ()
    required: tuple[str, ...] = ()

    def __add__(self, other: "Shape") -> "Shape":
        required = tuple(dict.fromkeys((*self.required, *other.required)))
        return Shape(tuple(dict.fromkeys((*self.parts, *other.parts))), required)

    def of(self, key: str) -> Schema:
        """The schema of a property: False where it may not be given."""
        return _all(schema for part in self.parts for schema in part.of(key))

    @property
    def keys(self) -> list[str]:
        """The properties that may be given, in the order of the schema."""
        named = dict.fromkeys(key for part in self.parts for key in part.properties)
        named.update(dict.fromkeys(self.required))
        return [key for key in named if self.of(key) is not False]

    @property
    def known(self) -> set[str]:
        """The properties with a name, also those that may not be given."""
        return {key for part in self.parts for key in part.properties}.union(self.required)

    def others(self) -> list[tuple[Strings, Schema]]:
        """Which other properties may be given, each set of names with the schema of the values.

        A schema that lists properties means no others, unless it says so.
        """
        said = any(part.other is not None or part.patterns for part in self.parts)
        if not said and any(part.lists for part in self.parts):
            return []
        names = EVERY
        for part in self.parts:
            names &= EVERY if part.names is None else part.names
        unnamed = [True if part.other is None else part.other for part in self.parts]
        patterns = [
            (i, *pair) for i, part in enumerate(self.parts) for pair in part.patterns.items()
        ]
        made = []
        for place, pattern, schema in patterns:
            alone = names & matching(pattern)
            for other in patterns:
                if other[:2] != (place, pattern):
                    alone &= ~matching(other[1])
            made.append((alone, _all([*unnamed[:place], schema, *unnamed[place + 1 :]])))
        if _all(unnamed) is not False:
            for _, pattern, _ in patterns:
                names &= ~matching(pattern)
            made.append((names, _all(unnamed)))
        return [(keys, schema) for keys, schema in made if schema is not False]


def shapes(document: SchemaDocument) -> list[Shape]:
    """The ways to give arguments that follow a document's schema; none where nothing does.

    Raises ValueError for what cannot be taken apart.
    """
    made = _Taking(document).shapes(document.root, "")
    return [shape for shape in made if all(shape.of(key) is not False for key in shape.required)]


class _Taking:
    def __init__(self, document: SchemaDocument) -> None:
        self._document = document
        # By reference, each of which is followed once.
        self._shapes: dict[tuple[str, bool], list[Shape]] = {}
        self._wide = False  # whether to leave no way out, that a rival of oneOf may have
        self._known: dict[str, set[str]] = {}
        self._listed: dict[str, list[Any] | None] = {}

    def shapes(self, schema: Schema, at: str) -> list[Shape]:
        if isinstance(schema, bool):
            return [Shape()] if schema else []
        if "object" not in schema.get("type", TYPES):
            return []
        for name in ("not", "if"):
            if name in schema:
                raise self._fault(at, f"{name} about all arguments is not supported")
        made = [self._own(schema, at)]
        if "$ref" in schema:
            key = schema["$ref"], self._wide
            if key not in self._shapes:
                self._shapes[key] = self.shapes(self._document.target(schema), at)
            made = self._each(made, self._shapes[key], at)
        for name in ("enum", "const"):
            if name in schema:
                values = schema[name] if name == "enum" else [schema[name]]
                listed = [_exactly(value) for value in values if isinstance(value, dict)]
                made = self._each(made, listed, at)
        for index, part in enumerate(schema.get("allOf", ())):
            made = self._each(made, self.shapes(part, f"{at}/allOf/{index}"), at)
        if "anyOf" in schema:
            made = self._each(made, self._any(schema["anyOf"], f"{at}/anyOf"), at)
        if "oneOf" in schema:
            made = self._one(made, schema["oneOf"], f"{at}/oneOf")
        made = self._dependent(made, schema, at)
        if schema.get("unevaluatedProperties", True) is not True:
            made = [self._closed(shape, schema["unevaluatedProperties"]) for shape in made]
        return self._counted(made, schema, at)

    def _fault(self, at: str, what: str) -> ValueError:
        return self._document.fault(at, what)

    def _own(self, schema: dict[str, Any], at: str) -> Shape:
        required = tuple(schema.get("required", ()))
        said = ("properties", "patternProperties", "additionalProperties", "propertyNames")
        if not any(name in schema for name in said):
            return Shape((), required)
        names = None
        if "propertyNames" in schema:
            try:
                names = strings(schema["propertyNames"], self._document)
            except ValueError as error:
                raise self._fault(f"{at}/propertyNames", f"{error}") from None
        part = PropertyRules(
            schema.get("properties", {}),
            schema.get("patternProperties", {}),
            schema.get("additionalProperties"),
            names,
            "properties" in schema,
        )
        return Shape((part,), required)

    def _each(self, some: list[Shape], others: list[Shape], at: str) -> list[Shape]:
        pairs = product(some, others)
        return self._few([one + other for one, other in islice(pairs, _MOST_SHAPES + 1)], at)

    def _any(self, parts: list[Schema], at: str) -> list[Shape]:
        made: list[Shape] = []
        for index, part in enumerate(parts):
            made = self._few(made + self.shapes(part, f"{at}/{index}"), at)
        return made

    def _few(self, made: list[Shape], at: str) -> list[Shape]:
        if len(made) > _MOST_SHAPES:
            raise self._fault(at, f"more than {_MOST_SHAPES} combinations of the arguments")
        return made

    def _one(self, made: list[Shape], parts: list[Schema], at: str) -> list[Shape]:
        """Those that follow one of the parts and no other."""
        if self._wide:
            return self._each(made, self._any(parts, at), at)
        found = []
        branches = [self.shapes(part, f"{at}/{i}") for i, part in enumerate(parts)]
        self._wide = True
        wide = [self.shapes(part, f"{at}/{i}") for i, part in enumerate(parts)]
        self._wide = False
        self._each(made, [shape for branch in branches for shape in branch], at)
        for base in made:
            for index, branch in enumerate(branches):
                rivals = [base + r for i, other in enumerate(wide) if i != index for r in other]
                found += [self._apart(base + shape, rivals, f"{at}/{index}") for shape in branch]
        return found

    def _apart(self, shape: Shape, rivals: list[Shape], at: str) -> Shape:
        for rival in rivals:
            if self._differ(shape, rival):
                continue
            key = next((key for key in rival.required if key not in shape.required), None)
            if key is None:
                raise self._fault(
                    at,
                    "oneOf is supported where each alternative requires a property of its own, "
                    "or the same property with other values",
                )
            shape += _without(key)
        return shape

    def _differ(self, one: Shape, other: Shape) -> bool:
        if any(other.of(key) is False for key in one.required):
            return True
        if any(one.of(key) is False for key in other.required):
            return True
        shared = [key for key in one.required if key in other.required]
        return any(self._disjoint(one.of(key), other.of(key)) for key in shared)

    def _disjoint(self, one: Schema, other: Schema) -> bool:
        first, second = self._values(one), self._values(other)
        if first is not None and second is not None:
            return not any(_same(a, b) for a in first for b in second)
        return not self._kinds(one) & self._kinds(other)

    def _values(self, schema: Schema) -> list[Any] | None:
        if isinstance(schema, bool):
            return None
        if "const" in schema:
            return [schema["const"]]
        if "enum" in schema:
            return list(schema["enum"])
        if "$ref" in schema:
            name = schema["$ref"]
            if name not in self._listed:
                self._listed[name] = self._values(self._document.target(schema))
            if self._listed[name] is not None:
                return self._listed[name]
        found = map(self._values, schema.get("allOf", ()))
        return next((values for values in found if values is not None), None)

    def _kinds(self, schema: Schema) -> set[str]:
        if isinstance(schema, bool):
            return set(TYPES) if schema else set()
        kinds = set(schema.get("type", TYPES))
        if kinds & {"number", "integer"}:
            kinds |= {"number", "integer"}
        for part in schema.get("allOf", ()):
            kinds &= self._kinds(part)
        if "$ref" in schema:
            name = schema["$ref"]
            if name not in self._known:
                self._known[name] = self._kinds(self._document.target(schema))
            kinds &= self._known[name]
        return kinds

    def _dependent(self, made: list[Shape], schema: dict[str, Any], at: str) -> list[Shape]:
        for key, names in schema.get("dependentRequired", {}).items():
            made = self._each(made, [_without(key), Shape((), (key, *names))], at)
        for key, part in schema.get("dependentSchemas", {}).items():
            place = f"{at}/dependentSchemas/{key}"
            given = self._each([Shape((), (key,))], self.shapes(part, place), place)
            made = self._each(made, [_without(key), *given], at)
        return made

    def _closed(self, shape: Shape, other: Schema) -> Shape:
        """Without properties that nothing speaks of."""
        if any(part.other is not None or part.patterns for part in shape.parts):
            return shape
        named: dict[str, Schema] = {key: True for part in shape.parts for key in part.properties}
        return shape + Shape((PropertyRules(named, other=other, lists=True),))

    def _counted(self, made: list[Shape], schema: dict[str, Any], at: str) -> list[Shape]:
        """With no fewer and no more properties than minProperties and maxProperties say."""
        if self._wide:
            return made
        least, most = schema.get("minProperties", 0), schema.get("maxProperties")
        counted = []
        for shape in made:
            free = [key for key in shape.keys if key not in shape.required]
            missing = least - len(shape.required)
            if missing > len(free) and shape.others():
                raise self._fault(at, f"minProperties {least} is more than the named properties")
            if missing > 0:
                choices = islice(combinations(free, missing), _MOST_SHAPES + 1)
                wanted: list[Shape] = [Shape((), few) for few in choices]
            else:
                wanted = [Shape()]
            counted += self._each([shape], wanted, at)
        if most is None:
            return counted
        return self._few([few for shape in counted for few in self._at_most(shape, most, at)], at)

    def _at_most(self, shape: Shape, most: int, at: str) -> list[Shape]:
        free = [key for key in shape.keys if key not in shape.required]
        room = most - len(shape.required)
        if room < 0:
            return []
        closed = [
            Shape((PropertyRules({key: True for key in shape.known}, other=False, lists=True),))
        ]
        if room >= len(free):
            return self._each([shape], closed, at)
        some = []
        for few in islice(combinations(free, room), _MOST_SHAPES + 1):
            barred: dict[str, Schema] = {key: False for key in free if key not in few}
            some.append(Shape((PropertyRules(barred),)))
        return self._each(self._each([shape], closed, at), some, at)


def _all(schemas: Iterable[Schema]) -> Schema:
    said = [schema for schema in schemas if schema is not True]
    if not said or False in said:
        return not said
    return said[0] if len(said) == 1 else {"allOf": said}


def _without(key: str) -> Shape:
    return Shape((PropertyRules({key: False}),))


def _exactly(value: dict[str, Any]) -> Shape:
    listed: dict[str, Schema] = {key: {"const": inner} for key, inner in value.items()}
    return Shape((PropertyRules(listed, other=False, lists=True),), tuple(value))


def _same(one: Any, other: Any) -> bool:
    """Whether JSON values may be equal: 1 and 1.0 are, 1 and true are not."""
    return bool(one == other) and isinstance(one, bool) == isinstance(other, bool)
