"""Requests as typed models that ignore no field silently.

A field of a protocol is declared (and honoured), `accepted` (it has no effect here, and the docs
say why), or `refused` by name with the reason, unless its value requests nothing. Any other name
is an error that suggests the nearest field, unless its value is null: clients that serialise whole
structures write absent fields as null.
"""

import ast
import difflib
import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from textwrap import dedent
from typing import Any, ClassVar, TypeVar, cast

import numpy as np
import pydantic_core
from numpy.typing import NDArray
from pydantic import (
    BaseModel,
    ConfigDict,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    ValidationError,
    model_validator,
)
from pydantic_core import CoreSchema, PydanticCustomError

from sounding.server.http.errors import Refusal

Json = dict[str, Any]

MOST_COLLECTIONS = 50_000  # objects and arrays in one request
_MOST_NAMES = 3 * MOST_COLLECTIONS
MOST_VALUES = 4 * MOST_COLLECTIONS
_PAGE_BYTES = 1 << 18
_LONGEST_NAME = 80  # of a field's name in an error message


@dataclass(frozen=True)
class Refused:
    """An unsupported field: the reason, and values that request nothing (null always does)."""

    why: str
    harmless: tuple[Any, ...] = ()

    def allows(self, value: Any) -> bool:
        return value is None or any(
            type(value) is type(other) and value == other for other in self.harmless
        )


def _end_at_first_fault(schema: Any) -> None:
    if isinstance(schema, dict):
        if schema.get("type") in ("list", "dict"):
            schema["fail_fast"] = True
        for part in schema.values():
            _end_at_first_fault(part)
    elif isinstance(schema, list | tuple):
        for part in schema:
            _end_at_first_fault(part)


class Wire(BaseModel):
    """A JSON object of a protocol. Types are strict: "5" is not a number."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        frozen=True,
        allow_inf_nan=False,
        defer_build=True,  # a server that never sees a protocol never builds its validators
    )

    accepted: ClassVar[Mapping[str, str]] = {}
    refused: ClassVar[Mapping[str, Refused]] = {}
    streams_by_default: ClassVar[bool] = False

    @property
    def streamed(self) -> bool:
        """Whether the answer is sent piece by piece; False for requests without that field."""
        asked = getattr(self, "stream", None)
        return self.streams_by_default if asked is None else bool(asked)

    @model_validator(mode="before")
    @classmethod
    def _know_every_name(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        kept, names = {}, _names(cls)
        for name, value in given.items():
            if name in cls.accepted:
                continue
            if name in cls.refused:
                if not cls.refused[name].allows(value):
                    raise fault(name, f"{name!r} is not supported: {cls.refused[name].why}")
                continue
            if name not in names:
                if value is None:
                    continue
                raise fault(name, _unknown(name, names))
            if value is None and not names[name]:
                continue  # the same as an absent field
            kept[name] = value
        return kept

    @classmethod
    def __get_pydantic_core_schema__(
        cls, source: type[BaseModel], handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        """Stop validating a list or object at its first error; a million errors help nobody."""
        schema = handler(source)
        _end_at_first_fault(schema)
        return schema

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> Json:
        """What is read: null as an absent field, the harmless values of refused ones too."""
        schema = handler.resolve_ref_schema(handler(core))
        required = schema.get("required", ())
        properties = schema.setdefault("properties", {})
        documented = attribute_docstrings(cls)
        for name, declared in properties.items():
            if name in documented:
                declared["description"] = documented[name]
            if name not in required:
                properties[name] = _or_null(declared)
        for name, why in cls.accepted.items():
            properties[name] = {"description": f"Accepted without effect: {why}"}
        for name, refused in cls.refused.items():
            description = f"Not supported: {refused.why}"
            properties[name] = {"enum": [None, *refused.harmless], "description": description}
        schema["additionalProperties"] = {"type": "null"}
        return schema


def attribute_docstrings(model: type[Wire]) -> dict[str, str]:
    """The string below a field's declaration, by the field's name in JSON.

    Pydantic's `useattribute_docstrings` reads every source file at import; this reads them when
    somebody asks for the OpenAPI document.
    """
    strings: dict[str, str] = {}
    for cls in reversed(model.__mro__):
        if not issubclass(cls, Wire) or cls is Wire:
            continue
        body = cast(ast.ClassDef, ast.parse(dedent(inspect.getsource(cls))).body[0]).body
        for declaration, below in pairwise(body):
            match declaration, below:
                case (
                    ast.AnnAssign(target=ast.Name(id=name)),
                    ast.Expr(value=ast.Constant(value=str(text))),
                ) if name in model.model_fields:
                    strings[model.model_fields[name].alias or name] = inspect.cleandoc(text)
    return strings


def _or_null(schema: Json) -> Json:
    """A field's schema, which admits null as well."""
    kinds = ("type", "$ref", "anyOf", "oneOf", "allOf", "enum", "const")
    if not any(name in schema for name in kinds) or {"type": "null"} in schema.get("anyOf", ()):
        return schema
    about = ("title", "description", "default")
    told = {name: value for name, value in schema.items() if name in about}
    plain = {name: value for name, value in schema.items() if name not in about}
    return {"anyOf": [plain, {"type": "null"}], **told}


