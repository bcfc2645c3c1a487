"""Writing files that are whole or not there, and that stay; reading lines of JSON."""

import gzip
import json
import os
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def write_file(path: Path, data: bytes) -> None:
    """Write a file so that readers see the old content or the new, never a part.

    The data goes to a temporary file beside it, reaches the disk, and takes over the name.
    """
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def sync(path: Path) -> None:
    """Make a file's contents, or a folder's names, survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def read_json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """Values of a file of JSON lines (.jsonl), with their line numbers; also of a gzipped one.

    A byte-order mark and blank lines are passed over. Raises ValueError naming the file, the line
    and what is wrong with it.
    """
    for number, line in enumerate(_read_bytes(path).splitlines(), 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{path}, line {number} is not UTF-8: byte {error.start} is {line[error.start]:#x}"
            ) from None
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}, line {number} is not JSON: {error}") from None
        yield number, value


_GZIP = b"\x1f\x8b"
_MARKS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16", b"PK\x03\x04": "a zip archive"}
_MARKS |= {b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstandard", b"PAR1": "Parquet"}


def _read_bytes(path: Path) -> bytes:
    data = path.read_bytes()
    if data.startswith(_GZIP):
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"{path} is a damaged gzip file: {error}") from None
    for mark, name in _MARKS.items():
        if data.startswith(mark):
            raise ValueError(f"{path} is {name}; give lines of JSON in UTF-8, plain or gzipped")
    return data.removeprefix(b"\xef\xbb\xbf")
