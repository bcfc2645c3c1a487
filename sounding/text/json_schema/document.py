"""A JSON schema, checked and with its references resolved.

Source: JSON Schema 2020-12, with what older drafts and OpenAPI write differently. Annotations and
unknown keywords are dropped, as the standard says; among them every `format` that llguidance does
not know.
"""

from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote

from sounding.text.json_schema.patterns import portable

Schema = dict[str, Any] | bool

TYPES = ("null", "boolean", "integer", "number", "string", "array", "object")
# Those that llguidance enforces in JSON.
FORMATS = frozenset("date-time time date duration email hostname ipv4 ipv6 uuid uri".split())
_MOST_IN_PLACE = 2_000  # each is combined with the others
_DEEPEST = 100  # levels of a schema; each takes a few frames of Python's stack

_SCHEMAS = (
    "additionalProperties items not if then else contains propertyNames unevaluatedProperties "
    "unevaluatedItems"
).split()
_LISTS = ("allOf", "anyOf", "oneOf", "prefixItems")
_MAPS = ("properties", "patternProperties", "dependentSchemas")
_COUNTS = (
    "minLength maxLength minItems maxItems minProperties maxProperties minContains maxContains"
).split()
_NUMBERS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
_ELSEWHERE = ("$dynamicRef", "$recursiveRef")


class SchemaDocument:
    """The schemas of one document; `definitions` holds what references lead to, by a new name.

    Raises ValueError, opening with `where`, for what is no schema and for a reference that leads
    out of the document, nowhere, or back to itself without a value between.
    """

    def __init__(self, document: Any, where: str) -> None:
        self._document, self._where = document, where
        self._names: dict[str, str] = {}
        self.definitions: dict[str, Schema] = {}
        self.root = self._read(document, "", 0)
        self._progressing: set[str] = set()
        for name in self.definitions:
            self._require_progress(name, ())
        self._sizes: dict[str, int] = {}
        for schema in (self.root, *self.definitions.values()):
            if self._size(schema) > _MOST_IN_PLACE:
                raise self.fault("", f"$ref stands for more than {_MOST_IN_PLACE} schemas at once")

    def target(self, schema: Mapping[str, Any]) -> Schema:
        """What a schema's reference leads to."""
        return self.definitions[str(schema["$ref"]).rpartition("/")[2]]

    def fault(self, at: str, what: str) -> ValueError:
        return ValueError(f"{self._where}{f', at {at:.200}' if at else ''}: {what}")

    def _read(self, schema: Any, at: str, depth: int) -> Schema:
        if isinstance(schema, bool):
            return schema
        if not isinstance(schema, Mapping):
            raise self.fault(at, f"{schema!r:.80} is no schema; it must be an object or a boolean")
        if depth > _DEEPEST:
            raise self.fault(at[:80], f"the schema is nested more than {_DEEPEST} levels deep")
        if at and isinstance(schema.get("$id"), str) and not schema["$id"].startswith("#"):
            raise self.fault(at, "$id inside of a schema is not supported; write it at the root")
        schema = _modern(schema)
        read: dict[str, Any] = {}
        for name, value in schema.items():
            below, place = f"{at}/{name}", depth + 1
            if name in _SCHEMAS:
                read[name] = self._read(value, below, place)
            elif name in _LISTS:
                self._require(isinstance(value, list) and value, below, value, "a list of schemas")
                parts = enumerate(value)
                read[name] = [self._read(part, f"{below}/{i}", place) for i, part in parts]
            elif name in _MAPS:
                self._require(isinstance(value, Mapping), below, value, "an object of schemas")
                items = value.items()
                read[name] = {
                    self._pattern(key, below) if name == "patternProperties" else key: self._read(
                        part, f"{below}/{key}", place
                    )
                    for key, part in items
                }
            elif name == "$ref":
                read[name] = f"#/$defs/{self._reference(value, below)}"
            elif name in _ELSEWHERE:
                raise self.fault(below, f"{name} is not supported; write $ref")
            elif name == "const":
                read[name] = value
            elif (kept := self._assertion(name, value, below)) is not None:
                read[name] = kept
        if "enum" in read or "const" in read:
            read.pop("format", None)  # the values are listed
        return read

    def _assertion(self, name: str, value: Any, at: str) -> Any:
        """A keyword without schemas in it, checked; None for one that asserts nothing."""
        if name in _COUNTS:
            number = isinstance(value, int | float) and not isinstance(value, bool)
            self._require(number and value >= 0 and value == int(value), at, value, "a count")
            return int(value)
        if name in _NUMBERS:
            number = isinstance(value, int | float) and not isinstance(value, bool)
            number = number and (name != "multipleOf" or value > 0)
            self._require(number, at, value, "a number" + " above 0" * (name == "multipleOf"))
        elif name == "type":
            names = value if isinstance(value, list) else [value]
            fine = names and all(isinstance(name, str) and name in TYPES for name in names)
            self._require(fine, at, value, f"one of {', '.join(TYPES)}, or a list of them")
            return list(dict.fromkeys(names))
        elif name == "enum":
            self._require(isinstance(value, list) and value, at, value, "a list of values")
        elif name == "required":
            self._require(_is_names(value), at, value, "a list of names")
        elif name == "dependentRequired":
            fine = isinstance(value, Mapping) and all(map(_is_names, value.values()))
            self._require(fine, at, value, "an object of lists of names")
        elif name == "pattern":
            return self._pattern(value, at)
        elif name == "format":
            return value if value in FORMATS else None
        elif name == "uniqueItems":
            self._require(isinstance(value, bool), at, value, "a boolean")
            return value or None
        else:
            return None
        return value

    def _require(self, fine: Any, at: str, value: Any, what: str) -> None:
        if not fine:
            raise self.fault(at, f"{value!r:.80} is not {what}")

    def _pattern(self, pattern: Any, at: str) -> str:
        self._require(isinstance(pattern, str), at, pattern, "a regular expression")
        try:
            return portable(pattern)
        except ValueError as error:
            raise self.fault(at, f"{error}") from None

    def _reference(self, reference: Any, at: str) -> str:
        self._require(isinstance(reference, str), at, reference, "a reference")
        if not (reference == "#" or reference.startswith("#/")):
            raise self.fault(
                at, f"{reference!r:.80} is not supported; give a path such as #/$defs/x"
            )
        pointer = unquote(reference[1:])
        if pointer not in self._names:
            target: Any = self._document
            for step in pointer.split("/")[1:]:
                target = _below(target, step.replace("~1", "/").replace("~0", "~"))
                if target is None:
                    raise self.fault(at, f"{reference!r:.80} leads nowhere")
            self._names[pointer] = name = f"d{len(self._names)}"
            self.definitions[name] = self._read(target, pointer, pointer.count("/"))
        return self._names[pointer]

    def _size(self, schema: Schema) -> int:
        """How many schemas are about one value, where references are followed."""
        if isinstance(schema, bool):
            return 1
        size = 1 + sum(map(self._size, in_place(schema)))
        if "$ref" in schema:
            name = schema["$ref"].rpartition("/")[2]
            if name not in self._sizes:
                self._sizes[name] = self._size(self.definitions[name])
            size += self._sizes[name]
        return size

    def _require_progress(self, name: str, above: tuple[str, ...]) -> None:
        """Raise ValueError where references lead back to a schema for the very same value."""
        if name in self._progressing:
            return
        if name in above:
            pointer = next(at for at, known in self._names.items() if known == name)
            raise self.fault(pointer, "$ref leads back to itself without a value between")
        waiting = [self.definitions[name]]
        while waiting:
            part = waiting.pop()
            if isinstance(part, bool):
                continue
            if "$ref" in part:
                self._require_progress(part["$ref"].rpartition("/")[2], (*above, name))
            waiting += in_place(part)
        self._progressing.add(name)


