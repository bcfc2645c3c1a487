"""What a run measured, as rows of JSON in one file that survives being killed.

A row has a `step` and either measurements or an `event` with its `reason`.
"""

import json
import logging
import os
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

MetricsRow = dict[str, Any]


class MetricsFile:
    """A file that rows are appended to, and that resuming cuts back to a checkpoint's length."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, row: MetricsRow) -> None:
        """Write one row and hand it to the operating system."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def sync(self) -> int:
        """Make all rows survive a power cut; returns the length of the file in bytes."""
        if not self.path.exists():
            return 0
        with self.path.open("rb+") as file:
            os.fsync(file.fileno())
            return file.seek(0, os.SEEK_END)

    def cut(self, num_bytes: int) -> None:
        """Drop the rows after the first `num_bytes`: they belong to steps that are taken again.

        Raises ValueError when the file is shorter than that.
        """
        size = self.path.stat().st_size if self.path.exists() else 0
        if size < num_bytes:
            raise ValueError(
                f"{self.path} has {size} bytes but the checkpoint saw {num_bytes}: it was changed; "
                "resume from a copy of the whole run folder"
            )
        if size > num_bytes:
            os.truncate(self.path, num_bytes)


def read_metrics(path: Path) -> list[MetricsRow]:
    """All rows; a half-written last one is left out.

    Raises ValueError naming the line for anything else that is no JSON.
    """
    rows: list[MetricsRow] = []
    lines = path.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, 1):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            if number == len(lines):
                logger.warning("%s ends in a half-written row", path)
                break
            raise ValueError(f"{path}:{number} is no row of metrics: {error}") from error
    return rows
