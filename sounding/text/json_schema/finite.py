"""Whether a recursive schema has values that end."""

from typing import Any

from sounding.text.json_schema.document import Schema, SchemaDocument

_MOST_STEPS = 20_000  # beyond, a schema is taken to end: the request's own limit ends the answer
_SCALARS = frozenset({"null", "boolean", "integer", "number", "string"})
_TYPES = _SCALARS | {"array", "object"}


def ends(schema: Schema, document: SchemaDocument) -> bool:
    """False if every value that fits must contain another, of the same schema, without an end."""
    return _Search(document).ends(schema, _TYPES, {}, frozenset())


class _Search:
    def __init__(self, document: SchemaDocument) -> None:
        self._document, self._steps = document, 0
        self._known: set[str] = set()

    def ends(
        self,
        schema: Schema,
        types: frozenset[str],
        properties: dict[str, Any],
        above: frozenset[str],
    ) -> bool:
        """`types` and `properties` are what the schemas around this one say of the same value;
        `above` are the definitions that the value is a part of."""
        self._steps += 1
        if isinstance(schema, bool) or self._steps > _MOST_STEPS:
            return schema is not False
        if "enum" in schema or "const" in schema:
            return True
        types = types & frozenset(schema.get("type", _TYPES))
        properties = {**properties, **schema.get("properties", {})}

        def same(part: Schema) -> bool:
            return self.ends(part, types, properties, above)

        if "$ref" in schema and not self._definition(schema["$ref"], types, properties, above):
            return False
        if not all(map(same, schema.get("allOf", ()))):
            return False
        if not all(any(map(same, schema[name])) for name in ("anyOf", "oneOf") if name in schema):
            return False
        return bool(types & _SCALARS) or self._container_ends(schema, types, properties, above)

    def _definition(
        self,
        reference: str,
        types: frozenset[str],
        properties: dict[str, Any],
        above: frozenset[str],
    ) -> bool:
        if reference in above:
            return False
        if reference in self._known:
            return True
        target = self._document.definitions[reference.rpartition("/")[2]]
        found = self.ends(target, types, properties, above | {reference})
        if found and types == _TYPES and not properties:
            self._known.add(reference)
        return found

    def _container_ends(
        self,
        schema: dict[str, Any],
        types: frozenset[str],
        properties: dict[str, Any],
        above: frozenset[str],
    ) -> bool:
        def inner(part: Schema) -> bool:
            return self.ends(part, _TYPES, {}, above)

        if "array" in types:
            first = schema.get("prefixItems", [])[: schema.get("minItems", 0)]
            more = schema.get("minItems", 0) > len(first)
            if all(map(inner, first)) and (not more or inner(schema.get("items", True))):
                return True
        other = schema.get("additionalProperties", True)
        required = schema.get("required", ())
        return "object" in types and all(inner(properties.get(key, other)) for key in required)