def in_place(schema: Mapping[str, Any]) -> list[Schema]:
    """The schemas within a schema that are about the same value."""
    parts = [part for name in ("allOf", "anyOf", "oneOf") for part in schema.get(name, ())]
    parts += [schema[name] for name in ("not", "if", "then", "else") if name in schema]
    return parts + list(schema.get("dependentSchemas", {}).values())


def _modern(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """Older ways to write tuples, exclusive bounds and dependencies, as 2020-12 has them."""
    made = dict(schema)
    if isinstance(made.get("items"), list):
        rest = made.pop("additionalItems", True)
        made["prefixItems"], made["items"] = made["items"], rest
        if not made["prefixItems"]:
            del made["prefixItems"]
    for exclusive, bound in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
        if isinstance(made.get(exclusive), bool) and made.pop(exclusive) and bound in made:
            made[exclusive] = made.pop(bound)
    dependencies = made.pop("dependencies", None)
    if isinstance(dependencies, Mapping):
        for key, value in dependencies.items():
            name = "dependentRequired" if isinstance(value, list) else "dependentSchemas"
            made[name] = {**made.get(name, {}), key: value}
    return made


def _below(value: Any, step: str) -> Any:
    if isinstance(value, Mapping):
        return value.get(step)
    if isinstance(value, list) and step.isdigit() and int(step) < len(value):
        return value[int(step)]
    return None


def _is_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)
