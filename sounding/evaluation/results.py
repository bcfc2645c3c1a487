"""Results stored row by row, so that an interrupted evaluation can resume without loss.

A results file is JSONL: first the settings, then a row per finished item.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

Row = dict[str, Any]


class Results:
    """Rows by id, in memory and, if a path is given, in a file."""

    def __init__(self, path: Path | None, settings: Mapping[str, Any]) -> None:
        """Read existing rows from the file; drops a last line that a crash cut short.

        Raises ValueError if the file has results of other settings or is not a results file.
        """
        self.rows: dict[str, Row] = {}
        self._path = path
        if path is None:
            return
        header = json.dumps({"settings": settings}, sort_keys=True)
        if not path.exists() or not path.stat().st_size:
            path.write_text(header + "\n", encoding="utf-8")
            return
        data = path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        first, *lines = whole.decode().split("\n")[:-1] or [""]
        if first != header:
            raise ValueError(
                f"{path} has no results of these settings; choose another file, or remove "
                f"it to start over{_first_difference(first, settings)}"
            )
        for line in lines:
            row = json.loads(line)
            self.rows[row["id"]] = row
        if len(whole) < len(data):
            os.truncate(path, len(whole))

    def add(self, row: Row) -> None:
        """Store a row, which must have an "id"; it is written to the file before this returns."""
        self.rows[row["id"]] = row
        if self._path is not None:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")

    def __contains__(self, name: str) -> bool:
        return name in self.rows

    def select(self, names: list[str]) -> list[Row]:
        """The stored rows with these ids, in this order."""
        return [self.rows[name] for name in names if name in self.rows]


def read_results(path: Path) -> dict[str, Row]:
    """The rows of a file by id. Raises ValueError if it is not a results file."""
    try:
        settings, *lines = path.read_text(encoding="utf-8").splitlines()
        if "settings" not in json.loads(settings):
            raise ValueError("no settings")
        rows = [json.loads(line) for line in lines]
        return {row["id"]: row for row in rows}
    except (ValueError, LookupError, TypeError) as error:
        raise ValueError(f"{path} is not a results file of an evaluation ({error})") from None


def _first_difference(header: str, settings: Mapping[str, Any]) -> str:
    try:
        found = json.loads(header)["settings"]
        for name in sorted(found.keys() | settings.keys()):
            if found.get(name) != settings.get(name):
                return f" ({name} was {found.get(name)!r} and is {settings.get(name)!r})"
    except (ValueError, KeyError, AttributeError, TypeError):
        pass
    return ""
