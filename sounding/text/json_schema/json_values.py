"""JSON that follows a schema, as llguidance enforces it.

Between two parts of a value there is at most one space. White space without an end would be an
answer that a model which has nothing to say never leaves.
"""

from typing import Any

import llguidance

from sounding.text.json_schema.document import Schema, SchemaDocument
from sounding.text.json_schema.finite import ends
from sounding.text.markup import DSML, FORBIDDEN_IN_TEXT, to_json

_LAYOUT = {"whitespace_flexible": False, "item_separator": ", ?", "key_separator": ": ?"}
_MARK, _NEXT = DSML[0], DSML[1]
# The mark of the prompt format's tags, by which text is read back, never begins within a string.
_CLEAN = f"^(?:[^{_MARK}]|{_MARK}+[^{_MARK}{_NEXT}])*{_MARK}*$"
_ANYTHING = "anything"
_IN_PLACE = ("$ref", "allOf", "anyOf", "oneOf")


def json_grammar(schema: Schema, document: SchemaDocument, where: str) -> str | None:
    """What follows `%json` in a Lark grammar; None for a schema that no value follows.

    Raises ValueError, opening with `where`, for what llguidance does not enforce.
    """
    if not ends(schema, document):
        raise ValueError(f"{where}: no value can end: each that fits contains another such value")
    error = ""
    # Where recursive schemas are combined, clean strings everywhere are too much for llguidance.
    for clean in (True, False):
        text = _Lowering(document, where, clean).written(schema)
        made = llguidance.LLMatcher.grammar_from_json_schema(text)
        error = llguidance.LLMatcher.validate_grammar(made)
        if not error:
            return text
        if error.startswith("Unsatisfiable schema"):
            return None
    raise ValueError(f"{where}: {error.strip().splitlines()[0]}")


class _Lowering:
    """Writes a schema in the keywords that llguidance knows, with the definitions it needs."""

    def __init__(self, document: SchemaDocument, where: str, clean: bool) -> None:
        self._document, self._where, self._clean = document, where, clean
        self._definitions: dict[str, Any] = {}

    def written(self, schema: Schema) -> str:
        made = self._schema(schema)
        if isinstance(made, bool):
            made = {} if made else {"allOf": [False]}
        return to_json({"x-guidance": _LAYOUT, **made, "$defs": self._definitions})

    def _schema(self, schema: Schema) -> Any:
        if isinstance(schema, bool):
            return self._anything() if schema else schema
        if "$ref" in schema and not ends({"$ref": schema["$ref"]}, self._document):
            return False  # a way that a model would never come back from
        made = {name: self._keyword(name, value) for name, value in schema.items()}
        if "contains" not in schema:
            made = {name: made[name] for name in made if name not in ("minContains", "maxContains")}
        if "if" not in schema:
            made = {name: made[name] for name in made if name not in ("then", "else")}
        self._require_distinct(schema)
        self._clean_strings(schema, made)
        return made

    def _keyword(self, name: str, value: Any) -> Any:
        if name == "$ref":
            self._define(value.rpartition("/")[2])
        elif name in ("enum", "const"):
            text = to_json(value)
            if any(mark in text for mark in FORBIDDEN_IN_TEXT):
                raise ValueError(
                    f"{self._where}: {text:.80} contains a tag of the prompt format; take the "
                    "value out of the schema"
                )
        elif isinstance(value, list) and name in ("allOf", "anyOf", "oneOf", "prefixItems"):
            return [self._schema(part) for part in value]
        elif name in ("properties", "patternProperties", "dependentSchemas"):
            return {key: self._schema(part) for key, part in value.items()}
        elif isinstance(value, dict | bool) and name in ("items", "additionalProperties"):
            return self._schema(value)
        return value

    def _clean_strings(self, schema: dict[str, Any], made: dict[str, Any]) -> None:
        """Keep tags out of the strings that a schema leaves open."""
        if not self._clean or "enum" in schema or "const" in schema:
            return
        silent = "type" not in schema
        if silent and any(name in schema for name in _IN_PLACE):
            return  # said by the parts
        types = schema.get("type", ["string", "array", "object"])
        if "string" in types and "pattern" in schema:
            made["allOf"] = [*made.get("allOf", ()), {"pattern": _CLEAN}]
        elif "string" in types and "format" not in schema:
            made["pattern"] = _CLEAN
        if "array" in types and "items" not in schema:
            made["items"] = self._anything()
        if "object" in types and "additionalProperties" not in schema:
            made["additionalProperties"] = self._anything()

    def _anything(self) -> Any:
        if not self._clean:
            return True
        again = {"$ref": f"#/$defs/{_ANYTHING}"}
        self._definitions[_ANYTHING] = {
            "pattern": _CLEAN,
            "items": again,
            "additionalProperties": again,
        }
        return again

    def _define(self, name: str) -> None:
        if name not in self._definitions:
            self._definitions[name] = True  # until it is known: it may refer to itself
            self._definitions[name] = self._schema(self._document.definitions[name])

    def _require_distinct(self, schema: dict[str, Any]) -> None:
        """Raise ValueError where repeated names could make up a number of properties."""
        least = schema.get("minProperties", 0)
        free = (
            schema.get("additionalProperties", True) is not False or "patternProperties" in schema
        )
        if least > max(1, len(set(schema.get("required", ())))) and free:
            raise ValueError(
                f"{self._where}: minProperties {least} is supported with additionalProperties: "
                "false, and where as many properties are required"
            )
