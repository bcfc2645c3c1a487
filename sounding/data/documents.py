"""The files of a corpus: xz-compressed JSONL, one document a line, readable with any tool.

A shard appears under its name only when it is complete.
"""

import json
import lzma
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from sounding.data.manifest import require_split

_PRESET = 6  # of xz: 9 is 2 % smaller and three times slower


@dataclass(frozen=True, kw_only=True)
class Document:
    """One file as the model will see it, and where it is from."""

    path: str
    package: str
    version: str
    license: str
    sha256: str  # of the text in UTF-8
    text: str


class ShardWriter:
    """Writes documents of one split; a new shard begins when one holds `shard_bytes` of text."""

    def __init__(self, folder: Path, split: str, shard_bytes: int) -> None:
        self._folder, self._split, self._limit = folder, split, shard_bytes
        self._stream: lzma.LZMAFile | None = None
        self._temporary = Path()
        self._held_bytes = 0
        self.paths: list[Path] = []  # of complete shards

    def write(self, document: Document) -> None:
        if self._stream is None:
            path = self._folder / f"{self._split}-{len(self.paths):05}.jsonl.xz"
            self._temporary = path.with_name(f".{path.name}.tmp")
            # Open across calls: `finish` closes it.
            self._stream = lzma.LZMAFile(self._temporary, "wb", preset=_PRESET)  # noqa: SIM115
        line = json.dumps(asdict(document), ensure_ascii=False).encode()
        self._stream.write(line + b"\n")
        self._held_bytes += len(line)
        if self._held_bytes >= self._limit:
            self.finish()

    def finish(self) -> None:
        """Close the shard being written, if any."""
        if self._stream is None:
            return
        self._stream.close()
        path = self._folder / f"{self._split}-{len(self.paths):05}.jsonl.xz"
        self._temporary.replace(path)
        self.paths.append(path)
        self._stream, self._held_bytes = None, 0


def shard_paths(folder: Path, split: str) -> list[Path]:
    """The shards of a split in order. Raises ValueError if there are none."""
    require_split("split", split)
    paths = sorted(folder.glob(f"{split}-*.jsonl.xz"))
    if not paths and any(folder.glob("*-*.jsonl.xz")):
        raise ValueError(
            f"{folder} holds no {split}-*.jsonl.xz: this corpus has no such split; "
            "`data build --heldout PACKAGE` holds packages out"
        )
    if not paths:
        raise ValueError(f"{folder} holds no {split}-*.jsonl.xz; `data build` makes a corpus there")
    return paths


def read_documents(folder: Path, split: str) -> Iterator[Document]:
    """All documents of a split, in the order they were written.

    Raises ValueError naming shard and line where one is damaged.
    """
    for path in shard_paths(folder, split):
        number = 0
        try:
            with lzma.open(path, "rb") as stream:
                for number, line in enumerate(stream, 1):  # noqa: B007
                    yield Document(**json.loads(line))
        except (lzma.LZMAError, EOFError, ValueError, TypeError) as error:
            raise ValueError(f"{path} is damaged after line {number}: {error}") from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name beside `path`, renamed to it when the block ends without an error."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
