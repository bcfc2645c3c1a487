"""The metrics of a run: rows of JSON in one file that survives a killed process.

A row has a `step` and either measurements or an `event` with its `reason`.
"""

import json
import logging
import os
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

METRICS_NAME = "metrics.jsonl"  # in the folder of a run

MetricsRow = dict[str, Any]


class MetricsFile:
    """A file to append rows to; resuming truncates it to its length at the checkpoint."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, row: MetricsRow) -> None:
        """Write one row and flush it to the operating system."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def sync(self) -> int:
        """Flush all rows to the disk; returns the length of the file in bytes."""
        if not self.path.exists():
            return 0
        with self.path.open("rb+") as file:
            os.fsync(file.fileno())
            return file.seek(0, os.SEEK_END)

    def cut(self, num_bytes: int) -> None:
        """Truncate to the first `num_bytes`: later rows belong to steps that will be repeated.

        Raises ValueError when the file is shorter than that.
        """
        size = self.path.stat().st_size if self.path.exists() else 0
        if size < num_bytes:
            raise ValueError(
                f"{self.path} has {size} bytes and had {num_bytes} at the checkpoint: it was "
                "changed; resume from a copy of the whole run folder"
            )
        if size > num_bytes:
            os.truncate(self.path, num_bytes)


def read_metrics(path: Path) -> list[MetricsRow]:
    """All rows, without a half-written last one.

    Raises ValueError naming the line for any other line that is not JSON.
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
