"""The tables of docs/server.md are the models'; `python -m tests.server.test_docs` writes them."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from sounding.server.app import OPERATIONS
from sounding.server.http.wire import Refused, Wire, attribute_docstrings

PAGE = Path(__file__).parents[2] / "docs" / "server.md"
BEGIN, END = "<!-- tables -->\n", "<!-- end of tables -->"


def tables() -> str:
    """A section for each route: what is honoured, accepted, refused."""
    sections = []
    for operation in OPERATIONS:
        sections.append(
            f"### `{operation.path}`\n\n{operation.summary}\n\n" + _table(operation.model)
        )
    return "\n".join(sections)


def _table(model: type[Wire]) -> str:
    plain = [f"`{field.alias or name}`" for name, field in model.model_fields.items()]
    rows = []
    for place, part in _parts(model, "", set()):
        for name, text in attribute_docstrings(part).items():
            rows.append((place + name, " ".join(text.split())))
        rows += [(place + name, f"no effect: {why}") for name, why in part.accepted.items()]
        rows += [(place + name, _refusal(refused)) for name, refused in part.refused.items()]
    lines = [f"| `{name}` | {what} |" for name, what in rows]
    return "\n".join([f"Honoured: {', '.join(plain)}.\n", "| Field | |\n|---|---|", *lines]) + "\n"


def _refusal(refused: Refused) -> str:
    values = dict.fromkeys(_json(value) for value in refused.harmless)
    but = f" but for {', '.join(values)}" if values else ""
    return f"**refused**{but}: {refused.why}"


def _json(value: Any) -> str:
    whole = int(value) if isinstance(value, float) and value.is_integer() else value
    return f"`{json.dumps(whole)}`"


def _parts(model: type[Wire], place: str, seen: set[type]) -> Iterator[tuple[str, type[Wire]]]:
    """A model and those inside of it, each once, with their place in a request."""
    seen.add(model)
    yield place, model
    for name, field in model.model_fields.items():
        for many, inner in _models(field.annotation, False):
            if inner not in seen:
                inside = f"{place}{field.alias or name}{'[]' if many else ''}."
                yield from _parts(inner, inside, seen)


def _models(hint: Any, many: bool) -> Iterator[tuple[bool, type[Wire]]]:
    if isinstance(hint, type) and issubclass(hint, Wire):
        yield many, hint
    for inner in get_args(hint):
        yield from _models(inner, many or getattr(hint, "__origin__", None) is list)


def test_tables_are_those_of_the_models() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert text.partition(BEGIN)[2].partition(END)[0] == tables()


def test_no_field_is_both() -> None:
    for operation in OPERATIONS:
        for _, part in _parts(operation.model, "", set()):
            names = [*part.model_fields, *part.accepted, *part.refused]
            assert len(names) == len(set(names)), part


def test_routes_are_all_described() -> None:
    text = PAGE.read_text(encoding="utf-8")
    named = set(re.findall(r"### `(/[^`]*)`", text))
    assert named == {operation.path for operation in OPERATIONS}


if __name__ == "__main__":
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    PAGE.write_text(before + BEGIN + tables() + END + after, encoding="utf-8")