Model = TypeVar("Model", bound=Wire)


def read_json(body: bytes, most_values: int = MOST_VALUES) -> Any:
    """Parse a request's body.

    Raises Refusal for invalid JSON (NaN and lone surrogates included) and for too many values.
    """
    _check_structure(body, most_values)
    try:
        return pydantic_core.from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise Refusal(400, f"the body is not JSON: {error}", code="invalid_json") from None


def _check_structure(body: bytes, most_values: int) -> None:
    """Raise Refusal for JSON with so many values that parsing would block other threads.

    Long texts are cheap; values cost time, names more, and objects and arrays most.
    """
    limits = (
        ("[{", MOST_COLLECTIONS, "objects and arrays"),
        (":", _MOST_NAMES, "names"),
        (",", most_values, "values"),
    )
    if len(body) <= min(most for _, most, _ in limits):
        return
    marks = _count_marks(body)
    for characters, most, what in limits:
        count = sum(marks[ord(character)] for character in characters)
        if count > most:
            raise Refusal(
                400,
                f"the body has {count} {what}; at most {most} are allowed: send longer texts",
                code="invalid_value",
            )


def _count_marks(body: bytes) -> NDArray[np.int64]:
    """Count each byte outside of strings, page by page, so that other threads may run."""
    counts = np.zeros(256, np.int64)
    inside, start = False, 0
    while start < len(body):
        page = body[start : start + _PAGE_BYTES]
        if (len(page) - len(page.rstrip(b"\\"))) % 2:  # do not split an escape
            page = body[start : start + len(page) + 1]
        start += len(page)
        page = page.replace(b"\\\\", b"").replace(b'\\"', b"")
        characters = np.frombuffer(page, np.uint8)
        quoted = np.logical_xor.accumulate(characters == ord('"')) ^ inside
        counts += np.bincount(characters[~quoted], minlength=256)
        inside = bool(quoted[-1]) if len(quoted) else inside
    return counts


def read_model(model: type[Model], given: Any) -> Model:
    """Validate a request. Raises Refusal naming the invalid field."""
    try:
        return model.model_validate(given)
    except ValidationError as error:
        raise _refusal(error, given) from None


def _refusal(error: ValidationError, given: Any) -> Refusal:
    # Report one error: further ones are often consequences. A value of a union has the errors of
    # every type; the deepest one belongs to the type that was meant.
    faults = error.errors(include_url=False, include_input=False)
    worst = max(faults, key=lambda f: (f["type"] == "field", len(f["loc"])))
    place = [*worst["loc"]]
    context = worst.get("ctx") or {}
    if worst["type"] == "field":
        place.append(context["field"])
    message = str(worst["msg"]).removeprefix("Value error, ")
    param = _path(place, given, absent=worst["type"] == "missing") or None
    if worst["type"] != "field" and param is not None:
        message = f"{param}: {message[:1].lower()}{message[1:]}"
    return Refusal(400, message, param=param, code=context.get("code", "invalid_value"))


def _path(place: list[int | str], given: Any, *, absent: bool) -> str:
    """Format a location in a request, such as `messages[0].content`.

    For a union, pydantic's location also names the type it tried; such steps are left out.
    """
    path = ""
    for number, step in enumerate(place, 1):
        last = number == len(place)
        if isinstance(given, list) and isinstance(step, int) and step < len(given):
            path, given = f"{path}[{step}]", given[step]
        elif isinstance(given, dict) and (step in given or (last and absent)):
            name = str(step)[:_LONGEST_NAME]
            path, given = f"{path}.{name}" if path else name, given.get(step)
    return path


@cache
def _names(model: type[Wire]) -> Mapping[str, bool]:
    """The declared fields, and whether each is required."""
    fields = model.model_fields.items()
    return {field.alias or name: field.is_required() for name, field in fields}


def _unknown(name: str, known: Iterable[str]) -> str:
    short = len(name) < _LONGEST_NAME  # searching for a near match is slow for long names
    near = difflib.get_close_matches(name, sorted(known), 1) if short else []
    hint = f"; did you mean {near[0]!r}?" if near else f"; the fields are {sorted(known)}"
    return f"{name[:_LONGEST_NAME]!r} is not a field of this request{hint}"


def fault(field: str, message: str) -> PydanticCustomError:
    """The error for a validator to raise where the value of `field` is invalid."""
    return PydanticCustomError(
        "field", "{message}", {"field": field, "message": message, "code": "unsupported_parameter"}
    )
